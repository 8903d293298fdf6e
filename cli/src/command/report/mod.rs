//! `retie report`: runs and evaluations side by side, as a table and as one HTML file.

mod evaluations;
mod runs;

use crate::{args::JsonArgs, error::Status, machine, output};
use anyhow::{Context, ensure};
use clap::Args;
use evaluations::Evaluations;
use retie_eval::{Report, Table, render_report};
pub use runs::{Curves, NamedRun, Runs};
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
        let evals = self.evals.iter().map(|text| {
            let (name, path) =
                text.split_once('=').with_context(|| format!("`--eval {text}`, expected `NAME=FILE`"))?;
            Ok((name.to_owned(), PathBuf::from(path)))
        });
        let evals: Vec<_> = evals.collect::<anyhow::Result<_>>()?;
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

/// What a report is made of.
pub struct Content {
    evaluations: Evaluations,
    runs: Runs,
}

impl Content {
    /// Reads runs, and files of evaluations by name.
    pub fn read(runs: &[NamedRun], evals: &[(String, PathBuf)]) -> anyhow::Result<Self> {
        Ok(Self { evaluations: Evaluations::read(evals)?, runs: Runs::read(runs)? })
    }

    /// Writes the HTML file `path`.
    pub fn write(&self, path: &Path, title: String, summary: Vec<String>) -> anyhow::Result<()> {
        let mut facts =
            vec![("report made by".to_owned(), version()), ("report made on".to_owned(), machine::summary())];
        facts.extend(self.runs.facts());
        let report = Report {
            title,
            summary,
            passages: Vec::new(),
            tables: self.tables(),
            charts: self.runs.charts(&Curves::ALL),
            facts,
            files: self.runs.files(),
        };
        Ok(fs_err::write(path, render_report(&report)?)?)
    }

    fn tables(&self) -> Vec<Table> {
        self.evaluations.table().into_iter().chain(self.runs.table()).collect()
    }

    /// The tables as aligned text.
    pub fn text(&self) -> String {
        self.tables().iter().map(aligned).collect::<Vec<_>>().join("\n\n")
    }

    /// Loss on the text and parameters of each evaluation that has both.
    pub fn losses(&self) -> Vec<(f64, u64)> {
        self.evaluations.losses()
    }

    /// The numbers.
    pub fn to_json(&self) -> serde_json::Value {
        json!({ "evaluations": self.evaluations.to_json(), "runs": self.runs.to_json() })
    }
}

fn version() -> String {
    let commit = option_env!("RETIE_COMMIT").map_or_else(String::new, |commit| format!(", commit {commit}"));
    format!("retie {}{commit}", env!("CARGO_PKG_VERSION"))
}

/// A table as text; the first column is left-aligned, the others right-aligned.
fn aligned(table: &Table) -> String {
    let rows: Vec<&Vec<String>> = std::iter::once(&table.header).chain(&table.rows).collect();
    let columns = table.header.len();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_tables_are_aligned() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let table = Table {
            header: row(["model", "nll", "ppl"]),
            rows: vec![row(["base", "3.1", "22.2"]), row(["recursive", "10.25", "–"])],
            ..Table::default()
        };
        insta::assert_snapshot!(aligned(&table), @"
        model        nll   ppl
        base         3.1  22.2
        recursive  10.25     –
        ");
    }
}
