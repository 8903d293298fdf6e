//! Spectra of whole linears, each weighed by what the loss feels of it: how ranks are chosen where
//! pairs of factors replace matrices.
//!
//! A matrix `W` cut to rank `r` in the metric `C` of what it reads loses the energy `Σ_{i>r} σ_i²`
//! of its output, the best that any rank `r` can do. The same energy means more in some linears
//! than in others, so each is cut alone, to the rank of an even spread, and the KL to the source is
//! measured on a part of the text. For small errors the KL is proportional to the energy; the
//! factor between the two makes spectra of different linears comparable.

use super::{
    context::{Context, row_major, wide},
    low_rank::{LowRank, squared_singular_values},
    metric::{DAMPING, Metric},
    moments::{GramSums, Pair},
};
use crate::{ConvertError, Phase, Progress, ranks::Spectrum};
use rayon::prelude::*;
use retie_checkpoint::ProbePoint;
use retie_config::{Depth, LayerIndex, Projection, TensorPart, TensorRole};
use std::collections::BTreeMap;

/// Most tokens that moments are taken over.
const OBSERVED: usize = 16_384;

/// Most tokens that the KL is measured on; one row in [`SCORED`] is scored, as the head costs as
/// much as several layers.
const MEASURED: usize = 1024;

/// See [`MEASURED`].
const SCORED: usize = 4;

/// Least KL in place of one that rounding makes zero or negative, so that no linear counts for
/// nothing.
const LEAST_KL: f64 = 1e-6;

/// The spectra of every linear of the source, in nats of KL. `even` is the rank that each is cut to
/// for its measurement.
///
/// # Errors
/// When the source cannot be read or is not finite on the text.
pub(super) fn spectra(
    context: &Context<'_>,
    even: &(dyn Fn(Projection) -> usize + Sync),
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Spectrum>, ConvertError> {
    let total = context.plan.stack.num_source_layers();
    let mut hidden = context.embed(&spread(context, OBSERVED))?;
    let probe = Probe::start(context)?;
    let mut before = probe.embedded.clone();
    let mut spectra = Vec::new();
    for layer in (0..total).map(LayerIndex) {
        let mut sums: BTreeMap<ProbePoint, GramSums> =
            ProbePoint::ALL.into_iter().map(|point| (point, GramSums::new(context.input_size(point)))).collect();
        hidden = context.run(context.source_run(layer, None), &hidden, &mut |seen| {
            if let Some(sums) = sums.get_mut(&seen.point) {
                sums.add(Pair { source: None, tied: seen.inputs, residual: None });
            }
        })?;
        let bad = |projection: Projection| {
            move |_| ConvertError::BadMoments { depth: layer.0, projection: projection.name().to_owned() }
        };
        let metric = |(point, sums): (&ProbePoint, &GramSums)| {
            let metric = Metric::new(sums.gram(), DAMPING).map_err(bad(context.projections(*point)[0]))?;
            Ok((*point, metric))
        };
        let metrics: BTreeMap<ProbePoint, Metric> = sums.par_iter().map(metric).collect::<Result<_, ConvertError>>()?;
        let cut = |projection: &Projection| {
            let (source, weight) = context.source_weight(Depth(layer.0), *projection)?;
            let named = |error| match error {
                ConvertError::NoConvergence { .. } => ConvertError::NoConvergence { tensor: source.clone() },
                other => other,
            };
            let weight = wide(&weight, context.shape(*projection));
            let metric = &metrics[&ProbePoint::read_by(*projection)];
            let values = squared_singular_values(weight.as_ref(), metric).map_err(named)?;
            let cut = LowRank::from_residual(weight.as_ref(), metric, even(*projection)).map_err(named)?;
            Ok((*projection, values, row_major(cut.product().as_ref())))
        };
        let cuts: Vec<_> = context.all_projections().par_iter().map(cut).collect::<Result<_, ConvertError>>()?;
        for (projection, values, weight) in cuts {
            let kl = probe.kl_with(context, layer, (projection, weight), &before)?;
            let lost: f64 = values[even(projection)..].iter().sum();
            let felt = if lost > 0.0 { kl.max(LEAST_KL) / lost } else { 0.0 };
            tracing::debug!(layer = layer.0, projection = projection.name(), kl, felt, "cut alone");
            let values = values.into_iter().map(|value| felt * value).collect();
            spectra.push(Spectrum { depth: Depth(layer.0), projection, values });
        }
        before = context.run(context.source_run(layer, None), &before, &mut |_| {})?;
        let name = format!("model.layers.{layer}");
        progress(Progress { phase: Phase::Spread, done: layer.0 + 1, total, tensor: &name });
    }
    Ok(spectra)
}

/// Sequences from all over the calibration's tokens, `most` tokens of them or one sequence.
fn spread(context: &Context<'_>, most: usize) -> Vec<u32> {
    let (length, train) = (context.calibration.sequence_length, &context.calibration.train);
    let available = train.len() / length;
    let rows = (most / length).clamp(1, available.max(1));
    (0..rows).flat_map(|row| &train[row * available / rows * length..][..length]).copied().collect()
}

/// What the KL is measured on.
struct Probe {
    /// Hidden states before the first layer, `[M, D]`.
    embedded: Vec<f32>,
    /// Scored rows of the source after its last layer, and their next tokens.
    reference: Vec<f32>,
    targets: Vec<u32>,
}

impl Probe {
    fn start(context: &Context<'_>) -> Result<Self, ConvertError> {
        let ids = spread(context, MEASURED);
        let embedded = context.embed(&ids)?;
        let last = context.source_hidden(embedded.clone(), 0, context.plan.stack.num_source_layers())?;
        let targets = (0..ids.len()).filter(|row| is_scored(context, *row)).map(|row| ids[row + 1]).collect();
        Ok(Self { embedded, reference: scored_rows(context, &last), targets })
    }

    /// KL to the source with one weight of a layer replaced; `hidden` is before that layer.
    fn kl_with(
        &self,
        context: &Context<'_>,
        layer: LayerIndex,
        (projection, weight): (Projection, Vec<f32>),
        hidden: &[f32],
    ) -> Result<f64, ConvertError> {
        let mut changed = context.source_layer(Depth(layer.0))?;
        let role = TensorRole::Projection(projection);
        changed.set(role, TensorPart::Weight, &context.shape(projection), weight);
        let after = context.run(changed.run(None), hidden, &mut |_| {})?;
        let last = context.source_hidden(after, layer.0 + 1, context.plan.stack.num_source_layers())?;
        let found = scored_rows(context, &last);
        let scores = context.calibration.model.compare(context.source, [&self.reference, &found], &self.targets)?;
        // What is not finite is worse than anything.
        Ok(if scores.kl.is_finite() { scores.kl } else { f64::MAX.sqrt() })
    }
}

fn is_scored(context: &Context<'_>, row: usize) -> bool {
    let length = context.calibration.sequence_length;
    row % length < length - 1 && row.is_multiple_of(SCORED)
}

fn scored_rows(context: &Context<'_>, hidden: &[f32]) -> Vec<f32> {
    let rows = hidden.chunks(context.plan.config.hidden_size).enumerate();
    rows.filter(|(row, _)| is_scored(context, *row)).flat_map(|(_, row)| row).copied().collect()
}
