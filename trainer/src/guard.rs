//! Steps whose loss or gradient is not a finite number: their text is kept, and the run ends or goes on as the policy says.

use crate::{TrainError, kept_batch::keep};
use retie_config::NonFinite;
use retie_data::Batch;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Watches the steps of a run.
#[derive(Debug)]
pub struct Guard {
    policy: NonFinite,
    /// Steps skipped since the last one that was not.
    in_a_row: u64,
}

/// What a step came to.
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

    /// Where the text of a step was put that has to be skipped; `None` if the step is sound. A rank that does not write has no `batches`.
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
        let path = keep(&run_dir.join("non-finite"), step, facts, batches)?;
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
