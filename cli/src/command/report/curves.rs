//! Curves of runs: losses, held-out losses with early exits and teacher, telemetry.

use super::{run::Run, runs::Runs};
use retie_report::{Chart, Label, ReferenceLine, Series};
use retie_trainer::Telemetry;

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

impl Runs {
    /// Charts of the given kinds, without those that have no curve.
    pub fn charts(&self, kinds: &[Curves]) -> Vec<Chart> {
        let charts = |kind: &Curves| match kind {
            Curves::Loss => vec![self.training()],
            Curves::Heldout => vec![self.heldout()],
            Curves::Telemetry => self.telemetry(),
        };
        kinds.iter().flat_map(charts).filter(|chart| !chart.series.is_empty()).collect()
    }

    /// Training loss of each run; of a single run also its loss terms.
    fn training(&self) -> Chart {
        let series = match self.0.as_slice() {
            [only] => only.terms(),
            runs => runs.iter().map(Run::loss).collect(),
        };
        chart("Training loss", NATS, series)
    }

    /// Held-out losses of all runs, their averaged weights, their early exits and their teachers.
    fn heldout(&self) -> Chart {
        let series = self.0.iter().flat_map(|run| [run.heldout(), run.averaged()].into_iter().chain(run.exits()));
        let series = series.filter(|series| !series.points.is_empty()).collect();
        Chart { reference_lines: self.teachers(), ..chart("Held-out cross-entropy", NATS, series) }
    }

    /// Held-out losses of the teachers; a single line if all are equal.
    fn teachers(&self) -> Vec<ReferenceLine> {
        let loss = |run: &Run| run.baseline.as_ref()?.teacher_heldout_cross_entropy;
        let losses: Vec<(&Run, f64)> = self.0.iter().filter_map(|run| Some((run, loss(run)?))).collect();
        match losses.as_slice() {
            [] => Vec::new(),
            [(_, y), rest @ ..] if rest.iter().all(|(_, other)| other == y) => {
                vec![ReferenceLine { name: "teacher".into(), y: *y }]
            }
            all => {
                let line = |(run, y): &(&Run, f64)| {
                    let name = run.name(|run| format!("{run}: teacher"));
                    ReferenceLine { name, y: *y }
                };
                all.iter().map(line).collect()
            }
        }
    }

    /// Telemetry: hidden states by recursion, gradient norms by parameter group.
    fn telemetry(&self) -> Vec<Chart> {
        let recursion = |index: usize| format!("recursion {}", index + 1);
        let pair = |index: usize| format!("recursions {} and {}", index + 1, index + 2);
        let numbered = |values: fn(&Telemetry) -> &Vec<f64>, name: fn(usize) -> String| {
            self.telemetry_series(move |telemetry: &Telemetry| {
                values(telemetry).iter().enumerate().map(|(index, value)| (name(index), *value)).collect()
            })
        };
        let groups = |telemetry: &Telemetry| telemetry.grad_norm.iter().map(|(name, x)| (name.clone(), *x)).collect();
        vec![
            chart("Norm of the hidden states", "mean over tokens", numbered(|t| &t.hidden_norm, recursion)),
            chart("Cosine of hidden states", "mean over tokens", numbered(|t| &t.cosine, pair)),
            chart("Gradient norm by group, before clipping", "norm", self.telemetry_series(groups)),
        ]
    }

    /// One curve for each name that `named` extracts from the telemetry of a run.
    fn telemetry_series(&self, named: impl Fn(&Telemetry) -> Vec<(String, f64)>) -> Vec<Series> {
        let mut all = Vec::new();
        for run in &self.0 {
            let mut series: Vec<Series> = Vec::new();
            for row in &run.rows {
                for (name, value) in row.telemetry.as_ref().map(&named).unwrap_or_default() {
                    let name = match self.0.len() {
                        1 => Label::from(name),
                        _ => run.name(|run| format!("{run}, {name}")),
                    };
                    let point = (row.tokens as f64, value);
                    match series.iter_mut().find(|series| series.name == name) {
                        Some(series) => series.points.push(point),
                        None => series.push(Series { name, points: vec![point] }),
                    }
                }
            }
            all.extend(series);
        }
        all
    }
}

const NATS: &str = "nats per token";

fn chart(title: &str, y_label: &str, series: Vec<Series>) -> Chart {
    Chart {
        title: title.to_owned(),
        x_label: "training tokens".to_owned(),
        y_label: y_label.to_owned(),
        series,
        reference_lines: Vec::new(),
    }
}
