//! The conversion: plan, write in one pass over the source, verify what was written, publish.

use crate::{
    Calibration, ConvertError, ConvertOptions, ConvertReport, Extras,
    calibrate::{Fitted, Scratch, SourceStates, calibrate, calibrated_spectra},
    factorize::Factors,
    magnitudes::magnitudes,
    plan::{Plan, PlannedTensor},
    ranks::spread_budget,
    spectra::plain_spectra,
    tied_group::{group_factors, mean},
    verify::{plain_error, verify},
};
use rayon::prelude::*;
use retie_checkpoint::{CheckpointError, FolderWriter, SafetensorsFolder, Staging, TensorSource, narrow, widen};
use retie_config::{Init, ModelConfig};
use serde::Serialize;
use std::{borrow::Cow, io::Write, path::Path};

/// Name of the report in the folder.
pub const REPORT_FILE: &str = "convert.json";

/// Part of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Candidates of a search are scored, one by one.
    Search,
    /// Ranks are chosen within a budget, tensor by tensor, or with a calibration layer by layer.
    Spread,
    /// Shared weights are fitted to a calibration text, layer by layer.
    Tie,
    /// Corrections are fitted, depth by depth.
    Refit,
    /// The plain start is scored for comparison, depth by depth.
    Measure,
    /// Tensors are written.
    Write,
    /// What was written is read back and checked.
    Check,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is being done.
    pub stage: Stage,
    /// Tensors, layers or depths of this stage that are done.
    pub done: usize,
    /// Tensors, layers or depths of this stage.
    pub total: usize,
    /// Name of the one that was done last, as it begins in a checkpoint.
    pub tensor: &'a str,
}

