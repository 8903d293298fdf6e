//! A norm with its weights.

use crate::kernels;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_config::{Anatomy, NormKind};

/// `weight [D]`, and `bias [D]` in a LayerNorm.
#[derive(Module, Debug)]
pub struct Norm {
    pub weight: Param<Tensor<1>>,
    pub bias: Option<Param<Tensor<1>>>,
}

impl Norm {
    /// `x [M, D]` → `[M, D]`.
    pub fn forward(&self, x: Tensor<2>, anatomy: &Anatomy) -> Tensor<2> {
        let (weight, eps) = (self.weight.val(), anatomy.norm_eps as f32);
        match (anatomy.norm, &self.bias) {
            (NormKind::Layer, Some(bias)) => kernels::layer_norm(x, weight, bias.val(), eps),
            (NormKind::RmsPlusOne, _) => kernels::rms_norm(x, weight + 1.0, eps),
            (NormKind::Rms | NormKind::Layer, _) => kernels::rms_norm(x, weight, eps),
        }
    }

    /// Over the last dimension of heads `[.., N, H]`.
    pub fn forward_heads(&self, x: Tensor<4>, anatomy: &Anatomy) -> Tensor<4> {
        let shape = x.dims();
        let head_dim = shape[3];
        self.forward(x.reshape([shape.iter().product::<usize>() / head_dim, head_dim]), anatomy).reshape(shape)
    }
}

/// The norm that a depth uses: its own, or that of its layer.
pub(crate) fn chosen<'a>(stored: &'a Option<Norm>, own: &'a Option<Norm>) -> &'a Norm {
    match own.as_ref().or(stored.as_ref()) {
        Some(norm) => norm,
        None => unreachable!("loading checks that a norm is in the layer or in the depth"),
    }
}
