//! What computes a router's logits `u` of a token from its hidden state, in f32 (Mixture-of-Recursions, Appendix G.1): one, or one for each
//! of `O` depths.
//!
//! `linear`: `u = W·x`; with a hidden layer: `u = W·gelu(U·x)`. No biases.

use crate::{causal_lm::Table, kernels};
use burn::{
    module::Module,
    tensor::{Tensor, activation},
};
use retie_config::{DepthScore, RouterInput, RouterScore};

/// The router of one recursion, or of all.
#[derive(Module, Debug)]
pub struct Router {
    /// `[W, D]`, if there is a hidden layer.
    pub up_proj: Option<Table>,
    /// `[O, D]` or `[O, W]`.
    pub out_proj: Table,
}

/// Added to the mean square, so that a row of zeros has a logit. Hidden states are far above it.
const EPS: f64 = 1e-6;

impl Router {
    /// Logits `u` of hidden states: `[n, D]` → `[n, O]`.
    pub(crate) fn logits(&self, x: Tensor<2>, input: RouterInput) -> Tensor<2> {
        let x = match input {
            RouterInput::Raw => x,
            RouterInput::Normalized => {
                let scale = (x.clone().square().mean_dim(1) + EPS).sqrt().recip();
                x * scale
            }
        };
        let x = match &self.up_proj {
            Some(up) => activation::gelu(kernels::linear(x, up.weight.val())),
            None => x,
        };
        kernels::linear(x, self.out_proj.weight.val())
    }
}

/// `p = α·score(u)`, elementwise.
pub(crate) fn scores(logits: Tensor<2>, score: RouterScore, alpha: f64) -> Tensor<2> {
    let scores = match score {
        RouterScore::Sigmoid => activation::sigmoid(logits),
        RouterScore::Tanh => logits.tanh(),
        RouterScore::None => logits,
    };
    scores * alpha
}

/// `p = α·score(u)` of logits `[n, R]`.
pub(crate) fn depth_scores(logits: Tensor<2>, score: DepthScore, alpha: f64) -> Tensor<2> {
    let scores = match score {
        DepthScore::Softmax => activation::softmax(logits, 1),
        DepthScore::Sigmoid => activation::sigmoid(logits),
    };
    scores * alpha
}
