//! `retie export`: a model in the format of other programs.

mod comparison;

use crate::{
    args::JsonArgs,
    choice::choice,
    command::convert::command_line,
    error::Status,
    memory::{self, Need},
    model, output,
    progress::{Progress, Unit},
};
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use comparison::Comparison;
use retie_checkpoint::{ModelSource, Provenance};
use retie_config::ModelConfig;
use retie_export::{ExportModel, ExportOptions, ExportReport, FORMATS, Format, StoredType, Unrolled, export};
use serde::Serialize;
use std::{
    fmt::{self, Display, Formatter},
    path::PathBuf,
};

/// Write a recursive model in the format of other programs, and compare it with what was written
#[derive(Debug, Args)]
pub struct Export {
    /// A recursive model: the folder that `retie convert` or `retie uptrain` wrote. A plain model
    /// is exported too
    #[arg(value_name = "MODEL")]
    model: String,
    /// The format
    #[arg(long, value_name = "FORMAT", value_parser = formats())]
    to: &'static Format,
    /// Store the matrices in this type; `keep` leaves each in the type that it has
    #[arg(long, value_name = "DTYPE", default_value_t, value_parser = choice::<StoredType>(stored_types()))]
    dtype: StoredType,
    /// Folder to write; it may not hold anything yet
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    json: JsonArgs,
}

/// Parser of `--to`; `--help` shows what each format is.
fn formats() -> impl TypedValueParser<Value = &'static Format> {
    let names = FORMATS.iter().map(|format| PossibleValue::new(format.name).help(format.about));
    PossibleValuesParser::new(names).try_map(|name| Format::named(&name))
}

fn stored_types() -> Vec<&'static str> {
    StoredType::ALL.iter().map(|stored| stored.name()).collect()
}

/// Result of `retie export`.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    export: ExportReport,
    comparison: Comparison,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.export, self.comparison)
    }
}

impl Export {
    pub fn run(self) -> anyhow::Result<Status> {
        let Self { model: spec, to: format, dtype, output: out, json } = self;
        let source = model::open(&spec)?;
        if source.tokenizer_json().is_some() {
            model::tokenizer(&source)?;
        }
        check_memory(&source, format)?;
        let provenance = Provenance::now(command_line(), Some(model::parent(&source)?));
        let options = ExportOptions { dtype, provenance: Some(provenance) };
        let mut bar = None;
        let mut see = |progress: retie_export::Progress<'_>| {
            let total = progress.total as u64;
            let bar = bar.get_or_insert_with(|| Progress::new("export", Unit::Count("tensors"), total));
            bar.set(progress.done as u64, total, progress.tensor);
        };
        let written = export(export_model(&source), format, &options, &out, &mut see)?;
        drop(bar);
        let comparison = Comparison::of(&source, export_model(&source), &written)?;
        let passed = comparison.passed;
        let report = Report { export: written.report().clone(), comparison };
        if json.json {
            output::json(&report)?;
        } else {
            output::data(&report)?;
        }
        if !passed {
            output::line("what was written does not compute what the model does: nothing was kept");
            return Ok(Status::CheckFailed);
        }
        written.publish()?;
        output::wrote(&out);
        Ok(Status::Done)
    }
}

/// Compares the memory of the comparison with what is free: model and export are loaded in f32, one
/// after the other.
fn check_memory(source: &ModelSource, format: &Format) -> anyhow::Result<()> {
    let bytes =
        |config: &ModelConfig| 4 * config.tensors().iter().map(|spec| spec.num_elements()).sum::<usize>() as u64;
    let mut need = bytes(&source.config);
    if format.is_unrolled {
        need = need.max(bytes(Unrolled::new(export_model(source), None, format.name)?.config()));
    }
    memory::check("the comparison of the export with the model", Need::exact(need), |_| {
        "run it on a machine with more memory".to_owned()
    })
}

/// An open model as an export reads it.
fn export_model(source: &ModelSource) -> ExportModel<'_> {
    let last = source.spec.trim_end_matches('/').rsplit('/').next();
    ExportModel {
        name: last.unwrap_or(&source.spec),
        tensors: source.tensors.as_ref(),
        config: &source.config,
        companions: &source.companions,
    }
}
