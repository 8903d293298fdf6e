//! Learned residual coefficients of SReT (<https://arxiv.org/abs/2111.05297>): each depth of the
//! recursion computes
//!
//! ```text
//! u = α₁·x + α₂·attention(norm(x));  y = α₃·u + α₄·mlp(norm(u))
//! ```
//!
//! The reference shares `α` between the uses of a layer; here each depth has its own.

use super::*;
use crate::TensorInit;

/// Parameters of `coefficients`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoefficientsConfig {}

impl StepMechanism for CoefficientsConfig {
    fn slot(&self) -> Slot {
        Slot::Transition
    }

    fn tensors(&self, _: &Place<'_>) -> Vec<StepTensor> {
        vec![StepTensor::weight("coefficients", &[4], TensorInit::Constant(1.0))]
    }
}
