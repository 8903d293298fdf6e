//! Runs side by side: a table, their provenance, their configurations.

use super::{
    named_run::{NamedRun, labels},
    run::{CONFIG, Run},
};
use retie_report::{
    Label, Table,
    number::{duration, grouped, rate},
};
use serde_json::{Value, json};

/// Runs in the order given.
pub struct Runs(pub(super) Vec<Run>);

impl Runs {
    /// Reads the folders.
    pub fn read(runs: &[NamedRun]) -> anyhow::Result<Self> {
        Ok(Self(
            runs.iter().zip(labels(runs)).map(|(run, label)| Run::read(run, label)).collect::<anyhow::Result<_>>()?,
        ))
    }

    /// Table with one row per run; `None` without runs.
    pub fn table(&self) -> Option<Table> {
        if self.0.is_empty() {
            return None;
        }
        let header = ["run", "steps", "tokens", "loss", "held-out", "time", "tok/s"].map(str::to_owned).to_vec();
        let rows = self.0.iter().map(|run| {
            let seconds: f64 = run.rows.iter().map(|row| row.seconds).sum();
            let (steps, tokens) = run.rows.last().map_or((0, 0), |row| (row.step, row.tokens));
            vec![
                run.label.clone(),
                grouped(steps).into(),
                grouped(tokens).into(),
                change(&run.loss().points).into(),
                change(&run.heldout().points).into(),
                duration(seconds).into(),
                rate(tokens as f64 / seconds.max(f64::MIN_POSITIVE)).into(),
            ]
        });
        let note = Some("Losses of the first and of the last measurement, in nats per token.".to_owned());
        Some(Table { title: "Training".to_owned(), header, rows: rows.collect(), note })
    }

    /// Provenance of the runs.
    pub fn facts(&self) -> Vec<(Label, String)> {
        let mut facts = Vec::new();
        for run in &self.0 {
            let name = |what: &str| match self.0.len() {
                1 => Label::from(what),
                _ => run.name(|run| format!("{run}: {what}")),
            };
            let Some(provenance) = &run.provenance else { continue };
            let commit = provenance.commit.as_ref().map_or_else(String::new, |commit| format!(", commit {commit}"));
            facts.push((name("trained by"), format!("{} {}{commit}", provenance.tool, provenance.version)));
            facts.push((name("date"), provenance.date.clone()));
            facts.push((name("command"), provenance.command.join(" ")));
            for file in provenance.parent.iter().flat_map(|parent| &parent.files) {
                facts.push((
                    name("made from"),
                    format!("{} ({} bytes, SHA-256 {})", file.name, file.bytes, file.sha256),
                ));
            }
        }
        facts
    }

    /// Resolved configurations of the runs, in YAML.
    pub fn files(&self) -> Vec<(Label, String)> {
        let file = |run: &Run| Some((run.name(|run| format!("{run}/{CONFIG}")), run.config.clone()?));
        self.0.iter().filter_map(file).collect()
    }

    /// First row, last row and held-out losses of each run, as JSON.
    pub fn to_json(&self) -> Value {
        let runs = self.0.iter().map(|run| {
            json!({
                "run": run.id,
                "first": run.rows.first(),
                "last": run.rows.last(),
                "heldout_cross_entropy": run.heldout().points,
            })
        });
        runs.collect()
    }
}

/// First and last value of a curve.
fn change(points: &[(f64, f64)]) -> String {
    match points {
        [] => "–".to_owned(),
        [(_, only)] => format!("{only:.4}"),
        [(_, first), .., (_, last)] => format!("{first:.4} → {last:.4}"),
    }
}
