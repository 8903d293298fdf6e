//! Checks of a written folder, against the source and not against what the writer remembers.
//!
//! - `layout`: the configuration that was written implies exactly the tensors that were written,
//!   with the planned types;
//! - `copies`: every tensor with one source equals it, byte for byte if the type was kept (with one
//!   recursion that is all);
//! - `means`: every mean equals the mean of its sources;
//! - `extras`: every vector that the source does not have holds its start, which leaves the logits
//!   alone but for measured gates;
//! - `fit`: of a calibrated start and of compensated layers, every `‖W_d − W' − B A‖²` is what it
//!   was when `W'`, `B` and `A` were fitted;
//! - `lora`: for each depth, `‖W_d − (W' + B A)‖²` is what the discarded singular values add up to;
//! - `dora`: the magnitudes are the lengths of the rows of `W' + B A` as they are stored, so that
//!   the model computes what it would with LoRA.

use crate::{
    Check, ConvertError, ConvertReport, Phase, Progress,
    magnitudes::{low_rank_product, magnitudes},
    plan::{ConversionPlan, PlannedLora, PlannedTensor},
    tied_group::mean,
};
use rayon::prelude::*;
use retie_checkpoint::{CheckpointError, Dtype, SafetensorsFolder, TensorSource, check_tensors, narrow, widen};
use retie_config::ModelConfig;
use std::path::Path;

/// Part of the residual's energy by which the stored factors may miss the best ones. Rounding `A`
/// and `B` to a unit roundoff `u` changes their product by less than `2 u ‖B A‖`, and the squared
/// error by less than `4 u ‖E‖²`; for f32 the product of this check adds more than that.
fn lora_tolerance(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 1e-5,
        Dtype::BF16 => 4.0 / 512.0,
        Dtype::F16 => 4.0 / 4096.0,
    }
}

/// Most names that a failed check lists.
const LISTED: usize = 5;

/// Things that were compared and those that differ.
#[derive(Default)]
struct Tally {
    compared: usize,
    bad: Vec<String>,
}

impl Tally {
    fn check(self, name: &str, what: &str) -> Check {
        let detail = match self.bad.len() {
            0 => format!("{} {what}", self.compared),
            n => {
                let listed = self.bad.iter().take(LISTED).cloned().collect::<Vec<_>>().join("; ");
                let more = if n > LISTED { format!("; and {} more", n - LISTED) } else { String::new() };
                format!("not so for {n} of {} {what}: {listed}{more}", self.compared)
            }
        };
        Check { name: name.to_owned(), passed: self.bad.is_empty(), detail }
    }
}

