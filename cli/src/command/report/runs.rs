//! Folders of runs as curves, facts and a table.

use crate::number::{duration, grouped, rate};
use anyhow::{Context, ensure};
use retie_checkpoint::Provenance;
use retie_eval::{Chart, Level, Series, Table};
use retie_trainer::{Baseline, StepRow, Telemetry, read_metrics};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    convert::Infallible,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The folder of a run and its name in tables and legends: `DIR`, or `NAME=DIR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRun {
    /// The folder itself, where no other name is given.
    pub name: String,
    pub folder: PathBuf,
}

impl From<&Path> for NamedRun {
    fn from(folder: &Path) -> Self {
        Self { name: folder.display().to_string(), folder: folder.to_owned() }
    }
}

impl FromStr for NamedRun {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.split_once('=') {
            // A folder may have the sign in its name.
            Some((name, folder)) if !Path::new(text).exists() => Self { name: name.into(), folder: folder.into() },
            _ => Path::new(text).into(),
        })
    }
}

/// Kinds of curves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Curves {
    /// The loss, with its terms where there is one run
    Loss,
    /// Held-out losses, with those of early exits and of teachers
    Heldout,
    /// Hidden states and gradients
    Telemetry,
}

impl Curves {
    pub const ALL: [Self; 3] = [Self::Loss, Self::Heldout, Self::Telemetry];
}

/// Runs in the order given.
pub struct Runs(Vec<Run>);

struct Run {
    name: String,
    rows: Vec<StepRow>,
    /// Held-out cross-entropy before the first step.
    baseline: Option<Baseline>,
    provenance: Option<Provenance>,
    config: Option<String>,
}

/// Files that `retie uptrain` writes.
const CONFIG: &str = "config.resolved.yaml";
const METRICS: &str = "metrics.jsonl";
const BASELINE: &str = "eval/step-0.json";

impl Runs {
    /// Reads the folders.
    pub fn read(runs: &[NamedRun]) -> anyhow::Result<Self> {
        Ok(Self(runs.iter().map(Run::read).collect::<anyhow::Result<_>>()?))
    }

    /// The curves of some kinds, those that have a point.
    pub fn charts(&self, kinds: &[Curves]) -> Vec<Chart> {
        let of = |kind: &Curves| match kind {
            Curves::Loss => vec![self.training()],
            Curves::Heldout => vec![self.heldout()],
            Curves::Telemetry => self.telemetry(),
        };
        kinds.iter().flat_map(of).filter(|chart| !chart.series.is_empty()).collect()
    }

    /// The loss, and its terms if there is one run.
    fn training(&self) -> Chart {
        let training = match self.0.as_slice() {
            [only] => only.terms(),
            runs => runs
                .iter()
                .map(|run| Series { name: run.name.clone(), points: run.points(|row| Some(row.loss)) })
                .collect(),
        };
        chart("Training loss", training, Vec::new())
    }

    /// What went on within the models.
    fn telemetry(&self) -> Vec<Chart> {
        let recursion = |index: usize| format!("recursion {}", index + 1);
        let pair = |index: usize| format!("recursions {} and {}", index + 1, index + 2);
        let numbered = |values: fn(&Telemetry) -> &Vec<f64>, name: fn(usize) -> String| {
            let named = move |telemetry: &Telemetry| {
                values(telemetry).iter().enumerate().map(|(index, value)| (name(index), *value)).collect()
            };
            self.of_telemetry(named)
        };
        let groups = |telemetry: &Telemetry| telemetry.grad_norm.iter().map(|(name, x)| (name.clone(), *x)).collect();
        let charts = [
            ("Norm of the hidden states", "mean over tokens", numbered(|t| &t.hidden_norm, recursion)),
            ("Cosine of hidden states", "mean over tokens", numbered(|t| &t.cosine, pair)),
            ("Gradient norm by group, before clipping", "norm", self.of_telemetry(groups)),
        ];
        let chart = |(title, label, series): (&str, &str, Vec<Series>)| Chart {
            y_label: label.to_owned(),
            ..chart(title, series, Vec::new())
        };
        charts.into_iter().map(chart).collect()
    }

    /// Curves of what `named` takes out of the telemetry of every run.
    fn of_telemetry(&self, named: impl Fn(&Telemetry) -> Vec<(String, f64)>) -> Vec<Series> {
        let of_run = |run: &Run| {
            let mut series: Vec<Series> = Vec::new();
            for row in &run.rows {
                for (name, value) in row.telemetry.as_ref().map(&named).unwrap_or_default() {
                    let name = if self.0.len() == 1 { name } else { format!("{}, {name}", run.name) };
                    let point = (row.tokens as f64, value);
                    match series.iter_mut().find(|series| series.name == name) {
                        Some(series) => series.points.push(point),
                        None => series.push(Series { name, points: vec![point] }),
                    }
                }
            }
            series
        };
        self.0.iter().flat_map(of_run).collect()
    }

    /// Held-out loss of every run, and that of the teachers.
    fn heldout(&self) -> Chart {
        let series = self.0.iter().flat_map(|run| std::iter::once(run.heldout()).chain(run.exits()));
        let series = series.filter(|series| !series.points.is_empty()).collect();
        chart("Held-out cross-entropy", series, self.teachers())
    }

    /// The teachers' held-out losses; one line where all runs have the same.
    fn teachers(&self) -> Vec<Level> {
        let loss = |run: &Run| run.baseline.as_ref()?.teacher_heldout_cross_entropy;
        let losses: Vec<(&Run, f64)> = self.0.iter().filter_map(|run| Some((run, loss(run)?))).collect();
        match losses.as_slice() {
            [] => Vec::new(),
            [(_, y), rest @ ..] if rest.iter().all(|(_, other)| other == y) => {
                vec![Level { name: "teacher".into(), y: *y }]
            }
            all => all.iter().map(|(run, y)| Level { name: format!("{}: teacher", run.name), y: *y }).collect(),
        }
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

fn chart(title: &str, series: Vec<Series>, levels: Vec<Level>) -> Chart {
    Chart {
        title: title.to_owned(),
        x_label: "training tokens".to_owned(),
        y_label: "nats per token".to_owned(),
        series,
        levels,
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
    fn read(NamedRun { name, folder }: &NamedRun) -> anyhow::Result<Self> {
        ensure!(
            folder.join(METRICS).is_file(),
            "`{}` has no `{METRICS}`, expected the folder of a `retie uptrain` run",
            folder.display()
        );
        let config = folder.join(CONFIG);
        let baseline = folder.join(BASELINE);
        let baseline = match baseline.is_file() {
            true => {
                let text = fs_err::read_to_string(&baseline)?;
                let damaged = || format!("`{}` is not a held-out measurement", baseline.display());
                Some(serde_json::from_str(&text).with_context(damaged)?)
            }
            false => None,
        };
        Ok(Self {
            rows: read_metrics(folder)?,
            baseline,
            provenance: Provenance::load(folder)?,
            config: config.is_file().then(|| fs_err::read_to_string(config)).transpose()?,
            name: name.clone(),
        })
    }

    fn points(&self, value: impl Fn(&StepRow) -> Option<f64>) -> Vec<(f64, f64)> {
        self.rows.iter().filter_map(|row| Some((row.tokens as f64, value(row)?))).collect()
    }

    /// The loss and each of its terms.
    fn terms(&self) -> Vec<Series> {
        let names: BTreeSet<&str> = self.rows.iter().flat_map(|row| row.terms.keys()).map(String::as_str).collect();
        let terms = names.into_iter().map(|name| (name, self.points(|row| row.terms.get(name).copied())));
        std::iter::once(("loss", self.points(|row| Some(row.loss))))
            .chain(terms)
            .filter(|(_, points)| !points.is_empty())
            .map(|(name, points)| Series { name: name.to_owned(), points })
            .collect()
    }

    /// Held-out losses of the early exits.
    fn exits(&self) -> Vec<Series> {
        let baseline = |index: usize| self.baseline.as_ref()?.heldout_exits.get(index).copied();
        let count = self.rows.iter().map(|row| row.heldout_exits.len()).max().unwrap_or(0);
        let series = |index: usize| {
            let start = baseline(index).map(|loss| (0.0, loss));
            let points = start.into_iter().chain(self.points(|row| row.heldout_exits.get(index).copied()));
            Series { name: format!("{}, exit {}", self.name, index + 1), points: points.collect() }
        };
        (0..count).map(series).collect()
    }

    fn heldout(&self) -> Series {
        let baseline = self.baseline.as_ref().map(|baseline| (0.0, baseline.heldout_cross_entropy));
        let points = baseline.into_iter().chain(self.points(|row| row.heldout_cross_entropy));
        Series { name: self.name.clone(), points: points.collect() }
    }
}
