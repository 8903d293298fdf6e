//! `retie report`: runs and evaluations side by side, as tables and as one HTML file.

mod curves;
mod evaluations;
mod named_run;
mod pareto;
mod run;
mod runs;

use crate::{args::JsonArgs, error::Status, machine, output};
use anyhow::{Context, ensure};
use clap::Args;
pub use curves::Curves;
pub use evaluations::{Evaluations, number};
pub use named_run::NamedRun;
use pareto::Pareto;
use retie_report::{Facts, Label, Page, Table};
pub use runs::Runs;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Put runs and evaluations side by side: a table, and an HTML file with the curves
#[derive(Debug, Args)]
pub struct ReportCommand {
    /// Folders of `retie uptrain` runs; `NAME=RUN_DIR` gives one a name
    #[arg(value_name = "RUN_DIR")]
    runs: Vec<NamedRun>,
    /// A file of `retie eval --json`, and the name of its row
    #[arg(long = "eval", value_name = "NAME=FILE")]
    evals: Vec<String>,
    /// Compare the evaluations by quality and cost: which of them nothing beats at the same
    /// operations, bytes or speed
    #[arg(long, requires = "evals", conflicts_with = "runs")]
    pareto: bool,
    /// With `--pareto`: a file of `retie bench --json`, and the name of the evaluation of the same
    /// model
    #[arg(long = "bench", value_name = "NAME=FILE", requires = "pareto")]
    benches: Vec<String>,
    /// With `--pareto`: quality is the accuracy of this task, and not the loss on the text
    #[arg(long, value_name = "TASK", requires = "pareto")]
    task: Option<String>,
    /// Heading
    #[arg(long, default_value = "retie report")]
    title: String,
    /// The HTML file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    json: JsonArgs,
}

impl ReportCommand {
    pub fn run(self) -> anyhow::Result<Status> {
        ensure!(
            !self.runs.is_empty() || !self.evals.is_empty(),
            "there is nothing to report\nhint: name a run's folder, or a file of `retie eval --json` with `--eval NAME=FILE`"
        );
        let evals = named_files("--eval", &self.evals)?;
        if self.pareto {
            return self.compare(&evals);
        }
        let content = Content::read(&self.runs, &evals)?;
        content.write(&self.output, self.title, Vec::new())?;
        if self.json.json {
            output::json(&content.to_json())?;
        } else {
            output::data(content.text())?;
        }
        output::wrote(&self.output);
        Ok(Status::Done)
    }
}

impl ReportCommand {
    /// `--pareto`.
    fn compare(&self, evals: &[(String, PathBuf)]) -> anyhow::Result<Status> {
        let evaluations = Evaluations::read(evals)?;
        let benches = named_files("--bench", &self.benches)?;
        let pareto = Pareto::new(&evaluations, &benches, self.task.as_deref())?;
        let entries = vec![("report made by".into(), version()), ("report made on".into(), machine::summary())];
        let page = Page {
            title: self.title.clone(),
            summary: pareto.sentences(),
            passages: Vec::new(),
            heat_maps: Vec::new(),
            trees: Vec::new(),
            tables: std::iter::once(pareto.table()).chain(evaluations.table()).collect(),
            charts: pareto.charts(),
            facts: Facts { title: "Provenance".to_owned(), entries },
            files: Vec::new(),
        };
        fs_err::write(&self.output, page.to_html()?)?;
        if self.json.json {
            output::json(&pareto.to_json())?;
        } else {
            output::data(format!("{}\n\n{}", pareto.table().to_text(), pareto.sentences().join("\n")))?;
        }
        output::wrote(&self.output);
        Ok(Status::Done)
    }
}

/// Names and paths of `NAME=FILE` arguments of `option`.
pub fn named_files(option: &str, given: &[String]) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let file = |text: &String| {
        let (name, path) = text.split_once('=').with_context(|| format!("`{option} {text}`, expected `NAME=FILE`"))?;
        Ok((name.to_owned(), PathBuf::from(path)))
    };
    given.iter().map(file).collect()
}

/// The evaluations and runs of a report.
pub struct Content {
    evaluations: Evaluations,
    runs: Runs,
}

impl Content {
    /// Reads the folders of runs, and evaluation files by name and path.
    pub fn read(runs: &[NamedRun], evals: &[(String, PathBuf)]) -> anyhow::Result<Self> {
        Ok(Self { evaluations: Evaluations::read(evals)?, runs: Runs::read(runs)? })
    }

    /// Writes the HTML file `path`.
    pub fn write(&self, path: &Path, title: String, summary: Vec<String>) -> anyhow::Result<()> {
        let mut entries: Vec<(Label, String)> =
            vec![("report made by".into(), version()), ("report made on".into(), machine::summary())];
        entries.extend(self.runs.facts());
        let page = Page {
            title,
            summary,
            passages: Vec::new(),
            heat_maps: Vec::new(),
            trees: Vec::new(),
            tables: self.tables(),
            charts: self.runs.charts(&Curves::ALL),
            facts: Facts { title: "Provenance".to_owned(), entries },
            files: self.runs.files(),
        };
        Ok(fs_err::write(path, page.to_html()?)?)
    }

    fn tables(&self) -> Vec<Table> {
        self.evaluations.table().into_iter().chain(self.runs.table()).collect()
    }

    /// The tables as aligned text.
    pub fn text(&self) -> String {
        self.tables().iter().map(Table::to_text).collect::<Vec<_>>().join("\n\n")
    }

    /// Loss on the text in nats per token, and number of parameters, of each evaluation with both.
    pub fn losses(&self) -> Vec<(f64, u64)> {
        self.evaluations.losses()
    }

    /// Evaluations and runs as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        json!({ "evaluations": self.evaluations.to_json(), "runs": self.runs.to_json() })
    }
}

fn version() -> String {
    let commit = option_env!("RETIE_COMMIT").map_or_else(String::new, |commit| format!(", commit {commit}"));
    format!("retie {}{commit}", env!("CARGO_PKG_VERSION"))
}
