//! Hybrid adaptive integration (`retie_config::HaiConfig`).

use crate::kernels;
use burn::{module::Param, tensor::Tensor};

/// `y + γ ⊙ x`: `x`, `y` `[M, D]`, `γ [D]`.
#[must_use]
pub fn integrate(x: Tensor<2>, y: Tensor<2>, factors: &Param<Tensor<1>>) -> Tensor<2> {
    let one = Tensor::ones([1], &y.device());
    kernels::mix([y, x], [one, factors.val()])
}
