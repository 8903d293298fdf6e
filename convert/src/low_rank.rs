//! Low-rank linears (`--method svd`): how much of each matrix a budget of all weights leaves.
//!
//! The rival of a recursive model that keeps every layer and makes its matrices smaller, as
//! [SVD-LLM](https://arxiv.org/abs/2403.07378): each `W` becomes `B A`, the best of its rank in the
//! metric of what it reads. Ranks are spread by what the loss feels ([`crate::calibrate`]); a
//! matrix that would not become smaller stays as it is. Nothing else of the model changes.

use crate::{
    Calibration, ConvertError, ParameterCounts, Progress, SourceModel, calibrate::felt_spectra, plan::ConversionPlan,
    ranks::allot, search::element_bytes,
};
use retie_config::{Budget, LoraConfig, Projection, TargetSettings};

/// The ranks of every linear within `budget`.
///
/// # Errors
/// When the budget allows every matrix or not even rank 1, or the source cannot be read.
pub(crate) fn ranks(
    source: SourceModel<'_>,
    plan: &ConversionPlan,
    (budget, target): (Budget, &TargetSettings),
    calibration: &Calibration<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<LoraConfig, ConvertError> {
    let config = source.config;
    let all = ParameterCounts::from_config(config).total();
    let allowed = budget.parameters(all, element_bytes(source, target.dtype));
    let shapes: Vec<[usize; 2]> = config.projection_shapes().into_iter().map(|(_, shape)| shape).collect();
    let a_layer = |count: &dyn Fn([usize; 2]) -> usize| shapes.iter().map(|shape| count(*shape)).sum::<usize>();
    let layers = config.num_hidden_layers;
    let matrices = layers * a_layer(&|[out, inp]| out * inp);
    let (first, others) = (layers * a_layer(&|[out, inp]| out + inp), all - matrices);
    let bad = || ConvertError::LowRankBudget { budget: budget.to_string(), allowed, all, smallest: others + first };
    let left = allowed.checked_sub(others).filter(|left| *left >= first && *left < matrices).ok_or_else(bad)?;
    // The part of its matrix that each linear has left where all have the same.
    let part = left as f64 / matrices as f64;
    let even = |projection: Projection| {
        let [out, inp] = config.projection_shape(projection);
        ((part * (out * inp) as f64 / (out + inp) as f64) as usize).clamp(1, out.min(inp))
    };
    let spectra = felt_spectra(source.tensors, plan, &even, calibration, progress)?;
    allot(left, &spectra, config).ok_or_else(bad)
}
