//! Vectors that a conversion added to a depth (`retie_config::DepthExtra`). What is absent is not computed.

use crate::kernels;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_config::{Anatomy, DepthExtra};

/// `[D]` each.
#[derive(Module, Debug)]
pub struct Extras {
    pub loop_embedding: Option<Param<Tensor<1>>>,
    pub loop_norm: Option<Param<Tensor<1>>>,
    pub attention_scale: Option<Param<Tensor<1>>>,
    pub mlp_scale: Option<Param<Tensor<1>>>,
}

impl Extras {
    /// What the depth reads: `x + γ ⊙ RMSNorm(x) + e`, `[M, D]`.
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

    /// The same without one kind.
    #[must_use]
    pub fn without(self, kind: DepthExtra) -> Self {
        match kind {
            DepthExtra::LoopEmbedding => Self { loop_embedding: None, ..self },
            DepthExtra::LoopNorm => Self { loop_norm: None, ..self },
            DepthExtra::ResidualScale => Self { attention_scale: None, mlp_scale: None, ..self },
        }
    }
}

/// What a part of the depth adds to the stream, `[M, D]`.
pub fn scaled(out: Tensor<2>, scale: &Option<Param<Tensor<1>>>) -> Tensor<2> {
    match scale {
        Some(scale) => out * scale.val().unsqueeze(),
        None => out,
    }
}
