//! The corrections of each depth, with error feedback: source and tied model run side by side,
//! depth after depth, and every correction is fitted to what the tied model really reads there,
//! after all that was fitted before it.
//!
//! Within a depth the points follow one another (`q`, `k`, `v`; `o`; `gate`, `up`; `down`). At
//! each, with `x` of the source and `x̂` of the tied model, [`target`] gives the weight that
//! answers `x̂` as the source answers `x`; `B_d A_d` is the best correction of its rank to `W'` in
//! the metric of `x̂`. What `o_proj` and `down_proj` write is added to the residual stream, so they
//! are also asked for the difference of the two streams: the layer's error is mended where it can
//! be.
//!
//! Factors that replace a matrix are fitted alike, with 0 in the place of `W'`.

use super::{
    context::{Context, wide},
    least_squares::target,
    low_rank::LowRank,
    metric::{DAMPING, Metric},
    moments::{GramSums, Pair},
    overlay::Overlay,
    scratch::Scratch,
    staged::StagedRun,
    tie::outer,
};
use crate::{
    ConvertError, Phase, Progress,
    factorize::{Draw, LoraFactors},
    magnitudes::low_rank_product,
    plan::PlannedLora,
};
use rayon::prelude::*;
use retie_checkpoint::{ProbePoint, SafetensorsFile, TensorSource, narrow, widen};
use retie_config::{DepthAssignment, LayerIndex, TensorPart, TensorRole};
use std::collections::BTreeMap;

/// How much of the difference of the residual streams `o_proj` and `down_proj` are asked to mend.
const RESIDUAL: f64 = 1.0;

/// Energies of the corrections, by [`PlannedLora::stream`].
pub(super) type Energies = BTreeMap<u64, LoraFactors>;

/// Activations of one layer of the source, for all rows.
#[derive(Default)]
struct Observed {
    /// Inputs of the linears of each point, `[M, in]`.
    inputs: BTreeMap<ProbePoint, Vec<f32>>,
    /// The residual stream that a point's output is added to, `[M, D]`.
    residual: BTreeMap<ProbePoint, Vec<f32>>,
    /// After the layer.
    hidden: Vec<f32>,
}

