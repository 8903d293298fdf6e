//! A start by measurement: shared weights and corrections fitted, in closed form, to what the
//! source computes on a text.
//!
//! What a layer does depends on what it reads. The mean over a tied group and the plain SVD of what
//! it loses take every direction of a linear's input for equally important; a text shows which ones
//! are. From the second moments `C_d = E[x xᵀ]` of what each linear reads at each depth `d`:
//!
//! 1. `tie`: the shared weight `W'` and, where there is a LoRA, corrections `B_d A_d` that minimise
//!    `Σ_d ‖W_d − W' − B_d A_d‖²_{C_d}`, the squared error of the outputs, by alternating weighted
//!    least squares (`least_squares`) and truncated SVDs in the metric of `C_d` (`low_rank`, as
//!    SVD-LLM, <https://arxiv.org/abs/2403.07378>).
//! 2. `refit`: with `W'` fixed, the corrections again, depth after depth, to what the tied model
//!    really reads.
//! 3. `effect`: NLL and KL to the source on tokens that the fit did not see.
//!
//! `compensate` fits kept layers to what removed layers computed, for a selection. Pairs of factors
//! that replace matrices have their ranks from `felt`, and are fitted as corrections of nothing by
//! `refit`.
//!
//! # Memory
//! Beside what the conversion itself holds, one of these at a time: the embedding table while
//! tokens are looked up; hidden states of the calibration's `M` tokens (`R` copies while a `cycle`
//! is tied, two in the refit); the moments of one tied group (`8 n²` bytes for each of its depths
//! and each of the four inputs of width `n`, twice that where norms are shared) and of the point
//! that is fitted its metrics and targets in f64; in the refit the moments of one point, what all
//! linears of one depth of the source read from that point on (`4 M (2D + N H + F)` bytes, and `8 M
//! D` of the residual stream) and what those of the tied model read at the point (`4 M F` at most;
//! the same in `compensate`); one layer of the source and of the tied model; the head and the
//! logits of a few hundred tokens. What is fitted waits on the disk.
//!
//! Each depth of either model runs once in a pass (`staged`): where it is fitted, from point to
//! point.
//!
//! # Numerics
//! The model runs in f32; moments are summed in f64 of sums in f32 over blocks of rows (`moments`);
//! everything after is f64, and rounded once to the stored type. Shared weights are rounded before
//! the corrections are fitted to them.

mod calibration;
mod compensate;
mod context;
mod effect;
mod felt;
mod least_squares;
mod low_rank;
mod metric;
mod moments;
mod overlay;
mod refit;
mod scratch;
mod staged;
#[cfg(test)]
mod testing;
mod tie;
mod walk;

pub use calibration::Calibration;
pub use effect::Effect;
pub(crate) use effect::SourceStates;
pub(crate) use overlay::Overlay;
pub(crate) use scratch::Scratch;

use crate::{
    ConvertError, Progress,
    factorize::LoraFactors,
    plan::{ConversionPlan, PlannedLora},
    ranks::Spectrum,
};
use context::Context;
use effect::Effects;
use refit::{Energies, refit};
use retie_checkpoint::{SafetensorsFile, TensorSource};
use retie_config::{LoraSpec, Projection};
use tie::tie_layers;

/// Fitted weights and corrections, on the disk until they are written.
pub(crate) struct Fitted<'a> {
    context: Context<'a>,
    pub weights: SafetensorsFile,
    pub factors: Option<SafetensorsFile>,
    energies: Energies,
}

/// Where sharing loses what, in the metric of what linears read: see [`tie::spectra`].
///
/// # Errors
/// When something cannot be read, or is not finite.
pub(crate) fn calibrated_spectra(
    source: &dyn TensorSource,
    plan: &ConversionPlan,
    lora: &LoraSpec,
    calibration: &Calibration<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Spectrum>, ConvertError> {
    // Nothing is drawn, so the seed is of no consequence.
    let context = Context::new(source, plan, calibration, 0);
    tie::spectra(&context, &|step| lora.is_at(plan.map(), step), progress)
}

/// The spectra of every linear of the source, weighed by what the loss feels: see
/// [`felt::spectra`].
///
/// # Errors
/// When something cannot be read, or is not finite.
pub(crate) fn felt_spectra(
    source: &dyn TensorSource,
    plan: &ConversionPlan,
    even: &(dyn Fn(Projection) -> usize + Sync),
    calibration: &Calibration<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Spectrum>, ConvertError> {
    felt::spectra(&Context::new(source, plan, calibration, 0), even, progress)
}

/// Fits everything that `plan` marks as fitted.
///
/// # Errors
/// When something cannot be read or written, or is not finite.
pub(crate) fn calibrate<'a>(
    source: &'a dyn TensorSource,
    plan: &'a ConversionPlan,
    calibration: &'a Calibration<'a>,
    seed: u64,
    scratch: &Scratch,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Fitted<'a>, ConvertError> {
    let context = Context::new(source, plan, calibration, seed);
    let weights = match plan.has_replaced() {
        true => scratch.weights(plan)?.finish()?, // factors alone
        false => tie_layers(&context, scratch, progress)?,
    };
    let has_lora = plan.tensors.iter().any(|tensor| !tensor.factors.is_empty());
    let (factors, energies) = match has_lora {
        true => {
            let (file, energies) = refit(&context, &weights, scratch, progress)?;
            (Some(file), energies)
        }
        false => (None, Energies::new()),
    };
    Ok(Fitted { context, weights, factors, energies })
}

/// Fits everything that `plan` marks as fitted, of a selection of layers.
///
/// # Errors
/// As [`calibrate`].
pub(crate) fn compensate<'a>(
    source: &'a dyn TensorSource,
    plan: &'a ConversionPlan,
    calibration: &'a Calibration<'a>,
    seed: u64,
    scratch: &Scratch,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Fitted<'a>, ConvertError> {
    let context = Context::new(source, plan, calibration, seed);
    let (weights, loops) = compensate::compensate(&context, scratch, progress)?;
    let (factors, energies) = loops.unzip();
    Ok(Fitted { context, weights, factors, energies: energies.unwrap_or_default() })
}

impl Fitted<'_> {
    /// Energies in the metric of the moments, without values.
    pub fn energy(&self, planned: &PlannedLora) -> Option<&LoraFactors> {
        self.energies.get(&planned.stream)
    }

    /// Scores of what was fitted, before it is written.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn score(&self, states: &SourceStates) -> Result<Effect, ConvertError> {
        Effects::new(&self.context, states).fitted(&self.weights, self.factors.as_ref())
    }

    /// Scores of the plain start with the same ranks.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn average(
        &self,
        states: &SourceStates,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Effect, ConvertError> {
        Effects::new(&self.context, states).plain(progress)
    }
}
