//! Recursive gated convolution of HorNet (<https://arxiv.org/abs/2207.14284>), causal and in one
//! dimension, beside the attention of each depth of the recursion. With order `n`, width `D` and
//! `D_k = D/2^(n−1−k)`:
//!
//! ```text
//! [p₀; q₀ … q_{n−1}] = W_in x;  q ← ⅓·(causal depthwise convolution of K tokens of q)
//! p₁ = p₀ ⊙ q₀;  p_{k+1} = (W_k p_k) ⊙ q_k;  out = γ ⊙ W_out p_n
//! ```
//!
//! `x` is the input of attention, and the result is added to its output. Every product has a bias.
//! `γ` starts at 0. A cache holds the last `K − 1` rows of `q`, whatever the length of the
//! sequence.

use super::*;
use crate::{KvSharing, TensorInit};

/// Parameters of `gnconv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GnconvConfig {
    /// Number of gates, `n`.
    pub order: usize,
    /// Tokens that the convolution sees, `K`.
    pub kernel: usize,
}

impl Default for GnconvConfig {
    fn default() -> Self {
        Self { order: 3, kernel: 16 }
    }
}

/// The weight of the convolution.
const CONVOLUTION: &str = "gnconv.conv.weight";
/// Largest kernel.
const MOST: usize = 256;

impl GnconvConfig {
    /// Names of the weights and biases of the linears between the gates.
    pub const BETWEEN: [[&str; 2]; 4] = [
        ["gnconv.between.0.weight", "gnconv.between.0.bias"],
        ["gnconv.between.1.weight", "gnconv.between.1.bias"],
        ["gnconv.between.2.weight", "gnconv.between.2.bias"],
        ["gnconv.between.3.weight", "gnconv.between.3.bias"],
    ];

    /// Widths `D_0 … D_{n−1}` for hidden states of `hidden_size`.
    #[must_use]
    pub fn widths(&self, hidden_size: usize) -> Vec<usize> {
        (0..self.order).map(|k| hidden_size >> (self.order - 1 - k)).collect()
    }
}

impl StepMechanism for GnconvConfig {
    fn slot(&self) -> Slot {
        Slot::Branch
    }

    fn problems(&self, place: &Place<'_>) -> Vec<String> {
        let (Self { order, kernel }, hidden) = (self, place.model.hidden_size);
        let mut problems = Vec::new();
        let most = (hidden.trailing_zeros() as usize + 1).min(Self::BETWEEN.len() + 1);
        if !(1..=most).contains(order) {
            problems.push(format!("`order` is {order}, expected 1 to {most} for hidden states of {hidden}"));
        }
        if !(1..=MOST).contains(kernel) {
            problems.push(format!("`kernel` is {kernel}, expected 1 to {MOST}"));
        }
        if place.recursion.kv_sharing != KvSharing::RecursionWise {
            let found = place.recursion.kv_sharing;
            problems.push(format!("the model has `kv_sharing: {found}`, expected `recursion_wise`"));
        }
        if let Some(router) = &place.recursion.router {
            let kind = router.kind();
            problems.push(format!(
                "the model has `{kind}` routers, expected none: a convolution reads neighbouring tokens, and routers leave some out"
            ));
        }
        problems
    }

    fn tensors(&self, place: &Place<'_>) -> Vec<StepTensor> {
        let hidden = place.model.hidden_size;
        let widths = self.widths(hidden);
        let (sum, drawn) = (widths.iter().sum::<usize>(), place.model.drawn());
        let mut tensors = vec![
            StepTensor::weight("gnconv.in_proj.weight", &[2 * hidden, hidden], drawn),
            StepTensor::bias("gnconv.in_proj.bias", 2 * hidden),
            StepTensor::weight(
                CONVOLUTION,
                &[sum, self.kernel],
                TensorInit::Normal { std: (self.kernel as f64).powf(-0.5) },
            ),
            StepTensor::bias("gnconv.conv.bias", sum),
        ];
        for (pair, [weight, bias]) in widths.windows(2).zip(Self::BETWEEN) {
            tensors.push(StepTensor::weight(weight, &[pair[1], pair[0]], drawn));
            tensors.push(StepTensor::bias(bias, pair[1]));
        }
        tensors.push(StepTensor::weight("gnconv.out_proj.weight", &[hidden, hidden], drawn));
        tensors.push(StepTensor::bias("gnconv.out_proj.bias", hidden));
        tensors.push(StepTensor::weight("gnconv.scale", &[hidden], TensorInit::Constant(0.0)));
        tensors
    }

    fn operations(&self, place: &Place<'_>) -> f64 {
        let products = self.tensors(place).into_iter();
        let products = products.filter(|tensor| tensor.shape.len() == 2 && tensor.path != CONVOLUTION);
        products.map(|tensor| 2.0 * tensor.shape.iter().product::<usize>() as f64).sum()
    }

    fn state(&self, place: &Place<'_>) -> usize {
        (self.kernel - 1) * self.widths(place.model.hidden_size).iter().sum::<usize>()
    }
}
