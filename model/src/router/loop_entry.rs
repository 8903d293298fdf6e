//! Loop entry of token choice: what later recursions read of the selection before the loop.

use super::trace::Logits;
use crate::kernels::{self, RowSet};
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

    /// Entry of the given rows alone.
    pub(super) fn chosen(&self, rows: &RowSet) -> Self {
        let of_rows = |all: &[usize]| rows.host().iter().map(|row| all[*row]).collect();
        let gather = |x: &Tensor<2>| kernels::gather(x.clone(), rows);
        Self {
            hidden: gather(&self.hidden),
            logits: Logits::new(gather(&self.logits.tensor)),
            last_recursions: of_rows(&self.last_recursions),
            router_recursions: of_rows(&self.router_recursions),
        }
    }

    /// Entry of these rows, then of the others.
    pub(super) fn joined(&self, others: &Self) -> Self {
        let both = |a: &[usize], b: &[usize]| a.iter().chain(b).copied().collect();
        let cat = |a: &Tensor<2>, b: &Tensor<2>| Tensor::cat(vec![a.clone(), b.clone()], 0);
        Self {
            hidden: cat(&self.hidden, &others.hidden),
            logits: Logits::new(cat(&self.logits.tensor, &others.logits.tensor)),
            last_recursions: both(&self.last_recursions, &others.last_recursions),
            router_recursions: both(&self.router_recursions, &others.router_recursions),
        }
    }
}
