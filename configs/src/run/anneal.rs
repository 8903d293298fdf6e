//! Schedules of mechanisms of steps that change the logits when a model gets them.

use crate::document::Checks;
use serde::{Deserialize, Serialize};

/// Schedules by mechanism.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Anneal {
    /// Number of slices of sliced attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sliced: Option<Doubling>,
    /// Tokens of a coarse token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Doubling>,
}

/// A number that doubles in equal parts of the steps before `by`, from `from` up to the model's
/// own, which it is from `by` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Doubling {
    /// The number in the first step.
    #[serde(default = "one")]
    pub from: usize,
    /// First step with the model's own.
    pub by: u64,
}

fn one() -> usize {
    1
}

impl Doubling {
    /// The number in `step`, counted from 1, that ends as `last`.
    #[must_use]
    pub fn at(&self, step: u64, last: usize) -> usize {
        if step >= self.by {
            return last;
        }
        let stages = std::iter::successors(Some(self.from), |number| Some(number * 2));
        let stages: Vec<usize> = stages.take_while(|number| *number < last).collect();
        let stage = (step.max(1) - 1) as usize * stages.len() / (self.by.max(2) - 1) as usize;
        stages.get(stage).copied().unwrap_or(last)
    }

    fn check(&self, key: &str, what: &str, num_steps: Option<u64>, checks: &mut Checks) {
        let Self { from, by } = *self;
        let at = |part: &str| format!("train.anneal.{key}.{part}");
        checks.require(from > 0, at("from"), from, "a positive integer");
        if let Some(num_steps) = num_steps.filter(|num_steps| by > *num_steps) {
            let message = format!("`{}` is `{by}`, but the run has {num_steps} steps", at("by"));
            checks.problem(at("by"), message).hint(format!("the model has {what} in the last step"));
        }
    }
}

impl Anneal {
    /// Schedules, with the mechanism of each.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, Doubling)> {
        let all = [("sliced", self.sliced), ("resolution", self.resolution)];
        all.into_iter().filter_map(|(name, schedule)| Some((name, schedule?)))
    }

    pub(super) fn check(&self, num_steps: Option<u64>, checks: &mut Checks) {
        for (name, schedule) in self.each() {
            let what = if name == "sliced" { "all its slices" } else { "its own resolution" };
            schedule.check(name, what, num_steps, checks);
        }
        if self.each().next().is_none() {
            checks.problem("train.anneal", "`train.anneal` is empty, expected `sliced` or `resolution`");
        }
    }
}
