//! No attention in the recursion, for a branch in its place: nothing of it is computed or cached.

use super::*;

/// Parameters of `none`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoAttentionConfig {}

impl StepMechanism for NoAttentionConfig {
    fn slot(&self) -> Slot {
        Slot::Attention
    }

    fn problems(&self, place: &Place<'_>) -> Vec<String> {
        let mut problems = Vec::new();
        if place.recursion.step(place.depth).is_some_and(|step| step.branch.is_none()) {
            problems.push("there is no `branch` in the place of attention, expected one in the same row".to_owned());
        }
        let is_none = |step: &StepConfig| matches!(step.attention, Some(Mechanism::NoAttention(_)));
        if place.recursion.steps.iter().all(is_none) {
            problems.push("no recursion would have attention, expected one that has".to_owned());
        }
        problems
    }

    fn keeps_logits(&self) -> bool {
        false
    }

    fn runs_attention(&self) -> bool {
        false
    }

    fn mean_keys(&self, _: f64) -> Option<f64> {
        Some(0.0)
    }

    fn cached_keys(&self, _: usize) -> Option<usize> {
        Some(0)
    }
}
