//! Compensation for removed layers: `o_proj` and `down_proj` of the kept layers, fitted so that the
//! residual stream is that of the source.
//!
//! Source and kept layers run side by side, depth after depth. Behind a kept layer the stream
//! should be what it is in the source behind the removed layers that follow; between attention and
//! feed-forward network it should be what it is there. With `x̂` what the linear reads, `ĥ` the
//! stream that its output is added to, `b` its bias and `g` the stream of the source, the fitted
//! weight is
//!
//! ```text
//! T = W + E[(g − ĥ − b − W x̂) x̂ᵀ] (C + λ diag C)⁻¹,    C = E[x̂ x̂ᵀ],
//! ```
//!
//! ridge regression of what is missing. It has the shape of `W`: nothing is added to the model, and
//! what was removed is approximated by what is left (as ReplaceMe,
//! <https://arxiv.org/abs/2505.02819>, does behind one cut). Rows divided by the length of `g`, as
//! the norms behind take them, end at a higher KL (`docs/log.md`).
//!
//! Many fits one after another to the same rows would hide from each other what none of them
//! explains on others. So one sequence in [`VALIDATED`] is fitted to by none; `λ` is the one of
//! [`RIDGES`] that explains most there, and a weight stays as it is where none explains anything.
//! Layers before the first removed one stay as they are, bit for bit.
//!
//! A depth that runs a layer again reads what was fitted at the first, and adds `s (W + B A) x̂`
//! with its gate `s`. Where the gate is open, the LoRA of its `o_proj` and `down_proj` is fitted to
//! what is still missing behind the removed layers: the change of the weight as above, cut to the
//! rank in the metric of `x̂` and divided by `s`. So every depth of a loop lowers the error that
//! those before it leave. With gates of 0 nothing is fitted.

use super::{
    context::{Context, row_major, wide},
    low_rank::LowRank,
    metric::{Metric, inner, product},
    moments::{GramSums, Pair},
    overlay::Overlay,
    refit::{Energies, set_factors},
    scratch::Scratch,
    staged::StagedRun,
};
use crate::{
    ConvertError, Phase, Progress,
    factorize::{Draw, LoraFactors},
    plan::PlannedLora,
};
use faer::{Mat, Scale};
use retie_checkpoint::{ProbePoint, SafetensorsFile, narrow, widen};
use retie_config::{DepthAssignment, LayerIndex, Projection, TensorOwner, TensorPart, TensorRole};
use std::collections::BTreeMap;

/// One sequence in so many chooses ridges and is not fitted to.
const VALIDATED: usize = 8;

/// Parts of the diagonal of the moments that are tried.
const RIDGES: [f64; 5] = [1e-3, 1e-2, 0.1, 0.5, 3.0];

/// Weights of kept layers, and the LoRA of open loops with its energies.
pub(super) type Compensated = (SafetensorsFile, Option<(SafetensorsFile, Energies)>);

