//! Fusion of exits, as MSRNet fuses scales (<https://arxiv.org/abs/2511.12810>): the state that
//! leaves a recursion is a mean of what has left this and all earlier recursions, with weights for
//! each token and each group of channels. With `h_q` the state after recursion `q`, for `r > 0`:
//!
//! ```text
//! s_{q,g} = Σ_{c in g} W_{q,c}·(h_q / rms(h_q))_c + b_{q,g};  A_{·,g} = softmax over q ≤ r
//! y = h_r + γ ⊙ (Σ_{q ≤ r} A_q ⊙ h_q − h_r)
//! ```
//!
//! The exit after the recursion reads `y`, and so does the next recursion. The reference scores
//! three scales together; here a state is scored by itself, so that an exit has those that there
//! are. All tensors start at 0: `γ = 0` is the identity, `W = b = 0` the plain mean.

use super::*;
use crate::TensorInit;

/// Parameters of `grouped_softmax`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupedSoftmaxConfig {
    /// Number of groups of channels.
    pub groups: usize,
}

impl Default for GroupedSoftmaxConfig {
    fn default() -> Self {
        Self { groups: 4 }
    }
}

impl StepMechanism for GroupedSoftmaxConfig {
    fn slot(&self) -> Slot {
        Slot::Exit
    }

    fn is_local(&self) -> bool {
        false
    }

    fn leaves_early(&self) -> bool {
        true
    }

    fn problems(&self, place: &Place<'_>) -> Vec<String> {
        let (groups, hidden) = (self.groups, place.model.hidden_size);
        let mut problems = Vec::new();
        if groups == 0 || !hidden.is_multiple_of(groups) {
            let fits = (1..=groups.max(1)).rev().find(|groups| hidden.is_multiple_of(*groups)).unwrap_or(1);
            problems.push(format!("`groups` is {groups}, expected a divisor of the hidden size {hidden}, e.g. {fits}"));
        }
        if let Err(error) = place.map.exits() {
            problems.push(format!("{error}, expected recursions that do, such as those of `cycle`"));
        }
        let fuses = |depth: &DepthAssignment| {
            let step = place.recursion.step(depth).filter(|_| depth.recursion > Some(0));
            step.is_some_and(|step| step.exit.is_some())
        };
        if !place.map.depths().iter().any(fuses) {
            problems.push("it is in the first recursion only, before which there is none, expected a later one".into());
        }
        if let Some(router) = &place.recursion.router {
            problems.push(format!(
                "the model has `{}` routers, expected none: a token that leaves the loop has no state after the recursions that it did not take",
                router.kind()
            ));
        }
        problems
    }

    fn tensors(&self, place: &Place<'_>) -> Vec<StepTensor> {
        match place.depth.recursion {
            Some(recursion) if recursion > 0 && place.ends_pass() => {
                let (hidden, zero) = (place.model.hidden_size, TensorInit::Constant(0.0));
                vec![
                    StepTensor::weight("fuse.weight", &[recursion + 1, hidden], zero),
                    StepTensor::weight("fuse.bias", &[recursion + 1, self.groups], zero),
                    StepTensor::weight("fuse.scale", &[hidden], zero),
                ]
            }
            _ => Vec::new(),
        }
    }

    /// Scores are products of elements.
    fn operations(&self, _: &Place<'_>) -> f64 {
        0.0
    }
}
