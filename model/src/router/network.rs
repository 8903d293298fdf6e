//! Router network: from a token's hidden state to its logits `u`, in f32 (Mixture-of-Recursions,
//! Appendix G.1). It has one output for expert choice, and one per recursion for token choice; `O`
//! is their number.
//!
//! `linear`: `u = W·x`; with a hidden layer: `u = W·gelu(U·x)`. No biases.

use crate::{causal_lm::Table, kernels};
use burn::{
    module::Module,
    tensor::{Tensor, activation},
};
use retie_config::{RouterInput, RouterScore, TokenChoiceScore};

/// Weights of a router, for one recursion (expert choice) or for all (token choice).
#[derive(Module, Debug)]
pub struct Router {
    /// `[W, D]`, if there is a hidden layer.
    pub up_proj: Option<Table>,
    /// `[O, D]`, or `[O, W]` with a hidden layer.
    pub out_proj: Table,
}

/// Epsilon of the input normalisation, far below the mean square of hidden states. It gives a row
/// of zeros a finite logit.
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

/// Scores of expert choice, `p = α·score(u)`, elementwise.
pub(crate) fn scores(logits: Tensor<2>, score: RouterScore, alpha: f64) -> Tensor<2> {
    let scores = match score {
        RouterScore::Sigmoid => activation::sigmoid(logits),
        RouterScore::Tanh => logits.tanh(),
        RouterScore::None => logits,
    };
    scores * alpha
}

/// Scores of token choice, `p = α·score(u)`, of logits `[n, R]`.
pub(crate) fn recursion_scores(logits: Tensor<2>, score: TokenChoiceScore, alpha: f64) -> Tensor<2> {
    let scores = match score {
        TokenChoiceScore::Softmax => activation::softmax(logits, 1),
        TokenChoiceScore::Sigmoid => activation::sigmoid(logits),
    };
    scores * alpha
}