/// Runs every check on the folder `dir`.
pub(crate) fn verify(
    source: &dyn TensorSource,
    plan: &ConversionPlan,
    report: &ConvertReport,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Check>, ConvertError> {
    let written = SafetensorsFolder::open(dir)?;
    let mut checks = vec![layout(plan, &written, dir)?];
    if !checks[0].passed {
        return Ok(checks);
    }
    let [mut copies, mut means, mut extras, mut fit, mut lora, mut dora]: [Tally; 6] =
        std::array::from_fn(|_| Tally::default());
    let mut worst = 0.0f64;
    for (i, tensor) in plan.tensors.iter().enumerate() {
        check_magnitudes(tensor, &written, &mut dora)?;
        if tensor.fitted {
            check_fit(source, tensor, report, &written, &mut fit)?;
            progress(Progress { phase: Phase::Check, done: i + 1, total: plan.tensors.len(), tensor: &tensor.name });
            continue;
        }
        let tally = match (tensor.start, tensor.sources.len()) {
            (Some(_), _) => &mut extras,
            (None, 1) => &mut copies,
            (None, _) => &mut means,
        };
        tally.compared += 1;
        if !equals_source(source, tensor, &written)? {
            tally.bad.push(format!("`{}`", tensor.name));
        }
        if !tensor.factors.is_empty() {
            for (planned, excess) in tensor.factors.iter().zip(excesses(source, tensor, report, &written)?) {
                lora.compared += 1;
                worst = worst.max(excess);
                if excess > lora_tolerance(tensor.info.dtype) {
                    lora.bad.push(format!("`{}` by {excess:.1e}", planned.b.0));
                }
            }
        }
        progress(Progress { phase: Phase::Check, done: i + 1, total: plan.tensors.len(), tensor: &tensor.name });
    }
    let exact = plan.tensors.iter().filter(|t| t.sources.len() == 1).all(|t| keeps_type(source, t));
    checks.push(copies.check(
        "copies",
        match (plan.config.recursion.is_none(), exact) {
            (true, true) => "tensors, all that the model has, equal the source's byte for byte",
            (false, true) => "tensors equal the source's byte for byte",
            (_, false) => "tensors equal the source's after rounding to the new type",
        },
    ));
    if means.compared > 0 {
        checks.push(means.check("means", "tensors equal the mean of their sources"));
    }
    if extras.compared > 0 {
        let has_gates = plan.map().depths().iter().any(|step| plan.gate(step.depth).is_some_and(|gate| gate != 0.0));
        let what = if has_gates { "added vectors hold their starts" } else { "added vectors do nothing yet" };
        checks.push(extras.check("extras", what));
    }
    if fit.compared > 0 {
        checks.push(
            fit.check("fit", "depths and projections are as far from the source's weight as when they were fitted"),
        );
    }
    if lora.compared > 0 {
        let what = format!(
            "depths and projections are corrected as well as their rank allows (to {worst:.0e} of the residual)"
        );
        checks.push(lora.check("lora", &what));
    }
    if dora.compared > 0 {
        checks.push(dora.check("dora", "vectors of magnitudes are the lengths of the rows that they scale"));
    }
    Ok(checks)
}

/// Names, shapes and types, from the configuration that stands in the folder.
fn layout(plan: &ConversionPlan, written: &SafetensorsFolder, dir: &Path) -> Result<Check, ConvertError> {
    let config = ModelConfig::load(&dir.join("config.json"))?;
    let mut tally = Tally::default();
    if let Err(error) = check_tensors(&config, written) {
        tally.bad.push(error.to_string());
    }
    if config.recursion != plan.config.recursion {
        tally.bad.push("the configuration has another recursion".to_owned());
    }
    for (name, info) in plan.entries() {
        tally.compared += 1;
        if written.info(&name) != Some(&info) {
            tally.bad.push(format!("`{name}` is not {} {:?}", info.dtype.name(), info.shape));
        }
    }
    Ok(tally.check("layout", "tensors have the name, shape and type that the configuration implies"))
}

fn keeps_type(source: &dyn TensorSource, tensor: &PlannedTensor) -> bool {
    tensor.sources.iter().all(|name| source.info(name).is_some_and(|info| info.dtype == tensor.info.dtype))
}

fn equals_source(
    source: &dyn TensorSource,
    tensor: &PlannedTensor,
    written: &SafetensorsFolder,
) -> Result<bool, CheckpointError> {
    if let Some(start) = tensor.start {
        let size = tensor.info.shape.iter().product();
        return written.equals(&tensor.name, &narrow(&vec![start; size], tensor.info.dtype));
    }
    let expected = match tensor.sources.as_slice() {
        [only] if keeps_type(source, tensor) => source.bytes(only)?,
        sources => {
            let values = mean(source, sources)?;
            let rounded = narrow(&values, tensor.info.dtype);
            if let Some(share) = vanished(&values, &rounded, tensor.info.dtype) {
                tracing::warn!(
                    tensor = tensor.name,
                    "{:.0} % of its weights are too small for {} and become 0: `--dtype bf16` keeps them",
                    100.0 * share,
                    tensor.info.dtype.name()
                );
            }
            rounded.into()
        }
    };
    written.equals(&tensor.name, &expected)
}

/// Share of weights that rounding may make 0: a few of any model are as small.
const MOST_VANISHED: f64 = 0.01;

/// Share of the weights `values` that are 0 in `rounded`, if it is large.
fn vanished(values: &[f32], rounded: &[u8], dtype: Dtype) -> Option<f64> {
    let rounded = widen(rounded, dtype);
    let weights = values.iter().filter(|value| **value != 0.0).count();
    let zeros = values.iter().zip(&rounded).filter(|(value, rounded)| **value != 0.0 && **rounded == 0.0).count();
    let share = zeros as f64 / weights.max(1) as f64;
    (share > MOST_VANISHED).then_some(share)
}

/// Part by which an error that is computed twice from the same bytes may differ: none but the order
/// of sums, in f64 over products in f32.
const SAME: f64 = 1e-6;

/// Compares the errors of a fitted tensor with the recorded ones.
fn check_fit(
    source: &dyn TensorSource,
    tensor: &PlannedTensor,
    report: &ConvertReport,
    written: &SafetensorsFolder,
    tally: &mut Tally,
) -> Result<(), CheckpointError> {
    for (depth, name) in tensor.depths_and_sources() {
        tally.compared += 1;
        let factors = tensor.factors_at(*depth).map(|planned| (written, planned));
        let stored = (!tensor.is_replaced()).then_some((written, tensor.name.as_str()));
        let found = plain_error(source, name, stored, factors)?;
        let recorded = report.calibration.iter().flat_map(|calibration| &calibration.plain_errors);
        let recorded = recorded
            .filter(|recorded| recorded.depth == depth.0 && recorded.source == *name)
            .map(|recorded| recorded.error)
            .next();
        if !recorded.is_some_and(|recorded| (found - recorded).abs() <= SAME * recorded) {
            let expected = recorded.map_or_else(|| "none".to_owned(), |recorded| format!("{recorded:.6e}"));
            tally.bad.push(format!("`{name}` at depth {depth}: {found:.6e}, expected {expected}"));
        }
    }
    Ok(())
}

/// Compares the magnitudes of a tied group with what is stored beside them.
fn check_magnitudes(
    tensor: &PlannedTensor,
    written: &SafetensorsFolder,
    tally: &mut Tally,
) -> Result<(), CheckpointError> {
    let with = tensor.factors.iter().filter_map(|planned| Some((planned, &planned.magnitudes.as_ref()?.0)));
    for (planned, name) in with {
        tally.compared += 1;
        let [shared, a, b] = [&tensor.name, &planned.a.0, &planned.b.0].map(|name| written.read_f32(name));
        if magnitudes(&shared?, [&a?, &b?], planned.shape) != written.read_f32(name)? {
            tally.bad.push(format!("`{name}`"));
        }
    }
    Ok(())
}

/// `‖W_d − W' − B A‖²` of a weight of the source, a stored one and factors, the last two with where
/// they are; without a stored weight factors stand in its place.
pub(crate) fn plain_error<S: TensorSource, F: TensorSource>(
    source: &dyn TensorSource,
    own: &str,
    stored: Option<(&S, &str)>,
    factors: Option<(&F, &PlannedLora)>,
) -> Result<f64, CheckpointError> {
    let own = source.read_f32(own)?;
    let stored = match stored {
        Some((file, name)) => file.read_f32(name)?,
        None => vec![0.0; own.len()],
    };
    let product = match factors {
        Some((file, planned)) => {
            low_rank_product([&file.read_f32(&planned.a.0)?, &file.read_f32(&planned.b.0)?], planned.shape)
        }
        None => vec![0.0; own.len()],
    };
    Ok(own
        .iter()
        .zip(&stored)
        .zip(&product)
        .map(|((own, stored), product)| (f64::from(*own) - f64::from(*stored) - f64::from(*product)).powi(2))
        .sum())
}

/// For each depth of a group, by how much the error of the stored factors differs from the smallest
/// possible one, as a part of the residual's energy (or, without residual, of the weight's).
fn excesses(
    source: &dyn TensorSource,
    tensor: &PlannedTensor,
    report: &ConvertReport,
    written: &SafetensorsFolder,
) -> Result<Vec<f64>, CheckpointError> {
    let one = |planned: &PlannedLora| {
        let energy = report.lora.iter().flat_map(|lora| &lora.projections);
        let energy = energy.filter(|energy| energy.projection == planned.projection.name());
        let energy = energy.flat_map(|energy| &energy.depths).find(|energy| energy.depth == planned.depth.0);
        let Some(energy) = energy else { return Ok(f64::INFINITY) };
        let stored = Some((written, tensor.name.as_str()));
        let error = plain_error(source, &planned.source, stored, Some((written, planned)))?;
        let discarded = energy.residual_energy - energy.kept_energy;
        let scale = match energy.residual_energy > 0.0 {
            true => energy.residual_energy,
            false => source
                .read_f32(&planned.source)?
                .iter()
                .map(|x| f64::from(*x).powi(2))
                .sum::<f64>()
                .max(f64::MIN_POSITIVE),
        };
        Ok((error - discarded).abs() / scale)
    };
    tensor.factors.par_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_a_type_makes_0_are_counted() {
        let of = |values: &[f32], dtype| vanished(values, &narrow(values, dtype), dtype);
        // The least of F16 is 6e-8.
        assert_eq!(of(&[1e-9, 1.0, 0.0, 1e-9, 1e-6], Dtype::F16), Some(0.5));
        assert_eq!(of(&[1e-9, 1.0], Dtype::BF16), None);
        assert_eq!(of(&[0.0; 3], Dtype::F16), None);
        let few: Vec<f32> = (0..1000).map(|i| if i < 10 { 1e-9 } else { 1.0 }).collect();
        assert_eq!(of(&few, Dtype::F16), None);
    }
}
