//! The conversion: plan, write in one pass over the source, verify what was written, publish.

use crate::{
    Calibration, ConvertError, ConvertReport, OutputFiles, Phase, PlainError, Progress, SourceModel,
    calibrate::{Fitted, Scratch, SourceStates, calibrate, calibrated_spectra, compensate},
    factorize::LoraFactors,
    low_rank,
    magnitudes::magnitudes,
    output_files::write_json,
    plan::{ConversionPlan, PlannedTensor},
    ranks::spread_budget,
    report::CalibratedScores,
    spectra::plain_spectra,
    tied_group::{group_factors, mean},
    verify::{plain_error, verify},
};
use rayon::prelude::*;
use retie_checkpoint::{
    DEFAULT_MAX_SHARD_BYTES, FolderWriter, SafetensorsFolder, Staging, TensorSource, narrow, widen,
};
use retie_config::{ByteSize, Compensation, Conversion, Init, LoraRanks, TargetSettings};
use std::{borrow::Cow, path::Path};

/// Name of the report in the folder.
pub const REPORT_FILE: &str = "convert.json";

/// Converts `source` and writes the folder `out`: weights, `config.json`, [`REPORT_FILE`] and
/// `files`. The folder appears when all of it is there and every check has passed, or not at all.
/// The same input gives the same bytes.
///
/// With a calibration every init is scored on the text that is held out of it; [`Init::Calibrated`]
/// and kept layers that are compensated for removed ones are fitted to the rest.
///
/// # Errors
/// When the source does not fit its configuration (all bad tensors are listed), the conversion does
/// not fit the source or wants a calibration, the model is not finite on the text, `out` holds
/// something, a file cannot be read or written, or a check of the result fails.
///
/// # Panics
/// When the calibration's tokens are not whole sequences of at least 2 tokens, one or more to fit
/// to and one or more held out.
pub fn convert(
    source: SourceModel<'_>,
    conversion: &Conversion,
    calibration: Option<&Calibration<'_>>,
    files: &OutputFiles,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ConvertReport, ConvertError> {
    let is_fitted = conversion.init == Init::Calibrated || conversion.compensation == Compensation::LeastSquares;
    if is_fitted && calibration.is_none() {
        return Err(ConvertError::NoCalibration);
    }
    if let Some(Calibration { sequence_length, train, heldout, .. }) = calibration {
        let whole = |ids: &[u32]| !ids.is_empty() && ids.len().is_multiple_of(*sequence_length);
        assert!(*sequence_length > 1 && whole(train) && whole(heldout), "whole sequences");
    }
    let plan = plan(source, conversion, calibration, progress)?;
    let mut report = ConvertReport::new(&plan, source, conversion)?;
    report.search = files.search.clone();
    report.selection = files.selection.clone();
    let is_fitted = plan.tensors.iter().any(|tensor| tensor.fitted);
    let staging = Staging::new(out)?;
    write_json(&staging.path().join("config.json"), &plan.config.to_json())?;
    let (source, seed) = (source.tensors, conversion.target.seed);
    let states = calibration.map(|calibration| SourceStates::from_source(source, &plan, calibration)).transpose()?;
    let writing = Writing { source, plan: &plan, target: &conversion.target, dir: staging.path() };
    match (calibration, &states) {
        (Some(calibration), Some(states)) if is_fitted => {
            let scratch = Scratch::create(staging.path())?;
            let fit = if plan.is_compensated() { compensate } else { calibrate };
            let fitted = fit(source, &plan, calibration, seed, &scratch, progress)?;
            let plain_errors = writing.write(Some(&fitted), &mut report, progress)?;
            let average = fitted.average(states, progress)?;
            let written = states.written(source, &plan, calibration, &SafetensorsFolder::open(staging.path())?)?;
            let source_nll = states.nll(source, calibration)?;
            report.set_scores(calibration, source_nll, written);
            report.set_calibration(calibration, CalibratedScores { source_nll, average, written }, plain_errors);
        }
        (Some(calibration), Some(states)) => {
            writing.write(None, &mut report, progress)?;
            let written = states.written(source, &plan, calibration, &SafetensorsFolder::open(staging.path())?)?;
            report.set_scores(calibration, states.nll(source, calibration)?, written);
        }
        _ => {
            writing.write(None, &mut report, progress)?;
        }
    }
    report.checks = verify(source, &plan, &report, staging.path(), progress)?;
    let failures: Vec<_> = report.checks.iter().filter(|check| !check.passed).cloned().collect();
    if !failures.is_empty() {
        return Err(ConvertError::ChecksFailed { failures });
    }
    write_json(&staging.path().join(REPORT_FILE), &report)?;
    files.write(staging.path())?;
    staging.publish()?;
    Ok(report)
}

/// Lays out the conversion; ranks that a budget decides about are chosen.
pub(crate) fn plan(
    source: SourceModel<'_>,
    conversion: &Conversion,
    calibration: Option<&Calibration<'_>>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ConversionPlan, ConvertError> {
    let plan = ConversionPlan::new(source, conversion)?;
    let Some(lora) = &conversion.lora else { return Ok(plan) };
    let budget = match lora.ranks {
        LoraRanks::Budget(budget) => budget,
        LoraRanks::Named { .. } => return Ok(plan),
        LoraRanks::Alone(budget) => {
            let calibration = calibration.ok_or(ConvertError::NoCalibration)?;
            let ranks = low_rank::ranks(source, &plan, (budget, &conversion.target), calibration, progress)?;
            return Ok(plan.with_lora(source.tensors, conversion, ranks));
        }
    };
    let spectra = match calibration.filter(|_| conversion.init == Init::Calibrated) {
        None => plain_spectra(source.tensors, &plan, lora, progress)?,
        Some(calibration) => calibrated_spectra(source.tensors, &plan, lora, calibration, progress)?,
    };
    let ranks = spread_budget((budget, lora.relax), &spectra, &plan.config, plan.map())?;
    Ok(plan.with_lora(source.tensors, conversion, ranks))
}

/// The weights of a folder that is being written.
struct Writing<'a> {
    source: &'a dyn TensorSource,
    plan: &'a ConversionPlan,
    target: &'a TargetSettings,
    dir: &'a Path,
}

