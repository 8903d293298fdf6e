//! The corrections of each depth, with error feedback: source and tied model run side by side, depth after depth, and every correction is
//! fitted to what the tied model really reads there, after all that was fitted before it.
//!
//! Within a depth the sites follow one another (`q`, `k`, `v`; `o`; `gate`, `up`; `down`). At each, with `x` of the source and `x̂` of the
//! tied model, [`target`] gives the weight that answers `x̂` as the source answers `x`; `B_d A_d` is the best correction of its rank to
//! `W'` in the metric of `x̂`. What `o_proj` and `down_proj` write is added to the residual stream, so they are also asked for
//! the difference of the two streams: the layer's error is mended where it can be.

use super::{
    DAMPING, RESIDUAL,
    context::{Context, wide},
    layers::Site,
    least_squares::target,
    low_rank::LowRank,
    metric::Metric,
    moments::{Moments, Pair},
    overlay::Overlay,
    scratch::Scratch,
    tie::outer,
};
use crate::{
    ConvertError, Progress, Stage,
    factorize::{Draw, Factors},
    plan::PlannedFactors,
};
use rayon::prelude::*;
use retie_checkpoint::{SafetensorsFile, TensorSource, layer_tensor, narrow, widen};
use retie_config::{DepthPlan, LayerIndex};
use std::collections::BTreeMap;

/// Energies of the corrections, by [`PlannedFactors::stream`].
pub(super) type Energies = BTreeMap<u64, Factors>;

/// What one layer of the source does, for all rows.
#[derive(Default)]
struct Observed {
    /// What the linears of each site read, `[M, in]`.
    inputs: BTreeMap<Site, Vec<f32>>,
    /// The residual stream that a site's output is added to, `[M, D]`.
    residual: BTreeMap<Site, Vec<f32>>,
    /// After the layer.
    hidden: Vec<f32>,
}

/// Fits every correction to the shared weights in `weights`, and writes them to `scratch`. The factors that are given back hold
/// energies only.
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
    let mut hidden = context.embed(&context.calibration.fit)?;
    let mut tied_hidden = hidden.clone();
    let mut at = 0; // the source layer that `hidden` is before
    for step in map.depths() {
        let (depth, from) = (step.depth.0, context.plan.source_layer(step.depth));
        hidden = context.source_hidden(hidden, at, from.0)?;
        at = from.0;
        // A layer that runs twice starts from the same hidden states again.
        let repeated = context.plan.stack.sources().get(depth + 1) == Some(&from.0);
        if map.is_shared(step.layer) {
            let observed = observe(context, from, &hidden)?;
            let mut layer = tied_layer(context, weights, *step)?;
            for site in Site::ALL {
                for (planned, factors) in refit_site(context, &layer, &observed, &tied_hidden, *step, site)? {
                    writer.write(&planned.a.0, &narrow(&factors.a, planned.a.1.dtype))?;
                    writer.write(&planned.b.0, &narrow(&factors.b, planned.b.1.dtype))?;
                    let energy = Factors { a: Vec::new(), b: Vec::new(), ..factors };
                    set_factors(&mut layer, context.projection(planned.projection).0, planned, factors);
                    energies.insert(planned.stream(), energy);
                }
            }
            tied_hidden = context.run(layer.run(None), &tied_hidden, &mut |_| {})?;
            if !repeated {
                (hidden, at) = (observed.hidden, from.0 + 1);
            }
        } else {
            tied_hidden = context.run(context.source_run(from, None), &tied_hidden, &mut |_| {})?;
        }
        let name = format!("model.depths.{depth}");
        progress(Progress { stage: Stage::Refit, done: depth + 1, total: map.num_depths(), tensor: &name });
    }
    Ok((writer.finish()?, energies))
}

