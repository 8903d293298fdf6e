//! Loggers: files that the rows of a run go to. `metrics.jsonl` is always written and is the record
//! that resuming, reports and plots read; the others have the same rows. When a run is resumed,
//! rows of later steps than its checkpoint's are dropped from each of them.

mod csv;
mod jsonl;
mod row;
mod tensorboard;

pub use jsonl::read_metrics;
pub use row::{Baseline, HeldoutRouting, StepRow};

use crate::TrainError;
use jsonl::Jsonl;
use retie_config::{LoggerKind, RunConfig};
use serde_json::Value;
use std::path::Path;

/// A place for the rows of a run.
pub trait Logger {
    /// The held-out losses before the first step.
    ///
    /// # Errors
    /// When they cannot be written.
    fn baseline(&mut self, _baseline: &Baseline) -> Result<(), TrainError> {
        Ok(())
    }

    /// A step that is done.
    ///
    /// # Errors
    /// When it cannot be written.
    fn step(&mut self, row: &StepRow) -> Result<(), TrainError>;
}

/// A logger that writes a file in the run's folder, beside `metrics.jsonl`.
trait FileLogger: Logger + Sized {
    /// Opens the file of a run of which `step` steps are done, and drops what it has of later
    /// steps. A file that is not there gets `rows`, those of the steps that are done.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is none of this program.
    fn open(run_dir: &Path, step: u64, rows: &[StepRow]) -> Result<Self, TrainError>;
}

macro_rules! dispatch {
    ($($(#[$doc:meta])* $module:ident => $variant:ident,)+) => {
        /// The logger `kind`; `None` for the console, which is the caller's, by events.
        fn open(
            kind: LoggerKind,
            run_dir: &Path,
            step: u64,
            rows: &[StepRow],
        ) -> Result<Option<Box<dyn Logger>>, TrainError> {
            Ok(match kind {
                LoggerKind::Console => None,
                $(LoggerKind::$variant => Some(Box::new($module::$variant::open(run_dir, step, rows)?)),)+
            })
        }
    };
}
retie_config::for_each_file_logger!(dispatch);

/// The files of a run.
pub struct Loggers(Vec<Box<dyn Logger>>);

impl Loggers {
    /// Opens the files of a run of which `step` steps are done, and gives their rows. A file that
    /// is not there though there are rows gets them.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is none of this program.
    pub fn open(run: &RunConfig, step: u64) -> Result<(Self, Vec<StepRow>), TrainError> {
        let (jsonl, rows) = Jsonl::open(&run.dir, step)?;
        let mut loggers: Vec<Box<dyn Logger>> = vec![Box::new(jsonl)];
        for kind in &run.loggers {
            loggers.extend(open(*kind, &run.dir, step, &rows)?);
        }
        Ok((Self(loggers), rows))
    }
}

impl Logger for Loggers {
    fn baseline(&mut self, baseline: &Baseline) -> Result<(), TrainError> {
        self.0.iter_mut().try_for_each(|logger| logger.baseline(baseline))
    }

    fn step(&mut self, row: &StepRow) -> Result<(), TrainError> {
        self.0.iter_mut().try_for_each(|logger| logger.step(row))
    }
}

/// Every number of a row but that of its step, under its path in `metrics.jsonl`; entries of lists
/// are counted from 1.
fn columns(row: &StepRow) -> Result<Vec<(String, f64)>, serde_json::Error> {
    fn walk(path: String, value: &Value, columns: &mut Vec<(String, f64)>) {
        match value {
            Value::Object(entries) => entries.iter().for_each(|(key, x)| walk(format!("{path}.{key}"), x, columns)),
            Value::Array(items) => {
                (1..).zip(items).for_each(|(index, x)| walk(format!("{path}.{index}"), x, columns));
            }
            other => columns.extend(other.as_f64().map(|number| (path, number))),
        }
    }
    let mut columns = Vec::new();
    if let Value::Object(row) = serde_json::to_value(row)? {
        row.iter().filter(|(key, _)| *key != "step").for_each(|(key, value)| walk(key.clone(), value, &mut columns));
    }
    Ok(columns)
}

/// Puts `bytes` in the place of a file, whole.
///
/// # Errors
/// The disk fails or is full; the file is as it was.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".partial");
    fs_err::write(&temporary, bytes)?;
    Ok(fs_err::rename(&temporary, path)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::objective::Telemetry;

    /// A row of step `step`; every third one is measured.
    pub fn row(step: u64) -> StepRow {
        let telemetry = Telemetry {
            hidden_norm: vec![10.5, 12.25],
            cosine: vec![0.75],
            grad_norm: [("lora".to_owned(), 0.5)].into(),
        };
        StepRow {
            step,
            loss: 3.5 - step as f64 * 0.125,
            cross_entropy: Some(4.25),
            terms: [("distill".to_owned(), 1.125)].into(),
            routing: None,
            heldout_routing: None,
            lr: 1e-10,
            grad_norm: 1.5,
            tokens: step * 64,
            loss_spikes: 0,
            heldout_cross_entropy: step.is_multiple_of(3).then_some(2.5),
            averaged_heldout_cross_entropy: None,
            heldout_exits: if step.is_multiple_of(3) { vec![2.75] } else { Vec::new() },
            telemetry: step.is_multiple_of(2).then_some(telemetry),
            seconds: 0.5,
            tokens_per_second: 128.0,
        }
    }

    #[test]
    fn the_columns_are_the_paths_of_the_numbers_of_a_row() {
        let columns = columns(&row(6)).unwrap();
        let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "loss",
                "cross_entropy",
                "terms.distill",
                "lr",
                "grad_norm",
                "tokens",
                "loss_spikes",
                "heldout_cross_entropy",
                "heldout_exits.1",
                "telemetry.hidden_norm.1",
                "telemetry.hidden_norm.2",
                "telemetry.cosine.1",
                "telemetry.grad_norm.lora",
                "seconds",
                "tokens_per_second"
            ]
        );
        let values: Vec<f64> = columns.iter().map(|(_, value)| *value).collect();
        let expected = [2.75, 4.25, 1.125, 1e-10, 1.5, 384.0, 0.0, 2.5, 2.75, 10.5, 12.25, 0.75, 0.5, 0.5, 128.0];
        assert_eq!(values, expected);
    }
}