/// Converts `source`, whose configuration is `config`, and writes the folder `out`: weights, `config.json`, [`REPORT_FILE`] and
/// the extras. The folder appears when all of it is there and every check has passed, or not at all.
///
/// # Errors
/// When the source does not fit its configuration (all bad tensors are listed), the options do not fit the source or want a calibration
/// (then it is [`convert_with_text`]), `out` holds something, a file cannot be read or written, or a check of the result fails.
pub fn convert(
    source: &dyn TensorSource,
    config: &ModelConfig,
    options: &ConvertOptions,
    extras: &Extras,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ConvertReport, ConvertError> {
    run(source, config, options, None, extras, out, progress)
}

/// As [`convert`], with a text: [`Init::Calibrated`] is fitted to it, and every init is scored on what is held out of it. The same input
/// gives the same bytes.
///
/// # Errors
/// As [`convert`], and when the options ask for a calibrated start with one recursion, or the model is not finite on the text.
///
/// # Panics
/// When the calibration's tokens are not whole sequences of at least 2 tokens, one or more to fit and one or more held out.
pub fn convert_with_text(
    source: &dyn TensorSource,
    config: &ModelConfig,
    options: &ConvertOptions,
    calibration: &Calibration<'_>,
    extras: &Extras,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ConvertReport, ConvertError> {
    let length = calibration.sequence_length;
    let whole = |ids: &[u32]| !ids.is_empty() && ids.len().is_multiple_of(length);
    assert!(length > 1 && whole(&calibration.fit) && whole(&calibration.heldout), "whole sequences");
    run(source, config, options, Some(calibration), extras, out, progress)
}

/// Lays out the conversion; ranks that a budget decides about are looked for.
pub(crate) fn plan(
    source: &dyn TensorSource,
    config: &ModelConfig,
    options: &ConvertOptions,
    calibration: Option<&Calibration<'_>>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Plan, ConvertError> {
    let plan = Plan::new(source, config, options)?;
    let Some(budget) = options.lora_budget else { return Ok(plan) };
    let spectra = match calibration.filter(|_| options.init == Init::Calibrated) {
        None => plain_spectra(source, &plan, options, progress)?,
        Some(calibration) => calibrated_spectra(source, &plan, options, calibration, progress)?,
    };
    let lora = spread_budget((budget, options.relax), &spectra, &plan.config, plan.map())?;
    Ok(plan.with_lora(source, options, lora))
}

fn run(
    source: &dyn TensorSource,
    config: &ModelConfig,
    options: &ConvertOptions,
    calibration: Option<&Calibration<'_>>,
    extras: &Extras,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ConvertReport, ConvertError> {
    if options.init == Init::Auto || (calibration.is_none() && options.init == Init::Calibrated) {
        return Err(ConvertError::NoCalibration { init: options.init });
    }
    let plan = plan(source, config, options, calibration, progress)?;
    let infos = source.names().into_iter().filter_map(|name| source.info(name).cloned());
    let mut report = ConvertReport::new(&plan, config, infos, options)?;
    report.search = extras.search.clone();
    let staging = Staging::new(out)?;
    write_json(&staging.path().join("config.json"), &plan.config.to_json())?;
    let mut average = None;
    let states = calibration.map(|calibration| SourceStates::of(source, &plan, calibration)).transpose()?;
    match (calibration, &states) {
        (Some(calibration), Some(states)) if options.init == Init::Calibrated => {
            report.set_calibration(calibration);
            let scratch = Scratch::create(staging.path())?;
            let fitted = calibrate(source, &plan, calibration, options.seed, &scratch, progress)?;
            write_weights(source, &plan, options, Some(&fitted), staging.path(), &mut report, progress)?;
            average = Some(fitted.average(states, progress)?);
        }
        _ => write_weights(source, &plan, options, None, staging.path(), &mut report, progress)?,
    }
    if let (Some(calibration), Some(states)) = (calibration, &states) {
        let written = states.written(source, &plan, calibration, &SafetensorsFolder::open(staging.path())?)?;
        report.set_scores(calibration, states.nll(source, calibration)?, average, written);
    }
    report.checks = verify(source, &plan, &report, staging.path(), progress)?;
    let failures: Vec<_> = report.checks.iter().filter(|check| !check.passed).cloned().collect();
    if !failures.is_empty() {
        return Err(ConvertError::ChecksFailed { failures });
    }
    write_json(&staging.path().join(REPORT_FILE), &report)?;
    for (name, content) in &extras.files {
        fs_err::File::create(staging.path().join(name))?.write_all(content)?;
    }
    if let Some(provenance) = &extras.provenance {
        provenance.save(staging.path())?;
    }
    staging.publish()?;
    Ok(report)
}

fn write_weights(
    source: &dyn TensorSource,
    plan: &Plan,
    options: &ConvertOptions,
    fitted: Option<&Fitted<'_>>,
    dir: &Path,
    report: &mut ConvertReport,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ConvertError> {
    let mut writer = FolderWriter::create(dir, &plan.entries(), options.max_shard_bytes)?;
    let fitted_for = |tensor: &PlannedTensor| fitted.filter(|_| tensor.fitted);
    let decomposed = |tensor: &PlannedTensor| !tensor.factors.is_empty() && fitted_for(tensor).is_none();
    let (mut rest, mut done) = (plan.tensors.as_slice(), 0);
    while !rest.is_empty() {
        let (part, after) = rest.split_at(side_by_side(rest, decomposed));
        rest = after;
        let contents: Vec<Option<Content<'_>>> = part
            .par_iter()
            .map(|tensor| fitted_for(tensor).is_none().then(|| Content::of(source, tensor, options.seed)).transpose())
            .collect::<Result<_, _>>()?;
        for (tensor, content) in part.iter().zip(contents) {
            match (content, fitted_for(tensor)) {
                (Some(content), _) => content.write(tensor, &mut writer, report)?,
                (None, Some(fitted)) => write_fitted(source, tensor, fitted, &mut writer, report)?,
                (None, None) => unreachable!("what is not fitted has contents"),
            }
            done += 1;
            tracing::debug!(tensor = tensor.name, sources = ?tensor.sources, "written");
            progress(Progress { stage: Stage::Write, done, total: plan.tensors.len(), tensor: &tensor.name });
        }
    }
    Ok(writer.finish()?)
}

/// Elements of the tensors whose residuals are decomposed side by side: what they come to is held until it is written in order.
const AT_ONCE: usize = 1 << 22;

/// How many of the first tensors are computed at once: those that are decomposed, up to [`AT_ONCE`], or one.
fn side_by_side(tensors: &[PlannedTensor], decomposed: impl Fn(&PlannedTensor) -> bool) -> usize {
    let mut elements = 0;
    let fits = |tensor: &&PlannedTensor| {
        elements += tensor.info.shape.iter().product::<usize>();
        decomposed(tensor) && elements <= AT_ONCE
    };
    tensors.iter().take_while(fits).count().max(1)
}

/// What is written of a tensor that no calibration fitted.
struct Content<'a> {
    stored: Cow<'a, [u8]>,
    factors: Vec<Factors>,
}

impl<'a> Content<'a> {
    fn of(source: &'a dyn TensorSource, tensor: &PlannedTensor, seed: u64) -> Result<Self, ConvertError> {
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
        let dtype = tensor.info.dtype;
        writer.write(&tensor.name, &self.stored)?;
        for (planned, factors) in tensor.factors.iter().zip(&self.factors) {
            let [a, b] = [&factors.a, &factors.b].map(|values| narrow(values, dtype));
            writer.write(&planned.a.0, &a)?;
            writer.write(&planned.b.0, &b)?;
            if let Some((name, info)) = &planned.magnitudes {
                let stored = widen(&self.stored, dtype);
                let values = magnitudes(&stored, [&widen(&a, dtype), &widen(&b, dtype)], planned.shape);
                writer.write(name, &narrow(&values, info.dtype))?;
            }
            report.add_energy(planned, factors);
        }
        Ok(())
    }
}

/// Writes one tensor that was fitted, and its factors.
fn write_fitted(
    source: &dyn TensorSource,
    tensor: &PlannedTensor,
    fitted: &Fitted<'_>,
    writer: &mut FolderWriter,
    report: &mut ConvertReport,
) -> Result<(), ConvertError> {
    writer.write(&tensor.name, &fitted.weights.bytes(&tensor.name)?)?;
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
    for (depth, name) in tensor.depths.iter().zip(&tensor.sources) {
        let factors = fitted.factors.as_ref().zip(tensor.factors_at(*depth));
        let error = plain_error(source, name, (&fitted.weights, &tensor.name), factors)?;
        report.add_plain_error(depth.0, name, error);
    }
    Ok(())
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ConvertError> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|source| CheckpointError::BadJson { path: path.to_owned(), source })?;
    text.push('\n');
    Ok(fs_err::File::create(path)?.write_all(text.as_bytes())?)
}
