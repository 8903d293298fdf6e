//! RMSNorm or LayerNorm with its weights.

use crate::{at_depths::AtDepths, kernels};
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_config::{Anatomy, NormKind};

/// Weights of a norm: `weight [D]`, and `bias [D]` for LayerNorm.
#[derive(Module, Debug)]
pub struct Norm {
    pub weight: Param<Tensor<1>>,
    pub bias: Option<Param<Tensor<1>>>,
}

impl Norm {
    /// Normalises rows: `x [M, D]` → `[M, D]`.
    pub fn forward(&self, x: Tensor<2>, anatomy: &Anatomy) -> Tensor<2> {
        let (weight, eps) = (self.weight.val(), anatomy.norm_eps as f32);
        match (anatomy.norm, &self.bias) {
            (NormKind::Layer, Some(bias)) => kernels::layer_norm(x, weight, bias.val(), eps),
            (NormKind::RmsPlusOne, _) => kernels::rms_norm(x, weight + 1.0, eps),
            (NormKind::Layer, None) => unreachable!("loading checks that a LayerNorm has its bias"),
            (NormKind::Rms, _) => kernels::rms_norm(x, weight, eps),
        }
    }

    /// Weight of an RMSNorm, `[D]`; `None` for a LayerNorm.
    pub fn rms_weight(&self, anatomy: &Anatomy) -> Option<Tensor<1>> {
        match anatomy.norm {
            NormKind::Layer => None,
            NormKind::RmsPlusOne => Some(self.weight.val() + 1.0),
            NormKind::Rms => Some(self.weight.val()),
        }
    }

    /// Normalises the channels of each head of `[M, heads·H]` by themselves.
    pub fn forward_heads(&self, x: Tensor<2>, head_dim: usize, anatomy: &Anatomy) -> Tensor<2> {
        let [rows, width] = x.dims();
        self.forward(x.reshape([rows * width / head_dim, head_dim]), anatomy).reshape([rows, width])
    }
}

/// `x` with `apply` of the norm of each depth: its own if it has one, else its layer's.
pub(crate) fn normalised(
    x: Tensor<2>,
    stored: &Option<Norm>,
    own: &AtDepths<'_, Option<Norm>>,
    apply: impl Fn(&Norm, Tensor<2>) -> Tensor<2>,
) -> Tensor<2> {
    match stored {
        Some(stored) if !own.any(Option::is_some) => apply(stored, x),
        _ => own.each(x, |own, x| match own.as_ref().or(stored.as_ref()) {
            Some(norm) => apply(norm, x),
            None => unreachable!("loading checks that a norm is in the layer or in the depth"),
        }),
    }
}
