//! Non-linear projection after a recursion (`retie_config::NllConfig`).

use super::StepLoader;
use crate::{
    kernels::{self, RowSet},
    norm::Norm,
};
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_checkpoint::CheckpointError;
use retie_config::Activation;

/// Weights of the projection.
#[derive(Module, Debug)]
pub struct Nll {
    pub norm: Norm,
    pub up_proj: Affine,
    pub down_proj: Affine,
    /// `β₁` and `β₂`, `[2]`.
    pub scales: Param<Tensor<1>>,
}

/// Linear with a bias: `weight [out, in]`, `bias [out]`.
#[derive(Module, Debug)]
pub struct Affine {
    pub weight: Param<Tensor<2>>,
    pub bias: Param<Tensor<1>>,
}

impl Affine {
    /// `x Wᵀ + b`: `[M, in]` → `[M, out]`.
    #[must_use]
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        kernels::add_bias(kernels::linear(x, self.weight.val()), self.bias.val())
    }

    /// Depthwise convolution `b + Σ_t w_t ⊙ x[rows_t]`, with `weight [D, taps]` a filter for each
    /// channel of `x [R, D]`. `taps` has for each tap the `k` rows of `x` that it reads → `[k, D]`.
    /// Which rows these are is all that sets sequences apart from pictures, and a filter that moves
    /// by one row from one that moves by its size.
    #[must_use]
    pub fn depthwise(&self, x: &Tensor<2>, taps: impl IntoIterator<Item = RowSet>) -> Tensor<2> {
        let taps: Vec<RowSet> = taps.into_iter().collect();
        kernels::depthwise(x.clone(), self.weight.val(), self.bias.val(), &taps)
    }
}

impl Nll {
    pub(super) fn load(from: &StepLoader<'_>) -> Result<Option<Self>, CheckpointError> {
        let Some(weight) = from.optional("nll.norm.weight")? else { return Ok(None) };
        Ok(Some(Self {
            norm: Norm { weight, bias: Some(from.param("nll.norm.bias")?) },
            up_proj: Affine { weight: from.param("nll.up_proj.weight")?, bias: from.param("nll.up_proj.bias")? },
            down_proj: Affine { weight: from.param("nll.down_proj.weight")?, bias: from.param("nll.down_proj.bias")? },
            scales: from.param("nll.scales")?,
        }))
    }

    /// `β₁·y + β₂·(W₂ GELU(W₁ LayerNorm(y) + b₁) + b₂)`: `[M, D]` → `[M, D]`.
    #[must_use]
    pub fn forward(&self, y: Tensor<2>, eps: f32) -> Tensor<2> {
        let normed = match &self.norm.bias {
            Some(bias) => kernels::layer_norm(y.clone(), self.norm.weight.val(), bias.val(), eps),
            None => unreachable!("loading reads the bias"),
        };
        let inner = kernels::activation(self.up_proj.forward(normed), Activation::Gelu);
        let projected = self.down_proj.forward(inner);
        let scales = self.scales.val();
        kernels::mix([y, projected], [0, 1].map(|index| scales.clone().narrow(0, index, 1)))
    }
}
