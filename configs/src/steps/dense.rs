//! Dense feedback: recursion `r` begins with `h_r + Σ_{q ≤ r} a_q·h_q`, where `h_q` is the hidden
//! state that recursion `q` was given (before its own feedback). All `a_q` start at 0.
//!
//! The recursions of MSRNet (<https://arxiv.org/abs/2511.12810>) read all coarser outputs and not
//! the last one alone; the learned weights are those of DenseFormer
//! (<https://arxiv.org/abs/2402.02622>), less 1 for the last.

use super::*;
use crate::TensorInit;

/// Parameters of `dense`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseConfig {}

impl StepMechanism for DenseConfig {
    fn slot(&self) -> Slot {
        Slot::Transition
    }

    fn is_local(&self) -> bool {
        false
    }

    fn problems(&self, place: &Place<'_>) -> Vec<String> {
        let routed = place.recursion.router.as_ref().map(|router| {
            format!(
                "the model has `{}` routers, expected none: a token that leaves the loop has no state after the recursions that it did not take",
                router.kind()
            )
        });
        routed.into_iter().collect()
    }

    fn tensors(&self, place: &Place<'_>) -> Vec<StepTensor> {
        match place.depth.recursion {
            Some(recursion) if recursion > 0 && place.begins_pass() => {
                vec![StepTensor::weight("dense", &[recursion + 1], TensorInit::Constant(0.0))]
            }
            _ => Vec::new(),
        }
    }
}