fn observe(context: &Context<'_>, layer: LayerIndex, hidden: &[f32]) -> Result<Observed, ConvertError> {
    let mut observed = Observed::default();
    let after = context.run(context.source_run(layer, None), hidden, &mut |seen| {
        observed.inputs.entry(seen.site).or_default().extend_from_slice(seen.inputs);
        if seen.site.writes_residual(&context.plan.config) {
            observed.residual.entry(seen.site).or_default().extend_from_slice(seen.residual);
        }
    })?;
    Ok(Observed { hidden: after, ..observed })
}

/// A depth of the tied model, without corrections.
pub(super) fn tied_layer(
    context: &Context<'_>,
    weights: &SafetensorsFile,
    step: DepthPlan,
) -> Result<Overlay, ConvertError> {
    let mut layer = context.tied_vectors(step)?;
    for projection in 0..context.num_projections() {
        let (name, shape) = context.projection(projection);
        if let Some(planned) = context.planned(step.layer, projection) {
            layer.set(&format!("{name}.weight"), &shape, weights.read_f32(&planned.name)?);
        }
    }
    Ok(layer)
}

/// Puts factors there as they are after rounding to their type.
pub(super) fn set_factors(layer: &mut Overlay, name: &str, planned: &PlannedFactors, factors: Factors) {
    for (which, (_, info), values) in [("lora_A", &planned.a, factors.a), ("lora_B", &planned.b, factors.b)] {
        let rounded = widen(&narrow(&values, info.dtype), info.dtype);
        layer.set_own(&format!("{name}.{which}.weight"), &info.shape, rounded);
    }
}

/// Fits the corrections of a site.
fn refit_site<'c>(
    context: &Context<'c>,
    layer: &Overlay,
    observed: &Observed,
    tied_hidden: &[f32],
    step: DepthPlan,
    site: Site,
) -> Result<Vec<(&'c PlannedFactors, Factors)>, ConvertError> {
    let planned = context
        .projections(site)
        .filter_map(|projection| context.planned(step.layer, projection)?.factors_at(step.depth));
    let planned: Vec<&PlannedFactors> = planned.collect();
    if planned.is_empty() {
        return Ok(Vec::new());
    }
    let (mut moments, width) = (Moments::new(context.input_size(site)), context.plan.config.hidden_size);
    let mut row = 0;
    context.run(layer.run(Some(site)), tied_hidden, &mut |seen| {
        if seen.site != site {
            return;
        }
        let rows = seen.residual.len() / width;
        let part = |size: usize| row * size..(row + rows) * size;
        let source = observed.inputs.get(&site).map(|values| &values[part(context.input_size(site))]);
        let residual = observed.residual.get(&site).map(|values| [&values[part(width)], seen.residual]);
        moments.add(Pair { source, tied: seen.inputs, residual });
        row += rows;
    })?;
    let metric = Metric::new(moments.gram(), DAMPING).map_err(|_| ConvertError::BadMoments {
        depth: step.depth.0,
        projection: context.projection(context.projections(site).start).0.to_owned(),
    })?;
    let (shift, residual) = (moments.shift(), moments.residual());
    let one = |planned: &'c PlannedFactors| {
        let (name, shape) = context.projection(planned.projection);
        let mut extra = residual.as_ref().map(|residual| residual * faer::Scale(RESIDUAL));
        if let Some(gap) = context.bias_gap(step, planned.projection)? {
            let bias = outer(&gap, shape[1], moments.mean());
            extra = Some(extra.map_or_else(|| bias.clone(), |extra| &extra + &bias));
        }
        let (source, own) = context.source_weight(step.depth, planned.projection)?;
        let wanted = target(wide(&own, shape), &metric, shift.as_ref(), extra.as_ref());
        let shared = layer.read_f32(&layer_tensor(LayerIndex(0), &format!("{name}.weight")))?;
        let residual = &wanted - &wide(&shared, shape);
        let best = LowRank::of(residual.as_ref(), &metric, planned.rank).map_err(|error| match error {
            ConvertError::NoConvergence { .. } => ConvertError::NoConvergence { tensor: source },
            other => other,
        })?;
        Ok((planned, best.factors(Draw { seed: context.seed, stream: planned.stream() })))
    };
    planned.into_par_iter().map(one).collect()
}
