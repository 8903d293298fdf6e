//! Learned residual coefficients (`retie_config::CoefficientsConfig`).

use crate::kernels;
use burn::{module::Param, tensor::Tensor};

/// `α_i·x + α_{i+1}·addend`, or their sum without coefficients; `α [4]`.
#[must_use]
pub fn add(x: Tensor<2>, addend: Tensor<2>, coefficients: Option<&Param<Tensor<1>>>, first: usize) -> Tensor<2> {
    let Some(coefficients) = coefficients else { return kernels::add(x, addend) };
    let all = coefficients.val();
    kernels::mix([x, addend], [first, first + 1].map(|index| all.clone().narrow(0, index, 1)))
}
