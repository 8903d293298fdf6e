//! Extras of a depth: vectors that a conversion added (`retie_config::DepthExtra`). Absent ones
//! are not computed.

use crate::kernels;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_config::{Anatomy, DepthExtra};

/// Extras of one depth, `[D]` each.
#[derive(Module, Debug)]
pub struct Extras {
    pub loop_embedding: Option<Param<Tensor<1>>>,
    pub loop_norm: Option<Param<Tensor<1>>>,
    pub attention_scale: Option<Param<Tensor<1>>>,
    pub mlp_scale: Option<Param<Tensor<1>>>,
}

impl Extras {
    /// Input of the depth: `x + γ ⊙ RMSNorm(x) + e`, `[M, D]`.
    pub fn enter(&self, x: Tensor<2>, anatomy: &Anatomy) -> Tensor<2> {
        let x = match &self.loop_norm {
            Some(weight) => kernels::add(x.clone(), kernels::rms_norm(x, weight.val(), anatomy.norm_eps as f32)),
            None => x,
        };
        match &self.loop_embedding {
            Some(embedding) => x + embedding.val().unsqueeze(),
            None => x,
        }
    }

    /// True if [`Extras::enter`] changes its input.
    #[must_use]
    pub fn change_input(&self) -> bool {
        self.loop_norm.is_some() || self.loop_embedding.is_some()
    }

    /// Extras without those of one kind.
    #[must_use]
    pub fn without(self, kind: DepthExtra) -> Self {
        match kind {
            DepthExtra::LoopEmbedding => Self { loop_embedding: None, ..self },
            DepthExtra::LoopNorm => Self { loop_norm: None, ..self },
            DepthExtra::ResidualScale => Self { attention_scale: None, mlp_scale: None, ..self },
        }
    }
}

/// Residual scale: `out [M, D]` times `scale`, if there is one.
pub fn scaled(out: Tensor<2>, scale: &Option<Param<Tensor<1>>>) -> Tensor<2> {
    match scale {
        Some(scale) => out * scale.val().unsqueeze(),
        None => out,
    }
}
