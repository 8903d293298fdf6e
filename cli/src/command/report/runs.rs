//! Folders of runs as curves, facts and a table.

use crate::number::{duration, grouped, rate};
use anyhow::ensure;
use retie_checkpoint::Provenance;
use retie_eval::{Chart, Series, Table};
use retie_trainer::{StepRow, read_metrics};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Runs in the order given.
pub struct Runs(Vec<Run>);

struct Run {
    name: String,
    rows: Vec<StepRow>,
    /// Held-out cross-entropy before the first step.
    baseline: Option<f64>,
    provenance: Option<Provenance>,
    config: Option<String>,
}

/// Files that `retie uptrain` writes.
const CONFIG: &str = "config.resolved.yaml";
const METRICS: &str = "metrics.jsonl";
const BASELINE: &str = "eval/step-0.json";

impl Runs {
    /// Reads the folders.
    pub fn read(folders: &[PathBuf]) -> anyhow::Result<Self> {
        Ok(Self(folders.iter().map(|folder| Run::read(folder)).collect::<anyhow::Result<_>>()?))
    }

    /// The curves: the loss, its terms if there is one run, and the held-out loss.
    pub fn charts(&self) -> Vec<Chart> {
        let chart = |title: &str, series: Vec<Series>| Chart {
            title: title.to_owned(),
            x_label: "training tokens".to_owned(),
            y_label: "nats per token".to_owned(),
            series,
            levels: Vec::new(),
        };
        let heldout: Vec<Series> = self.0.iter().map(Run::heldout).filter(|series| !series.points.is_empty()).collect();
        let training = match self.0.as_slice() {
            [only] => only.terms(),
            runs => runs
                .iter()
                .map(|run| Series { name: run.name.clone(), points: run.points(|row| Some(row.loss)) })
                .collect(),
        };
        [("Training loss", training), ("Held-out cross-entropy", heldout)]
            .into_iter()
            .filter(|(_, series)| !series.is_empty())
            .map(|(title, series)| chart(title, series))
            .collect()
    }

    /// A row a run, if there is one.
    pub fn table(&self) -> Option<Table> {
        if self.0.is_empty() {
            return None;
        }
        let header = ["run", "steps", "tokens", "loss", "held-out", "time", "tok/s"].map(str::to_owned).to_vec();
        let rows = self.0.iter().map(|run| {
            let seconds: f64 = run.rows.iter().map(|row| row.seconds).sum();
            let (steps, tokens) = run.rows.last().map_or((0, 0), |row| (row.step, row.tokens));
            vec![
                run.name.clone(),
                grouped(steps),
                grouped(tokens),
                change(&run.points(|row| Some(row.loss))),
                change(&run.heldout().points),
                duration(seconds),
                rate(tokens as f64 / seconds.max(f64::MIN_POSITIVE)),
            ]
        });
        let note = Some("Losses of the first and of the last measurement, in nats per token.".to_owned());
        Some(Table { title: "Training".to_owned(), header, rows: rows.collect(), note })
    }

    /// Where the runs come from.
    pub fn facts(&self) -> Vec<(String, String)> {
        let mut facts = Vec::new();
        for run in &self.0 {
            let name = |what: &str| if self.0.len() == 1 { what.to_owned() } else { format!("{}: {what}", run.name) };
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

    /// The configurations.
    pub fn files(&self) -> Vec<(String, String)> {
        let of = |run: &Run| run.config.as_ref().map(|text| (format!("{}/{CONFIG}", run.name), text.clone()));
        self.0.iter().filter_map(of).collect()
    }

    /// First and last row of each run.
    pub fn to_json(&self) -> Value {
        let runs = self.0.iter().map(|run| {
            json!({
                "run": run.name,
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

impl Run {
    fn read(folder: &Path) -> anyhow::Result<Self> {
        let name = folder.display().to_string();
        ensure!(
            folder.join(METRICS).is_file(),
            "`{name}` has no `{METRICS}`, expected the folder of a `retie uptrain` run"
        );
        let config = folder.join(CONFIG);
        let baseline = folder.join(BASELINE);
        let baseline: Value = match baseline.is_file() {
            true => serde_json::from_str(&fs_err::read_to_string(baseline)?)?,
            false => Value::Null,
        };
        Ok(Self {
            rows: read_metrics(folder)?,
            baseline: baseline["heldout_cross_entropy"].as_f64(),
            provenance: Provenance::load(folder)?,
            config: config.is_file().then(|| fs_err::read_to_string(config)).transpose()?,
            name,
        })
    }

    fn points(&self, value: impl Fn(&StepRow) -> Option<f64>) -> Vec<(f64, f64)> {
        self.rows.iter().filter_map(|row| Some((row.tokens as f64, value(row)?))).collect()
    }

    fn terms(&self) -> Vec<Series> {
        let loss = self.points(|row| Some(row.loss));
        let terms = [
            ("cross-entropy", self.points(|row| Some(row.cross_entropy))),
            ("forward KL from the teacher", self.points(|row| row.forward_kl)),
        ];
        std::iter::once(("loss", loss))
            .chain(terms)
            .filter(|(_, points)| !points.is_empty())
            .map(|(name, points)| Series { name: name.to_owned(), points })
            .collect()
    }

    fn heldout(&self) -> Series {
        let baseline = self.baseline.map(|loss| (0.0, loss));
        let points = baseline.into_iter().chain(self.points(|row| row.heldout_cross_entropy));
        Series { name: self.name.clone(), points: points.collect() }
    }
}
