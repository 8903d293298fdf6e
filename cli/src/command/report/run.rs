//! Files of a run, and curves of its metrics.

use super::named_run::NamedRun;
use anyhow::{Context, ensure};
use retie_checkpoint::Provenance;
use retie_report::{Label, Series};
use retie_trainer::{Baseline, StepRow, read_metrics};
use std::collections::BTreeSet;

/// Names of files that `retie uptrain` writes.
pub const CONFIG: &str = "config.resolved.yaml";
const METRICS: &str = "metrics.jsonl";
const BASELINE: &str = "eval/step-0.json";

/// A run, as read from its folder.
pub struct Run {
    /// Given name, or folder.
    pub id: String,
    /// Name in tables and legends.
    pub label: Label,
    pub rows: Vec<StepRow>,
    /// Held-out cross-entropy before the first step.
    pub baseline: Option<Baseline>,
    pub provenance: Option<Provenance>,
    /// The resolved configuration, YAML.
    pub config: Option<String>,
}

impl Run {
    /// Reads the folder of a run.
    ///
    /// # Errors
    /// The folder has no metrics, or one of its files is damaged.
    pub fn read(run: &NamedRun, label: Label) -> anyhow::Result<Self> {
        let folder = &run.folder;
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
            id: run.id(),
            label,
            rows: read_metrics(folder)?,
            baseline,
            provenance: Provenance::load(folder)?,
            config: config.is_file().then(|| fs_err::read_to_string(config)).transpose()?,
        })
    }

    /// Label that `name` derives from the run's; the hover text stays.
    pub fn name(&self, name: impl FnOnce(&str) -> String) -> Label {
        Label { text: name(&self.label.text), hover: self.label.hover.clone() }
    }

    /// Points (training tokens, value), without the rows that have no value.
    pub fn points(&self, value: impl Fn(&StepRow) -> Option<f64>) -> Vec<(f64, f64)> {
        self.rows.iter().filter_map(|row| Some((row.tokens as f64, value(row)?))).collect()
    }

    /// Training loss.
    pub fn loss(&self) -> Series {
        Series { name: self.label.clone(), points: self.points(|row| Some(row.loss)) }
    }

    /// Training loss and each loss term.
    pub fn terms(&self) -> Vec<Series> {
        let names: BTreeSet<&str> = self.rows.iter().flat_map(|row| row.terms.keys()).map(String::as_str).collect();
        let terms = names.into_iter().map(|name| (name, self.points(|row| row.terms.get(name).copied())));
        std::iter::once(("loss", self.points(|row| Some(row.loss))))
            .chain(terms)
            .filter(|(_, points)| !points.is_empty())
            .map(|(name, points)| Series { name: name.into(), points })
            .collect()
    }

    /// Held-out cross-entropy, starting with the measurement before the first step.
    pub fn heldout(&self) -> Series {
        let baseline = self.baseline.as_ref().map(|baseline| (0.0, baseline.heldout_cross_entropy));
        let points = baseline.into_iter().chain(self.points(|row| row.heldout_cross_entropy));
        Series { name: self.label.clone(), points: points.collect() }
    }

    /// Held-out cross-entropy of the averaged weights.
    pub fn averaged(&self) -> Series {
        let points = self.points(|row| row.averaged_heldout_cross_entropy);
        Series { name: self.name(|run| format!("{run}, averaged")), points }
    }

    /// Held-out cross-entropy of the early exits.
    pub fn exits(&self) -> Vec<Series> {
        let baseline = |index: usize| self.baseline.as_ref()?.heldout_exits.get(index).copied();
        let count = self.rows.iter().map(|row| row.heldout_exits.len()).max().unwrap_or(0);
        let series = |index: usize| {
            let start = baseline(index).map(|loss| (0.0, loss));
            let points = start.into_iter().chain(self.points(|row| row.heldout_exits.get(index).copied()));
            Series { name: self.name(|run| format!("{run}, exit {}", index + 1)), points: points.collect() }
        };
        (0..count).map(series).collect()
    }
}
