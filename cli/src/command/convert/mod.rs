//! `retie convert`: from a pretrained model to a recursive one.

mod bars;
mod flags;
mod page;

pub use bars::Bars;

use crate::{
    args::{JsonArgs, SetArgs},
    calibration::CalibrationRun,
    error::Status,
    memory::{self, Need},
    model, output,
};
use clap::Args;
use flags::ConvertFlags;
use retie_checkpoint::{ModelSource, Provenance, Staging};
use retie_config::{Conversion, ConvertConfig, ResolvedConvert, SearchSpace, SelectionSpace, Start, document};
use retie_convert::{ConvertReport, OutputFiles, SearchReport, SelectionReport, SourceModel};
use serde::Serialize;
use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

/// Turn a pretrained model into a recursive one
#[derive(Debug, Args)]
pub struct Convert {
    #[command(flatten)]
    flags: ConvertFlags,
    /// Take all of this from a YAML file instead
    #[arg(long, value_name = "FILE", conflicts_with = "ConvertFlags")]
    config: Option<PathBuf>,
    /// Show what a search would choose (`--init auto`, or a selection of layers), and write nothing
    #[arg(long, conflicts_with = "report")]
    plan: bool,
    /// Write a page about the conversion here, as HTML
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    json: JsonArgs,
}

impl Convert {
    pub fn run(self) -> anyhow::Result<Status> {
        let Self { flags, config, plan, report: page, set, json } = self;
        let config: ConvertConfig = match config {
            Some(path) => document::load(&path, &set.set)?,
            None => {
                anyhow::ensure!(set.set.is_empty(), "`--set` changes a YAML file, expected `--config FILE` with it");
                flags.into_config()?
            }
        };
        let resolved = config.validate()?;
        if let Some(page) = &page {
            output::check_file(page)?;
        }
        if plan {
            return show_plan(&resolved, json);
        }
        let report = convert(&model::open(&resolved.model)?, &resolved)?;
        show(json, &report)?;
        output::wrote(&resolved.output);
        if let Some(page) = &page {
            page::write(page, &config, &report)?;
            output::wrote(page);
        }
        output::next(&format!("retie eval {} --tasks perplexity --text FILE", output::word(&resolved.output)));
        Ok(Status::Done)
    }
}

/// Shows what a search would choose.
fn show_plan(resolved: &ResolvedConvert, json: JsonArgs) -> anyhow::Result<Status> {
    let source = model::open(&resolved.model)?;
    match &resolved.start {
        Start::Search { space, calibration } => {
            let calibration = CalibrationRun::read(&source, calibration)?;
            show(json, &search(&source, space, &calibration, &resolved.output)?.1)?;
        }
        Start::Selection { space, calibration } => {
            let calibration = CalibrationRun::read(&source, calibration)?;
            show(json, &select(&source, space, &calibration)?.1)?;
        }
        Start::Fixed { conversion, .. } => {
            anyhow::bail!("`--plan` shows what a search would choose, found a fixed `--init {}`", conversion.init)
        }
    }
    Ok(Status::Done)
}

fn show(json: JsonArgs, report: &(impl Serialize + Display)) -> anyhow::Result<()> {
    if json.json { output::json(report) } else { Ok(output::data(report)?) }
}

