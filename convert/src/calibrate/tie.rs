//! The shared weights, from the source alone: for each tied group the moments of every depth, then
//! weighted least squares.
//!
//! With shared norms a linear of the tied model reads what the shared norm makes of the residual
//! stream, not what the depth's own did; likewise a shared bias. Both are in the target: see
//! [`target`].

use super::{
    context::{Context, row_major, wide},
    least_squares::{Member, ROUNDS, target, tie},
    low_rank::squared_singular_values,
    metric::{DAMPING, Metric},
    moments::{GramSums, Pair},
    scratch::Scratch,
    walk::Streams,
};
use crate::{ConvertError, Phase, Progress, ranks::Spectrum};
use faer::Mat;
use rayon::prelude::*;
use retie_checkpoint::{ProbePoint, SafetensorsFile, narrow};
use retie_config::{Depth, DepthAssignment, LayerIndex, Projection, TensorRole};
use std::collections::BTreeMap;

/// The moments of one depth, a point each.
type DepthGrams = BTreeMap<ProbePoint, GramSums>;

/// A tied group: its depths and what their linears read.
type TiedGroup = Vec<(DepthAssignment, DepthGrams)>;

/// Fits every shared weight and writes it to `scratch`.
///
/// # Errors
/// When the source cannot be read or holds what is not finite, or `scratch` cannot be written.
pub(super) fn tie_layers(
    context: &Context<'_>,
    scratch: &Scratch,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SafetensorsFile, ConvertError> {
    let mut writer = scratch.weights(context.plan)?;
    visit_groups(context, Phase::Tie, progress, &mut |layer, group| {
        for point in ProbePoint::ALL {
            let metrics = Metrics::for_group(context, group, point)?;
            let one = |projection: Projection| {
                let planned = context.planned(layer, projection);
                let rank = |depth| planned.and_then(|planned| planned.factors_at(depth)).map_or(0, |f| f.rank);
                let members = members(context, group, point, projection, &metrics, &rank)?;
                let shared = tie(&members, &metrics.sum, ROUNDS).map_err(metrics.place(context, point))?;
                tracing::debug!(layer = layer.0, projection = projection.name(), "tied");
                Ok(row_major(shared.as_ref()))
            };
            let weights =
                context.projections(point).into_par_iter().map(one).collect::<Result<Vec<_>, ConvertError>>()?;
            for (projection, weight) in context.projections(point).into_iter().zip(weights) {
                let Some(planned) = context.planned(layer, projection) else { continue };
                writer.write(&planned.name, &narrow(&weight, planned.info.dtype))?;
            }
        }
        Ok(())
    })?;
    Ok(writer.finish()?)
}

/// The spectra, in the metric of what is read, of what every depth that may have LoRA loses to the
/// shared weight that is best without any.
///
/// # Errors
/// When the source cannot be read or holds what is not finite.
pub(super) fn spectra(
    context: &Context<'_>,
    may_have_lora: &(dyn Fn(&DepthAssignment) -> bool + Sync),
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Spectrum>, ConvertError> {
    let mut spectra = Vec::new();
    visit_groups(context, Phase::Spread, progress, &mut |_, group| {
        for point in ProbePoint::ALL {
            let metrics = Metrics::for_group(context, group, point)?;
            let one = |projection: Projection| {
                let members = members(context, group, point, projection, &metrics, &|_| 0)?;
                let shared = tie(&members, &metrics.sum, ROUNDS).map_err(metrics.place(context, point))?;
                let spectrum = |((step, _), member): (&(DepthAssignment, DepthGrams), &Member<'_>)| {
                    let residual = &member.target - &shared;
                    let values = squared_singular_values(residual.as_ref(), member.metric)?;
                    Ok(Spectrum { depth: step.depth, projection, values })
                };
                let eligible = group.iter().zip(&members).filter(|((step, _), _)| may_have_lora(step));
                eligible.map(spectrum).collect::<Result<Vec<_>, ConvertError>>().map_err(|error| match error {
                    ConvertError::NoConvergence { .. } => {
                        ConvertError::NoConvergence { tensor: projection.name().to_owned() }
                    }
                    other => other,
                })
            };
            let found =
                context.projections(point).into_par_iter().map(one).collect::<Result<Vec<_>, ConvertError>>()?;
            spectra.extend(found.into_iter().flatten());
        }
        Ok(())
    })?;
    Ok(spectra)
}

/// Runs the source and calls `see` with every layer that is shared and its group.
fn visit_groups(
    context: &Context<'_>,
    phase: Phase,
    progress: &mut dyn FnMut(Progress<'_>),
    see: &mut dyn FnMut(LayerIndex, &TiedGroup) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let map = context.plan.map();
    let mut streams = Streams::start(context)?;
    for layer in (0..map.num_layers()).map(LayerIndex) {
        let mut group = TiedGroup::new();
        for depth in map.depths_of(layer) {
            let (step, from) = (map.depths()[depth.0], context.plan.source_layer(depth));
            let hidden = streams.take(from);
            if map.is_shared(layer) {
                let (moments, hidden) = observe(context, step, &hidden)?;
                streams.put(context, from, hidden)?;
                group.push((step, moments));
            } else if streams.goes_on(from) {
                let hidden = context.source_hidden(hidden, from.0, from.0 + 1)?;
                streams.put(context, from, hidden)?;
            }
        }
        if !group.is_empty() {
            see(layer, &group)?;
        }
        let name = format!("model.layers.{layer}");
        progress(Progress { phase, done: layer.0 + 1, total: map.num_layers(), tensor: &name });
    }
    Ok(())
}

/// Runs the source layer that a depth stands for; gives the moments of what the tied model's
/// linears would read there, and the hidden states after it.
fn observe(
    context: &Context<'_>,
    step: DepthAssignment,
    hidden: &[f32],
) -> Result<(DepthGrams, Vec<f32>), ConvertError> {
    let mut moments: DepthGrams =
        ProbePoint::ALL.into_iter().map(|point| (point, GramSums::new(context.input_size(point)))).collect();
    let has_other_norm = |point: ProbePoint| context.shares_vectors() && point.norm(&context.plan.config).is_some();
    let mut kept: BTreeMap<ProbePoint, Vec<f32>> = BTreeMap::new();
    let after = context.run(context.source_run(context.plan.source_layer(step.depth), None), hidden, &mut |seen| {
        if has_other_norm(seen.point) {
            kept.entry(seen.point).or_default().extend_from_slice(seen.inputs);
        } else if let Some(moments) = moments.get_mut(&seen.point) {
            moments.add(Pair { source: None, tied: seen.inputs, residual: None });
        }
    })?;
    for (point, inputs) in &kept {
        let config = &context.plan.config;
        let (Some(norm), Some(moments)) = (point.norm(config), moments.get_mut(point)) else { continue };
        let mut layer = context.source_layer(step.depth)?;
        let is_norm = |(role, _, _): &(TensorRole, _, _)| *role == TensorRole::Norm(norm);
        for (role, part, size) in config.layer_vectors().into_iter().filter(is_norm) {
            layer.set(role, part, &[size], context.tied_vector(step, role, part)?);
        }
        let mut from = 0;
        context.run(layer.run(Some(*point)), hidden, &mut |seen| {
            if seen.point == *point {
                let to = from + seen.inputs.len();
                moments.add(Pair { source: Some(&inputs[from..to]), tied: seen.inputs, residual: None });
                from = to;
            }
        })?;
    }
    Ok((moments, after))
}

/// Metrics of the inputs of a point at each depth of a group.
struct Metrics {
    each: Vec<Metric>,
    sum: Metric,
    /// The first depth of the group.
    first: usize,
}

impl Metrics {
    fn for_group(context: &Context<'_>, group: &TiedGroup, point: ProbePoint) -> Result<Self, ConvertError> {
        let metric = |(step, moments): &(DepthAssignment, DepthGrams)| {
            Metric::new(moments[&point].gram(), DAMPING).map_err(place(context, point, step.depth.0))
        };
        let each: Vec<Metric> = group.par_iter().map(metric).collect::<Result<_, _>>()?;
        let first = group[0].0.depth.0;
        let sum = Metric::sum(&each.iter().collect::<Vec<_>>()).map_err(place(context, point, first))?;
        Ok(Self { each, sum, first })
    }

    fn place(&self, context: &Context<'_>, point: ProbePoint) -> impl Fn(ConvertError) -> ConvertError {
        place(context, point, self.first)
    }
}

/// Says where moments are not finite.
fn place(context: &Context<'_>, point: ProbePoint, depth: usize) -> impl Fn(ConvertError) -> ConvertError + use<> {
    let projection = context.projections(point)[0];
    move |error| match error {
        ConvertError::BadMoments { .. } => ConvertError::BadMoments { depth, projection: projection.name().to_owned() },
        other => other,
    }
}

/// What each depth of a group wants of a projection, next to a correction of the rank that `rank`
/// gives it.
fn members<'m>(
    context: &Context<'_>,
    group: &TiedGroup,
    point: ProbePoint,
    projection: Projection,
    metrics: &'m Metrics,
    rank: &dyn Fn(Depth) -> usize,
) -> Result<Vec<Member<'m>>, ConvertError> {
    let shape = context.shape(projection);
    let weights = group.iter().map(|(step, _)| context.source_weight(step.depth, projection));
    let weights = finite(context, weights.collect::<Result<_, _>>()?)?;
    let mut members = Vec::new();
    for (((step, moments), metric), weight) in group.iter().zip(&metrics.each).zip(weights) {
        let moments = &moments[&point];
        let bias = context.bias_gap(*step, projection)?.map(|gap| outer(&gap, shape[1], moments.mean()));
        let target = target(wide(&weight, shape), metric, moments.shift().as_ref(), bias.as_ref());
        members.push(Member { target, metric, rank: rank(step.depth) });
    }
    Ok(members)
}

/// `e mᵀ`: how a constant of the output shows in `E[e xᵀ]`.
pub(super) fn outer(constant: &[f32], size: usize, mean: impl Fn(usize) -> f64) -> Mat<f64> {
    Mat::from_fn(constant.len(), size, |i, j| f64::from(constant[i]) * mean(j))
}

/// The values, if every one is a number.
fn finite(context: &Context<'_>, named: Vec<(String, Vec<f32>)>) -> Result<Vec<Vec<f32>>, ConvertError> {
    let (good, bad): (Vec<_>, Vec<_>) = named.into_iter().partition(|(_, values)| values.iter().all(|x| x.is_finite()));
    if bad.is_empty() {
        return Ok(good.into_iter().map(|(_, values)| values).collect());
    }
    let place = |name: String| {
        let path = context.source.path_of(&name).to_owned();
        (name, path)
    };
    Err(ConvertError::NotFinite { tensors: bad.into_iter().map(|(name, _)| place(name)).collect() })
}