/// Fits every correction to the shared weights in `weights`, and writes them to `scratch`. The
/// factors that are given back hold energies only.
///
/// # Errors
/// When something cannot be read or written, or moments are not finite.
pub(super) fn refit(
    context: &Context<'_>,
    weights: &SafetensorsFile,
    scratch: &Scratch,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(SafetensorsFile, Energies), ConvertError> {
    let map = context.plan.map();
    let mut writer = scratch.factors(context.plan)?;
    let mut energies = Energies::new();
    let mut hidden = context.embed(&context.calibration.train)?;
    let mut tied_hidden = hidden.clone();
    let mut at = 0; // the source layer that `hidden` is before
    for step in map.depths() {
        let (depth, from) = (step.depth.0, context.plan.source_layer(step.depth));
        hidden = context.source_hidden(hidden, at, from.0)?;
        at = from.0;
        // A layer that runs twice starts from the same hidden states again.
        let repeated = context.plan.stack.sources().get(depth + 1) == Some(&from.0);
        let is_replaced = context.has_replaced(step.layer);
        if map.is_shared(step.layer) || is_replaced {
            let mut observed = observe(context, from, &hidden)?;
            let mut layer =
                if is_replaced { context.source_layer(step.depth)? } else { tied_layer(context, weights, *step)? };
            let mut run = StagedRun::new(&tied_hidden);
            for point in ProbePoint::ALL {
                for (planned, factors) in refit_point(context, &layer, &mut observed, &mut run, *step, point)? {
                    writer.write(&planned.a.0, &narrow(&factors.a, planned.a.1.dtype))?;
                    writer.write(&planned.b.0, &narrow(&factors.b, planned.b.1.dtype))?;
                    let energy = LoraFactors { a: Vec::new(), b: Vec::new(), ..factors };
                    set_factors(&mut layer, planned, factors);
                    energies.insert(planned.stream, energy);
                }
            }
            tied_hidden = run.finish(context, &layer)?;
            if !repeated {
                (hidden, at) = (observed.hidden, from.0 + 1);
            }
        } else {
            tied_hidden = context.run(context.source_run(from, None), &tied_hidden, &mut |_| {})?;
        }
        let name = format!("model.depths.{depth}");
        progress(Progress { phase: Phase::Refit, done: depth + 1, total: map.num_depths(), tensor: &name });
    }
    Ok((writer.finish()?, energies))
}

fn observe(context: &Context<'_>, layer: LayerIndex, hidden: &[f32]) -> Result<Observed, ConvertError> {
    let mut observed = Observed::default();
    let after = context.run(context.source_run(layer, None), hidden, &mut |seen| {
        observed.inputs.entry(seen.point).or_default().extend_from_slice(seen.inputs);
        if seen.point.writes_residual(&context.plan.config) {
            observed.residual.entry(seen.point).or_default().extend_from_slice(seen.residual);
        }
    })?;
    Ok(Observed { hidden: after, ..observed })
}

/// A depth of the tied model, without corrections.
pub(super) fn tied_layer(
    context: &Context<'_>,
    weights: &SafetensorsFile,
    step: DepthAssignment,
) -> Result<Overlay, ConvertError> {
    let mut layer = context.tied_vectors(step)?;
    for projection in context.all_projections() {
        if let Some(planned) = context.planned(step.layer, projection) {
            let values = weights.read_f32(&planned.name)?;
            layer.set(TensorRole::Projection(projection), TensorPart::Weight, &context.shape(projection), values);
        }
    }
    Ok(layer)
}

/// Puts factors there as they are after rounding to their type; those that replace a matrix as
/// their product.
pub(super) fn set_factors(layer: &mut Overlay, planned: &PlannedLora, factors: LoraFactors) {
    if planned.replaces {
        let [a, b] = [(&factors.a, &planned.a), (&factors.b, &planned.b)]
            .map(|(values, (_, info))| widen(&narrow(values, info.dtype), info.dtype));
        let weight = low_rank_product([&a, &b], planned.shape);
        layer.set(TensorRole::Projection(planned.projection), TensorPart::Weight, &planned.shape, weight);
        return;
    }
    let (a, b) = (TensorRole::LoraA(planned.projection), TensorRole::LoraB(planned.projection));
    for (role, (_, info), values) in [(a, &planned.a, factors.a), (b, &planned.b, factors.b)] {
        let rounded = widen(&narrow(&values, info.dtype), info.dtype);
        layer.set_own(role, &info.shape, rounded);
    }
}

/// Fits the corrections of a point, which `run` is advanced to. What was observed there is dropped.
fn refit_point<'c>(
    context: &Context<'c>,
    layer: &Overlay,
    observed: &mut Observed,
    run: &mut StagedRun<'_>,
    step: DepthAssignment,
    point: ProbePoint,
) -> Result<Vec<(&'c PlannedLora, LoraFactors)>, ConvertError> {
    let planned = context
        .projections(point)
        .into_iter()
        .filter_map(|projection| context.planned(step.layer, projection)?.factors_at(step.depth));
    let planned: Vec<&PlannedLora> = planned.collect();
    if planned.is_empty() {
        return Ok(Vec::new());
    }
    let (mut moments, width) = (GramSums::new(context.input_size(point)), context.plan.config.hidden_size);
    let (inputs, residual) = (observed.inputs.remove(&point), observed.residual.remove(&point));
    let mut row = 0;
    run.advance(context, layer, point, &mut |seen| {
        let rows = seen.residual.len() / width;
        let part = |size: usize| row * size..(row + rows) * size;
        let source = inputs.as_ref().map(|values| &values[part(context.input_size(point))]);
        let residual = residual.as_ref().map(|values| [&values[part(width)], seen.residual]);
        moments.add(Pair { source, tied: seen.inputs, residual });
        row += rows;
    })?;
    drop((inputs, residual));
    let metric = Metric::new(moments.gram(), DAMPING).map_err(|_| ConvertError::BadMoments {
        depth: step.depth.0,
        projection: context.projections(point)[0].name().to_owned(),
    })?;
    let (shift, residual) = (moments.shift(), moments.residual());
    let one = |planned: &'c PlannedLora| {
        let shape = context.shape(planned.projection);
        let mut extra = residual.as_ref().map(|residual| residual * faer::Scale(RESIDUAL));
        if let Some(gap) = context.bias_gap(step, planned.projection)? {
            let bias = outer(&gap, shape[1], moments.mean());
            extra = Some(extra.map_or_else(|| bias.clone(), |extra| &extra + &bias));
        }
        let (source, own) = context.source_weight(step.depth, planned.projection)?;
        let wanted = target(wide(&own, shape), &metric, shift.as_ref(), extra.as_ref());
        let residual = match planned.replaces {
            true => wanted,
            false => &wanted - &wide(layer.weight(planned.projection)?, shape),
        };
        let best = LowRank::from_residual(residual.as_ref(), &metric, planned.rank).map_err(|error| match error {
            ConvertError::NoConvergence { .. } => ConvertError::NoConvergence { tensor: source },
            other => other,
        })?;
        Ok((planned, best.factors(Draw { seed: context.seed, stream: planned.stream })))
    };
    planned.into_par_iter().map(one).collect()
}