impl Writing<'_> {
    /// Writes every tensor, and adds the residual energies to `report`. Gives how far each fitted
    /// weight is from the source's.
    fn write(
        &self,
        fitted: Option<&Fitted<'_>>,
        report: &mut ConvertReport,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<PlainError>, ConvertError> {
        let Self { source, plan, target, dir } = *self;
        let max_shard_bytes = target.max_shard_size.map_or(DEFAULT_MAX_SHARD_BYTES, ByteSize::bytes);
        let mut writer = FolderWriter::create(dir, &plan.entries(), max_shard_bytes)?;
        let fitted_for = |tensor: &PlannedTensor| fitted.filter(|_| tensor.fitted);
        let decomposed = |tensor: &PlannedTensor| !tensor.factors.is_empty() && fitted_for(tensor).is_none();
        let (mut rest, mut done, mut plain_errors) = (plan.tensors.as_slice(), 0, Vec::new());
        while !rest.is_empty() {
            let (part, after) = rest.split_at(side_by_side(rest, decomposed));
            rest = after;
            let contents: Vec<Option<Content<'_>>> = part
                .par_iter()
                .map(|tensor| {
                    let content = || Content::from_source(source, tensor, target.seed);
                    fitted_for(tensor).is_none().then(content).transpose()
                })
                .collect::<Result<_, _>>()?;
            for (tensor, content) in part.iter().zip(contents) {
                match (content, fitted_for(tensor)) {
                    (Some(content), _) => content.write(tensor, &mut writer, report)?,
                    (None, Some(fitted)) => {
                        let seed = target.seed;
                        plain_errors.extend(write_fitted((source, seed), tensor, fitted, &mut writer, report)?);
                    }
                    (None, None) => unreachable!("what is not fitted has contents"),
                }
                done += 1;
                tracing::debug!(tensor = tensor.name, sources = ?tensor.sources, "written");
                progress(Progress { phase: Phase::Write, done, total: plan.tensors.len(), tensor: &tensor.name });
            }
        }
        writer.finish()?;
        Ok(plain_errors)
    }
}

/// Elements of the tensors whose residuals are decomposed side by side: what they come to is held
/// until it is written in order.
const AT_ONCE: usize = 1 << 22;

/// How many of the first tensors are computed at once: those that are decomposed, up to
/// [`AT_ONCE`], or one.
fn side_by_side(tensors: &[PlannedTensor], decomposed: impl Fn(&PlannedTensor) -> bool) -> usize {
    let mut elements = 0;
    let fits = |tensor: &&PlannedTensor| {
        elements += tensor.info.shape.iter().product::<usize>();
        decomposed(tensor) && elements <= AT_ONCE
    };
    tensors.iter().take_while(fits).count().max(1)
}

