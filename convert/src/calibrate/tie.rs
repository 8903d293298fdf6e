//! The shared weights, from the source alone: for each tied group the moments of every depth, then weighted least squares.
//!
//! With shared norms a linear of the tied model reads what the shared norm makes of the residual stream, not what the depth's own
//! did; likewise a shared bias. Both are in the target: see [`target`].

use super::{
    DAMPING, ROUNDS,
    context::{Context, row_major, wide},
    layers::Site,
    least_squares::{Member, target, tie},
    metric::Metric,
    moments::{Moments, Pair},
    scratch::Scratch,
    walk::Streams,
};
use crate::{ConvertError, Progress, Stage};
use faer::Mat;
use rayon::prelude::*;
use retie_checkpoint::{SafetensorsFile, narrow};
use retie_config::{DepthPlan, LayerIndex, ModelConfig};
use std::collections::BTreeMap;

/// The moments of one depth, a site each.
type DepthMoments = BTreeMap<Site, Moments>;

/// Fits every shared weight and writes it to `scratch`.
///
/// # Errors
/// When the source cannot be read or holds what is not finite, or `scratch` cannot be written.
pub(super) fn tie_layers(
    context: &Context<'_>,
    scratch: &Scratch,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SafetensorsFile, ConvertError> {
    let map = context.plan.map();
    let mut writer = scratch.weights(context.plan)?;
    let mut streams = Streams::start(context)?;
    for layer in (0..map.num_layers()).map(LayerIndex) {
        let mut group: Vec<(DepthPlan, DepthMoments)> = Vec::new();
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
        for site in Site::ALL.into_iter().filter(|_| map.is_shared(layer)) {
            for (projection, weight) in site.projections().zip(tie_site(context, &group, site)?) {
                let Some(planned) = context.planned(layer, projection) else { continue };
                writer.write(&planned.name, &narrow(&weight, planned.info.dtype))?;
            }
        }
        let name = format!("model.layers.{layer}");
        progress(Progress { stage: Stage::Tie, done: layer.0 + 1, total: map.num_layers(), tensor: &name });
    }
    Ok(writer.finish()?)
}

/// Runs the source layer that a depth stands for; gives the moments of what the tied model's linears would read there, and the hidden states after it.
fn observe(context: &Context<'_>, step: DepthPlan, hidden: &[f32]) -> Result<(DepthMoments, Vec<f32>), ConvertError> {
    let mut moments: DepthMoments =
        Site::ALL.into_iter().map(|site| (site, Moments::new(context.input_size(site)))).collect();
    let has_other_norm = |site: Site| context.shares_vectors() && site.norm().is_some();
    let mut kept: BTreeMap<Site, Vec<f32>> = BTreeMap::new();
    let after = context.run(context.source_run(context.plan.source_layer(step.depth), None), hidden, &mut |seen| {
        if has_other_norm(seen.site) {
            kept.entry(seen.site).or_default().extend_from_slice(seen.inputs);
        } else if let Some(moments) = moments.get_mut(&seen.site) {
            moments.add(Pair { source: None, tied: seen.inputs, residual: None });
        }
    })?;
    for (site, inputs) in &kept {
        let (Some(norm), Some(moments)) = (site.norm(), moments.get_mut(site)) else { continue };
        let mut layer = context.source_layer(step.depth)?;
        let part = format!("{norm}.weight");
        layer.set(&part, &[context.plan.config.hidden_size], context.tied_vector(step, &part)?);
        let mut from = 0;
        context.run(layer.run(Some(*site)), hidden, &mut |seen| {
            if seen.site == *site {
                let to = from + seen.inputs.len();
                moments.add(Pair { source: Some(&inputs[from..to]), tied: seen.inputs, residual: None });
                from = to;
            }
        })?;
    }
    Ok((moments, after))
}

/// The shared weights of the projections of a site, row-major.
fn tie_site(
    context: &Context<'_>,
    group: &[(DepthPlan, DepthMoments)],
    site: Site,
) -> Result<Vec<Vec<f32>>, ConvertError> {
    let name = |projection: usize| ModelConfig::PROJECTIONS[projection].to_owned();
    let at = |step: &DepthPlan| {
        let (depth, projection) = (step.depth.0, name(site.projections().start));
        move |error| match error {
            ConvertError::BadMoments { .. } => ConvertError::BadMoments { depth, projection },
            other => other,
        }
    };
    let metrics: Vec<Metric> = group
        .par_iter()
        .map(|(step, moments)| Metric::new(moments[&site].gram(), DAMPING).map_err(at(step)))
        .collect::<Result<_, _>>()?;
    let sum = Metric::sum(&metrics.iter().collect::<Vec<_>>()).map_err(at(&group[0].0))?;
    let one = |projection: usize| {
        let shape = context.projection(projection).1;
        let weights = group.iter().map(|(step, _)| context.source_weight(step.depth, projection));
        let weights = finite(context, weights.collect::<Result<_, _>>()?)?;
        let mut members = Vec::new();
        for (((step, moments), metric), weight) in group.iter().zip(&metrics).zip(weights) {
            let moments = &moments[&site];
            let bias = context.bias_gap(*step, projection)?.map(|gap| outer(&gap, shape[1], moments.mean()));
            let target = target(wide(&weight, shape), metric, moments.shift().as_ref(), bias.as_ref());
            members.push(Member { target, metric });
        }
        let rank = context.plan.config.recursion.as_ref().and_then(|r| r.lora);
        let rank = rank.map(|lora| lora.rank_for(shape[0], shape[1]));
        let shared = tie(&members, &sum, rank, ROUNDS).map_err(at(&group[0].0))?;
        tracing::debug!(layer = group[0].0.layer.0, projection = name(projection), "tied");
        Ok(row_major(shared.as_ref()))
    };
    site.projections().into_par_iter().map(one).collect()
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
