//! Hybrid adaptive integration of RGT (<https://arxiv.org/abs/2303.06373>): each depth of the
//! recursion gives `y + γ ⊙ x`, with `x` its input and `y` its output. `γ` starts at 0.

use super::*;
use crate::TensorInit;

/// Parameters of `hai`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HaiConfig {}

impl StepMechanism for HaiConfig {
    fn slot(&self) -> Slot {
        Slot::Transition
    }

    fn tensors(&self, place: &Place<'_>) -> Vec<StepTensor> {
        vec![StepTensor::weight("hai", &[place.model.hidden_size], TensorInit::Constant(0.0))]
    }
}
