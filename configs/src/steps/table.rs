//! A step table as a YAML file, for `retie insert --steps`.

use super::StepConfig;
use crate::document::{Checks, Document};
use serde::{Deserialize, Serialize};

/// The file: one row for each recursion, or one for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepTable {
    /// The rows.
    pub steps: Vec<StepConfig>,
}

impl Document for StepTable {
    fn check(&self, checks: &mut Checks) {
        if self.steps.is_empty() {
            checks.problem("steps", "`steps` is empty, expected a row for each recursion, or one for all");
        }
    }
}