/// Values of a tensor that no calibration fitted, and of its factors.
struct Content<'a> {
    stored: Cow<'a, [u8]>,
    factors: Vec<LoraFactors>,
}

impl<'a> Content<'a> {
    fn from_source(source: &'a dyn TensorSource, tensor: &PlannedTensor, seed: u64) -> Result<Self, ConvertError> {
        let dtype = tensor.info.dtype;
        let same_type = |name: &String| source.info(name).is_some_and(|info| info.dtype == dtype);
        let stored = match (tensor.start, tensor.sources.as_slice()) {
            (Some(start), _) => narrow(&vec![start; tensor.info.shape.iter().product()], dtype).into(),
            (None, [only]) if same_type(only) => source.bytes(only)?,
            (None, sources) => narrow(&mean(source, sources)?, dtype).into(),
        };
        let factors = match tensor.factors.as_slice() {
            [] => Vec::new(),
            planned => group_factors(source, &widen(&stored, dtype), planned, seed)?,
        };
        Ok(Self { stored, factors })
    }

    /// Writes the tensor and the factors that belong to it.
    fn write(
        self,
        tensor: &PlannedTensor,
        writer: &mut FolderWriter,
        report: &mut ConvertReport,
    ) -> Result<(), ConvertError> {
        writer.write(&tensor.name, &self.stored)?;
        write_factors(tensor, &self.stored, &self.factors, writer, report)
    }
}

/// Writes the factors of a tensor whose weight is stored as `stored`.
fn write_factors(
    tensor: &PlannedTensor,
    stored: &[u8],
    factors: &[LoraFactors],
    writer: &mut FolderWriter,
    report: &mut ConvertReport,
) -> Result<(), ConvertError> {
    let dtype = tensor.info.dtype;
    for (planned, factors) in tensor.factors.iter().zip(factors) {
        let [a, b] = [&factors.a, &factors.b].map(|values| narrow(values, dtype));
        writer.write(&planned.a.0, &a)?;
        writer.write(&planned.b.0, &b)?;
        if let Some((name, info)) = &planned.magnitudes {
            let values = magnitudes(&widen(stored, dtype), [&widen(&a, dtype), &widen(&b, dtype)], planned.shape);
            writer.write(name, &narrow(&values, info.dtype))?;
        }
        report.add_energy(planned, factors);
    }
    Ok(())
}

/// Writes one tensor that was fitted, and its factors. Gives its distance from the source at every
/// depth.
fn write_fitted(
    (source, seed): (&dyn TensorSource, u64),
    tensor: &PlannedTensor,
    fitted: &Fitted<'_>,
    writer: &mut FolderWriter,
    report: &mut ConvertReport,
) -> Result<Vec<PlainError>, ConvertError> {
    if !tensor.is_replaced() {
        writer.write(&tensor.name, &fitted.weights.bytes(&tensor.name)?)?;
    }
    let factors = fitted.factors.as_ref().into_iter().flat_map(|file| tensor.factors.iter().map(move |f| (file, f)));
    for (file, planned) in factors {
        writer.write(&planned.a.0, &file.bytes(&planned.a.0)?)?;
        writer.write(&planned.b.0, &file.bytes(&planned.b.0)?)?;
        if let Some((name, info)) = &planned.magnitudes {
            let [stored, a, b] =
                [fitted.weights.read_f32(&tensor.name)?, file.read_f32(&planned.a.0)?, file.read_f32(&planned.b.0)?];
            writer.write(name, &narrow(&magnitudes(&stored, [&a, &b], planned.shape), info.dtype))?;
        }
        if let Some(energy) = fitted.energy(planned) {
            report.add_energy(planned, energy);
        }
    }
    if fitted.factors.is_none() && !tensor.factors.is_empty() {
        // Nothing was tied: the factors start at zero, as those of the layers that are copied.
        let own = source.read_f32(&tensor.sources[0])?;
        let factors = group_factors(source, &own, &tensor.factors, seed)?;
        write_factors(tensor, &fitted.weights.bytes(&tensor.name)?, &factors, writer, report)?;
    }
    tensor
        .depths_and_sources()
        .map(|(depth, name)| {
            let factors = fitted.factors.as_ref().zip(tensor.factors_at(*depth));
            let stored = (!tensor.is_replaced()).then_some((&fitted.weights, tensor.name.as_str()));
            let error = plain_error(source, name, stored, factors)?;
            Ok(PlainError { depth: depth.0, source: name.clone(), error })
        })
        .collect()
}