/// Converts `source` as `resolved` says, with its tokenizer and provenance, under a progress bar.
pub fn convert(source: &ModelSource, resolved: &ResolvedConvert) -> anyhow::Result<ConvertReport> {
    if source.tokenizer_json().is_some() {
        model::tokenizer(source)?;
    }
    check_memory(source, resolved)?;
    let provenance = Provenance::now(command_line(), Some(model::parent(source)?));
    let mut files =
        OutputFiles { files: source.companions.clone(), provenance: Some(provenance), ..OutputFiles::default() };
    let out = &resolved.output;
    let (conversion, calibration) = match &resolved.start {
        Start::Fixed { conversion, calibration } => {
            let read = |calibration| CalibrationRun::read(source, calibration);
            (conversion.clone(), calibration.as_ref().map(read).transpose()?)
        }
        Start::Search { space, calibration } => {
            let calibration = CalibrationRun::read(source, calibration)?;
            let (chosen, report) = search(source, space, &calibration, out)?;
            output::line(&format!("chosen: {}", report.why));
            files.search = Some(report);
            (chosen, Some(calibration))
        }
        Start::Selection { space, calibration } => {
            let calibration = CalibrationRun::read(source, calibration)?;
            let (chosen, report) = select(source, space, &calibration)?;
            files.selection = Some(report);
            (chosen, Some(calibration))
        }
    };
    let calibration = calibration.as_ref().map(CalibrationRun::calibration);
    let mut bars = Bars::default();
    let mut see = |progress: retie_convert::Progress<'_>| bars.see(progress);
    Ok(retie_convert::convert(source_model(source), &conversion, calibration.as_ref(), &files, out, &mut see)?)
}

/// Compares the memory of a conversion with what is free. Tensors are read one at a time, so the
/// largest counts: as it is stored, and four times in f32 (a mean, its residual, factors, what is
/// written); a calibration adds two hidden states for each of its tokens, and the moments of the
/// linears of one layer.
fn check_memory(source: &ModelSource, resolved: &ResolvedConvert) -> anyhow::Result<()> {
    let infos = source.tensors.names().into_iter().filter_map(|name| source.tensors.info(name));
    let largest = infos.max_by_key(|info| info.num_elements());
    let (stored, elements) = largest.map_or((0, 0), |info| (info.num_bytes(), info.num_elements()));
    let calibration = match &resolved.start {
        Start::Fixed { calibration, .. } => calibration.as_ref(),
        Start::Search { calibration, .. } | Start::Selection { calibration, .. } => Some(calibration),
    };
    let config = &source.config;
    let states = calibration.map_or(0, |calibration| 2 * 4 * calibration.tokens * config.hidden_size);
    let moments = calibration.map_or(0, |_| 8 * (3 * config.hidden_size.pow(2) + config.intermediate_size.pow(2)));
    let need = Need { least: stored as u64, estimate: (4 * 4 * elements + states + moments) as u64 };
    memory::check("the conversion", need, |_| match calibration {
        Some(_) => "fewer `--calibration-tokens` need less".to_owned(),
        None => "its largest tensor has to be in memory".to_owned(),
    })
}

/// The best conversion of `space`, and the ranking of its candidates.
fn search(
    source: &ModelSource,
    space: &SearchSpace,
    calibration: &CalibrationRun,
    out: &Path,
) -> anyhow::Result<(Conversion, SearchReport)> {
    // Beside the place where the model will stand; it goes when the search is over.
    let scratch = Staging::new(out)?;
    let mut bars = Bars::default();
    let mut see = |progress: retie_convert::Progress<'_>| bars.see(progress);
    Ok(retie_convert::search(source_model(source), space, &calibration.calibration(), scratch.path(), &mut see)?)
}

/// The selection of source layers of `space`, and how it was found.
fn select(
    source: &ModelSource,
    space: &SelectionSpace,
    calibration: &CalibrationRun,
) -> anyhow::Result<(Conversion, SelectionReport)> {
    let mut bars = Bars::default();
    let mut see = |progress: retie_convert::Progress<'_>| bars.see(progress);
    Ok(retie_convert::select(source_model(source), space, &calibration.calibration(), &mut see)?)
}

/// An open model as the conversion reads it.
pub fn source_model(source: &ModelSource) -> SourceModel<'_> {
    SourceModel { tensors: source.tensors.as_ref(), config: &source.config }
}

/// The command line of this process, for provenance.
pub fn command_line() -> Vec<String> {
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    std::iter::once("retie".to_owned()).chain(words).collect()
}
