//! RMSNorm with its weight.

use crate::kernels;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};

/// `weight [D]`.
#[derive(Module, Debug)]
pub struct RmsNorm {
    pub weight: Param<Tensor<1>>,
}

impl RmsNorm {
    /// `x [M, D]` → `[M, D]`.
    pub fn forward(&self, x: Tensor<2>, eps: f64) -> Tensor<2> {
        kernels::rms_norm(x, self.weight.val(), eps as f32)
    }
}
