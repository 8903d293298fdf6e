//! Schedules of mechanisms of steps that change the logits when a model gets them.

use crate::document::Checks;
use serde::{Deserialize, Serialize};

/// Schedules by mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anneal {
    /// Number of slices of sliced attention.
    pub sliced: SlicedAnneal,
}

/// The number of slices doubles in equal parts of the steps before `by`, from `from` up to the
/// model's own, which it has from `by` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlicedAnneal {
    /// Slices in the first step.
    #[serde(default = "one")]
    pub from: usize,
    /// First step with all slices.
    pub by: u64,
}

fn one() -> usize {
    1
}

impl SlicedAnneal {
    /// Number of slices in `step`, counted from 1, of a depth that ends with `groups`.
    #[must_use]
    pub fn groups_at(&self, step: u64, groups: usize) -> usize {
        if step >= self.by {
            return groups;
        }
        let stages = std::iter::successors(Some(self.from), |slices| Some(slices * 2));
        let stages: Vec<usize> = stages.take_while(|slices| *slices < groups).collect();
        let stage = (step.max(1) - 1) as usize * stages.len() / (self.by.max(2) - 1) as usize;
        stages.get(stage).copied().unwrap_or(groups)
    }
}

impl Anneal {
    pub(super) fn check(&self, num_steps: Option<u64>, checks: &mut Checks) {
        let SlicedAnneal { from, by } = self.sliced;
        checks.require(from > 0, "train.anneal.sliced.from", from, "a positive integer");
        if let Some(num_steps) = num_steps.filter(|num_steps| by > *num_steps) {
            let message = format!("`train.anneal.sliced.by` is `{by}`, but the run has {num_steps} steps");
            checks.problem("train.anneal.sliced.by", message).hint("the model has all its slices in the last step");
        }
    }
}
