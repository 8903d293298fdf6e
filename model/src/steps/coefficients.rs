//! Learned residual coefficients (`retie_config::CoefficientsConfig`).

use crate::kernels;
use burn::{module::Param, tensor::Tensor};

/// `α_i·x + α_{i+1}·addend`, or their sum without coefficients; `α [4]`.
#[must_use]
pub fn add(x: Tensor<2>, addend: Tensor<2>, coefficients: Option<&Param<Tensor<1>>>, first: usize) -> Tensor<2> {
    let Some(coefficients) = coefficients else { return kernels::add(x, addend) };
    let all = coefficients.val();
    let factor = |index: usize| all.clone().narrow(0, index, 1).unsqueeze::<2>();
    kernels::add(x * factor(first), addend * factor(first + 1))
}
