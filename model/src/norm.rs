//! RMSNorm or LayerNorm with its weights.

use crate::kernels;
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

    /// Normalises the last dimension of `[.., N, H]`, head by head.
    pub fn forward_heads(&self, x: Tensor<4>, anatomy: &Anatomy) -> Tensor<4> {
        let shape = x.dims();
        let head_dim = shape[3];
        self.forward(x.reshape([shape.iter().product::<usize>() / head_dim, head_dim]), anatomy).reshape(shape)
    }
}

/// Norm of a depth: its own if it has one, else its layer's.
pub(crate) fn chosen<'a>(stored: &'a Option<Norm>, own: &'a Option<Norm>) -> &'a Norm {
    match own.as_ref().or(stored.as_ref()) {
        Some(norm) => norm,
        None => unreachable!("loading checks that a norm is in the layer or in the depth"),
    }
}
