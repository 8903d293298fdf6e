//! Steps whose loss or gradient is not a finite number: their text is kept, and the run ends or
//! goes on as the policy says.

use crate::TrainError;
use retie_config::NonFinite;
use retie_data::Batch;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Watches the steps of a run.
#[derive(Debug)]
pub struct Guard {
    policy: NonFinite,
    /// Steps skipped since the last one that was not.
    in_a_row: u64,
}

/// Loss and gradient norm of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepValues {
    pub step: u64,
    pub loss: f64,
    pub grad_norm: f64,
}

impl Guard {
    /// A guard with nothing skipped yet.
    pub fn new(policy: NonFinite) -> Self {
        Self { policy, in_a_row: 0 }
    }

    /// Path of the kept text if the step has to be skipped; `None` if it is sound. A rank that does
    /// not write has no `batches`.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] when the run has to end.
    pub fn check(
        &mut self,
        run_dir: &Path,
        values: StepValues,
        batches: Option<&[Batch]>,
    ) -> Result<Option<PathBuf>, TrainError> {
        let StepValues { step, loss, grad_norm } = values;
        if loss.is_finite() && grad_norm.is_finite() {
            self.in_a_row = 0;
            return Ok(None);
        }
        // JSON has no numbers that are not finite.
        let facts = json!({ "loss": loss.to_string(), "grad_norm": grad_norm.to_string() });
        let path = keep_text(&run_dir.join("non-finite"), step, facts, batches)?;
        match self.policy {
            NonFinite::Skip { in_a_row } if self.in_a_row < in_a_row => {
                self.in_a_row += 1;
                Ok(Some(path))
            }
            NonFinite::Skip { .. } | NonFinite::Stop => {
                Err(TrainError::NotFinite { step, loss, grad_norm, skipped: self.in_a_row, path })
            }
        }
    }
}

/// Writes the text of a step, `folder/step-N.json`: `facts`, and the rows of the data that the step
/// read, with their token ids. Without `batches`, on a rank that does not write, only gives the
/// path.
///
/// # Errors
/// When the disk fails.
pub fn keep_text(folder: &Path, step: u64, facts: Value, batches: Option<&[Batch]>) -> Result<PathBuf, TrainError> {
    let path = folder.join(format!("step-{step}.json"));
    let Some(batches) = batches else { return Ok(path) };
    fs_err::create_dir_all(folder)?;
    let mut kept = json!({ "step": step });
    if let (Value::Object(kept), Value::Object(facts)) = (&mut kept, facts) {
        kept.extend(facts);
        let indices: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.iter().copied()).collect();
        let rows: Vec<&[u32]> = batches.iter().flat_map(Batch::row_inputs).collect();
        kept.insert("rows".to_owned(), json!(indices));
        kept.insert("token_ids".to_owned(), json!(rows));
    }
    fs_err::write(&path, format!("{kept}\n"))?;
    Ok(path)
}
