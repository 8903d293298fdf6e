//! A start by measurement: shared weights and corrections fitted, in closed form, to what the source computes on a text.
//!
//! What a layer does depends on what it reads. The mean over a tied group and the plain SVD of what it loses take every direction of a
//! linear's input for equally important; a text shows which ones are. From the second moments `C_d = E[x xᵀ]` of what each linear
//! reads at each depth `d`:
//!
//! 1. `tie`: the shared weight `W'` and, where there is a LoRA, corrections `B_d A_d` that minimise
//!    `Σ_d ‖W_d − W' − B_d A_d‖²_{C_d}`, the squared error of the outputs, by alternating weighted least squares
//!    (`least_squares`) and truncated SVDs in the metric of `C_d` (`low_rank`, as SVD-LLM, <https://arxiv.org/abs/2403.07378>).
//! 2. `refit`: with `W'` fixed, the corrections again, depth after depth, to what the tied model really reads.
//! 3. `effect`: NLL and KL to the source on tokens that the fit did not see.
//!
//! # Memory
//! Beside what the conversion itself holds, one of these at a time: the embedding table while tokens are looked up; hidden states of the
//! calibration's `M` tokens (`R` copies while a `cycle` is tied, two in the refit); the moments of one tied group (`8 n²` bytes for
//! each of its depths and each of the four inputs of width `n`, twice that where norms are shared) and of the site that is
//! fitted its metrics and targets in f64; in the refit the moments of one site and what all linears of one depth of the source read
//! (`4 M (2D + N H + F)` bytes, and `8 M D` of the residual stream); one layer of the source and of the tied model; the head
//! and the logits of a few hundred tokens. What is fitted waits on the disk.
//!
//! # Numerics
//! The model runs in f32; moments are summed in f64 of sums in f32 over blocks of rows (`moments`); everything after is f64, and
//! rounded once to the stored type. Shared weights are rounded before the corrections are fitted to them.

mod context;
mod effect;
mod layers;
mod least_squares;
mod low_rank;
mod metric;
mod moments;
mod overlay;
mod refit;
mod scratch;
#[cfg(test)]
mod testing;
mod tie;
mod walk;

pub use effect::Effect;
pub(crate) use effect::SourceStates;
pub use layers::{Comparison, LayerModel, LayerRun, Seen, Site};
pub(crate) use scratch::Scratch;

use crate::{
    ConvertError, ConvertOptions, Progress,
    factorize::Factors,
    plan::{Plan, PlannedFactors},
    ranks::Spectrum,
};
use context::Context;
use effect::Effects;
use refit::{Energies, refit};
use retie_checkpoint::{SafetensorsFile, TensorSource};
use tie::tie_layers;

/// Part of the mean of a moment's diagonal that is added to the diagonal: see [`metric`].
const DAMPING: f64 = 0.01;

/// Rounds of the alternation in [`least_squares`]; the objective falls little after them.
const ROUNDS: usize = 6;

/// How much of the difference of the residual streams `o_proj` and `down_proj` are asked to mend.
const RESIDUAL: f64 = 1.0;

/// A text as tokens, and the model that runs on it.
#[derive(Clone)]
pub struct Calibration<'a> {
    /// Runs layers of the source's architecture.
    pub model: &'a dyn LayerModel,
    /// Name of the text, for the report.
    pub text: String,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Sequences that are fitted to, one after the other; ids of the source's vocabulary.
    pub fit: Vec<u32>,
    /// Sequences that only measure the result.
    pub heldout: Vec<u32>,
}

/// What was fitted, until it is written.
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
    plan: &Plan,
    options: &ConvertOptions,
    calibration: &Calibration<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Spectrum>, ConvertError> {
    let context = Context::new(source, plan, calibration, options.seed);
    tie::spectra(&context, &|step| options.may_have_lora(plan.map(), step), progress)
}

/// Fits everything that `plan` marks as fitted.
///
/// # Errors
/// When something cannot be read or written, or is not finite.
pub(crate) fn calibrate<'a>(
    source: &'a dyn TensorSource,
    plan: &'a Plan,
    calibration: &'a Calibration<'a>,
    seed: u64,
    scratch: &Scratch,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Fitted<'a>, ConvertError> {
    let context = Context::new(source, plan, calibration, seed);
    let weights = tie_layers(&context, scratch, progress)?;
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

impl Fitted<'_> {
    /// Energies in the metric of the moments, without values.
    pub fn energy(&self, planned: &PlannedFactors) -> Option<&Factors> {
        self.energies.get(&planned.stream())
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