/// Fits the kept layers and the LoRA of open loops, and writes what was fitted to `scratch`. The
/// factors that are given back hold energies only.
///
/// # Errors
/// When something cannot be read or written, or is not finite.
pub(super) fn compensate(
    context: &Context<'_>,
    scratch: &Scratch,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Compensated, ConvertError> {
    let (plan, total) = (context.plan, context.plan.map().num_depths());
    let mut writer = scratch.weights(plan)?;
    let mut factors = plan.fits_loops().then(|| scratch.factors(plan)).transpose()?;
    let mut energies = Energies::new();
    let mut source = context.embed(&context.calibration.train)?;
    let mut hidden = source.clone();
    let mut looped: BTreeMap<LayerIndex, Overlay> = BTreeMap::new();
    for step in plan.map().depths() {
        let kept = plan.source_layer(step.depth);
        hidden = match looped.get_mut(&step.layer) {
            Some(layer) => {
                layer.clear_own();
                if let Some(gate) = plan.gate(step.depth) {
                    layer.set_gates(plan.config.hidden_size, gate);
                }
                let mut run = StagedRun::new(&hidden);
                if let Some(factors) = &mut factors {
                    for (planned, found) in fit_again(context, layer, (&mut run, &source), *step)? {
                        factors.write(&planned.a.0, &narrow(&found.a, planned.a.1.dtype))?;
                        factors.write(&planned.b.0, &narrow(&found.b, planned.b.1.dtype))?;
                        energies.insert(planned.stream, LoraFactors { a: Vec::new(), b: Vec::new(), ..found });
                    }
                }
                run.finish(context, layer)?
            }
            None => {
                let next = next_kept(context, kept);
                let is_intact = hidden == source && next == kept.0 + 1;
                let goals = Goals::run(context, kept, next, source)?;
                let mut layer = Overlay::from_source(context.source, &plan.config, kept)?;
                let mut run = StagedRun::new(&hidden);
                for projection in context.all_projections() {
                    let planned = context.planned(step.layer, projection).filter(|planned| planned.fitted);
                    let Some(planned) = planned else { continue };
                    if !is_intact {
                        let goal = goals.behind(ProbePoint::read_by(projection));
                        let fitted = fit(context, &layer, (&mut run, goal), *step, projection)?;
                        let role = TensorRole::Projection(projection);
                        let dtype = planned.info.dtype;
                        let rounded = widen(&narrow(&fitted, dtype), dtype);
                        layer.set(role, TensorPart::Weight, &context.shape(projection), rounded);
                    }
                    writer.write(&planned.name, &narrow(layer.weight(projection)?, planned.info.dtype))?;
                }
                source = goals.after;
                let hidden = run.finish(context, &layer)?;
                if plan.map().is_shared(step.layer) {
                    looped.insert(step.layer, layer);
                }
                hidden
            }
        };
        let name = format!("model.depths.{}", step.depth);
        progress(Progress { phase: Phase::Compensate, done: step.depth.0 + 1, total, tensor: &name });
    }
    let factors = factors.map(|factors| Ok::<_, ConvertError>((factors.finish()?, energies))).transpose()?;
    Ok((writer.finish()?, factors))
}

/// The source layer behind the removed ones that follow `kept`; the number of layers behind the
/// last.
fn next_kept(context: &Context<'_>, kept: LayerIndex) -> usize {
    let stack = &context.plan.stack;
    let later = stack.sources().iter().copied().filter(|layer| *layer > kept.0).min();
    later.unwrap_or(stack.num_source_layers())
}

/// Residual stream of the source.
struct Goals {
    /// Between attention and feed-forward network of the kept layer, `[M, D]`.
    between: Vec<f32>,
    /// Behind the kept layer and the removed ones that follow, `[M, D]`.
    after: Vec<f32>,
}

impl Goals {
    fn run(context: &Context<'_>, kept: LayerIndex, next: usize, source: Vec<f32>) -> Result<Self, ConvertError> {
        let mut between = Vec::new();
        let after = context.run(context.source_run(kept, None), &source, &mut |seen| {
            if seen.point == ProbePoint::Mlp {
                between.extend_from_slice(seen.residual);
            }
        })?;
        Ok(Self { between, after: context.source_hidden(after, kept.0 + 1, next)? })
    }

    fn behind(&self, point: ProbePoint) -> &[f32] {
        if point == ProbePoint::Output { &self.between } else { &self.after }
    }
}

/// A weight of a linear that writes to the residual stream, fitted to the goal behind it: least
/// squares on most of the sequences, with the ridge that explains most on the others.
fn fit(
    context: &Context<'_>,
    layer: &Overlay,
    (run, goal): (&mut StagedRun<'_>, &[f32]),
    step: DepthAssignment,
    projection: Projection,
) -> Result<Vec<f32>, ConvertError> {
    let weight = wide(layer.weight(projection)?, context.shape(projection));
    let best = best_change(context, layer, (run, goal), (step, projection), &mut |change: Mat<f64>, _| {
        Ok((change.clone(), change))
    })?;
    Ok(row_major(best.map_or_else(|| weight.clone(), |change| &weight + &change).as_ref()))
}

/// Fits the LoRA of the linears of a depth that runs `layer` again and write to the residual
/// stream, one after another, to the goal behind the removed layers, and puts it into `layer`.
fn fit_again<'c>(
    context: &Context<'c>,
    layer: &mut Overlay,
    (run, goal): (&mut StagedRun<'_>, &[f32]),
    step: DepthAssignment,
) -> Result<Vec<(&'c PlannedLora, LoraFactors)>, ConvertError> {
    let mut all = Vec::new();
    for projection in context.all_projections() {
        let planned = context.planned(step.layer, projection).filter(|planned| planned.fitted);
        let Some(planned) = planned.and_then(|planned| planned.factors_at(step.depth)) else { continue };
        let cut = &mut |change: Mat<f64>, metric: &Metric| {
            let cut = LowRank::from_residual(change.as_ref(), metric, planned.rank)?;
            Ok::<_, ConvertError>((cut.product(), cut))
        };
        let best = best_change(context, layer, (run, goal), (step, projection), cut).map_err(|error| match error {
            ConvertError::NoConvergence { .. } => ConvertError::NoConvergence { tensor: planned.source.clone() },
            other => other,
        })?;
        let nothing = || LowRank::zero(planned.shape, planned.rank);
        let found = best.unwrap_or_else(nothing).divided_by(f64::from(gate(context, step)));
        let factors = found.factors(Draw { seed: context.seed, stream: planned.stream });
        set_factors(layer, planned, factors.clone());
        all.push((planned, factors));
    }
    Ok(all)
}

/// Makes a change of a form from least squares, with what stands for it.
type Shape<'a, T> = dyn FnMut(Mat<f64>, &Metric) -> Result<(Mat<f64>, T), ConvertError> + 'a;

/// The change of a linear's output matrix, gate included, that explains most of what is missing on
/// the sequences that are not fitted to, each ridge's as `shape` makes it of the least squares;
/// `None` if none explains anything.
fn best_change<T>(
    context: &Context<'_>,
    layer: &Overlay,
    inputs: (&mut StagedRun<'_>, &[f32]),
    (step, projection): (DepthAssignment, Projection),
    shape: &mut Shape<'_, T>,
) -> Result<Option<T>, ConvertError> {
    let bad = |_| ConvertError::BadMoments { depth: step.depth.0, projection: projection.name().to_owned() };
    let gate = f64::from(gate(context, step));
    let given = &wide(layer.weight(projection)?, context.shape(projection)) * Scale(gate);
    let [fitted, validated] = observe(context, layer, inputs, step, projection)?;
    let (fitted, validated) = (Moments::new(&fitted, &given), Moments::new(&validated, &given));
    let mut best = (0.0, None);
    for ridge in RIDGES {
        let metric = Metric::with_ridge(&fitted.gram, ridge).map_err(bad)?;
        let (change, found) = shape(metric.divide(fitted.missing.clone()), &metric)?;
        let explained = validated.explained(&change);
        tracing::debug!(depth = step.depth.0, projection = projection.name(), ridge, explained, "compensated");
        if explained > best.0 {
            best = (explained, Some(found));
        }
    }
    Ok(best.1)
}

/// What the outputs of a depth are multiplied by: 1 where a layer runs for the first time.
fn gate(context: &Context<'_>, step: DepthAssignment) -> f32 {
    context.plan.gate(step.depth).unwrap_or(1.0)
}

/// Moments of some sequences.
struct Moments {
    /// `C`, `[in, in]`.
    gram: Mat<f64>,
    /// `E[(g − ĥ − b − W x̂) x̂ᵀ]`, `[D, in]`.
    missing: Mat<f64>,
}

impl Moments {
    fn new(sums: &GramSums, weight: &Mat<f64>) -> Self {
        let gram = sums.gram();
        let given = product(weight.as_ref(), gram.as_ref());
        let missing =
            sums.residual().map_or_else(|| Mat::zeros(given.nrows(), given.ncols()), |wanted| &wanted - &given);
        Self { gram, missing }
    }

    /// By how much a change of the weight lowers the mean squared error.
    fn explained(&self, change: &Mat<f64>) -> f64 {
        let quadratic = product(change.as_ref(), self.gram.as_ref());
        2.0 * inner(change.as_ref(), self.missing.as_ref()) - inner(quadratic.as_ref(), change.as_ref())
    }
}

/// Sums of what a linear reads and of what should be added to the residual stream: of the
/// sequences that are fitted to, and of those that choose the ridge.
fn observe(
    context: &Context<'_>,
    layer: &Overlay,
    (run, goal): (&mut StagedRun<'_>, &[f32]),
    step: DepthAssignment,
    projection: Projection,
) -> Result<[GramSums; 2], ConvertError> {
    let (point, [width, inp]) = (ProbePoint::read_by(projection), context.shape(projection));
    let owner = TensorOwner::Layer(context.plan.source_layer(step.depth));
    let mut bias = match context.plan.config.has_bias(projection) {
        true => context.source.read_f32(&owner.bias(TensorRole::Projection(projection)))?,
        false => vec![0.0; width],
    };
    bias.iter_mut().for_each(|b| *b *= gate(context, step));
    let length = context.calibration.sequence_length;
    let num_sequences = goal.len() / width / length;
    let num_validated = (num_sequences / VALIDATED).max(usize::from(num_sequences > 1));
    let border = (num_sequences - num_validated) * length;
    let mut sums = [GramSums::new(inp), GramSums::new(inp)];
    let mut row = 0;
    run.advance(context, layer, point, &mut |seen| {
        let rows = seen.residual.len() / width;
        let first = border.saturating_sub(row).min(rows);
        for (part, sums) in [0..first, first..rows].into_iter().zip(&mut sums) {
            if part.is_empty() {
                continue;
            }
            let goal = &goal[(row + part.start) * width..(row + part.end) * width];
            let inputs = &seen.inputs[part.start * inp..part.end * inp];
            let residual = &seen.residual[part.start * width..part.end * width];
            let offset: Vec<f32> = residual.chunks(width).flat_map(|row| add(row, &bias)).collect();
            sums.add(Pair { source: None, tied: inputs, residual: Some([goal, &offset]) });
        }
        row += rows;
    })?;
    Ok(sums)
}

fn add<'r>(row: &'r [f32], bias: &'r [f32]) -> impl Iterator<Item = f32> + 'r {
    row.iter().zip(bias).map(|(x, b)| x + b)
}
