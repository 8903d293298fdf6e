//! Loop entry of token choice: what later recursions read of the selection before the loop.

use super::trace::Logits;
use burn::tensor::Tensor;
use std::sync::Arc;

/// Loop entry: the inputs of token choice and the recursion counts that were selected.
#[derive(Clone, Debug)]
pub struct LoopEntry {
    /// Hidden states at the loop's entry, `[M, D]`.
    pub hidden: Tensor<2>,
    /// Router logits, `[M, R]`.
    pub logits: Logits,
    /// Last recursion of each row.
    pub(super) last_recursions: Arc<[usize]>,
    /// Last recursion of each row by the router alone, before the warm-up changed some.
    pub(super) router_recursions: Arc<[usize]>,
}

impl LoopEntry {
    /// Copy with the same recursion counts and other tensors, for another autodiff graph.
    #[must_use]
    pub fn with(&self, hidden: Tensor<2>, logits: Logits) -> Self {
        Self { hidden, logits, ..self.clone() }
    }
}
