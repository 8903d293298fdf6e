//! Rows taken out of hidden states, and what a block made of them put back (Mixture-of-Recursions, Eq. 2.1,
//! <https://arxiv.org/abs/2507.10524>).

use super::{host::DecoderOps, is_cpu, plain};
use burn::{
    backend::Dispatch,
    tensor::{Device, Int, Tensor},
};
use retie_config::Gating;
use std::sync::Arc;

/// Which rows went through a block, and what they become.
#[derive(Clone, Debug)]
pub struct Merge {
    /// Ascending, each once.
    pub rows: Arc<[usize]>,
    /// How.
    pub gating: Gating,
}

impl Merge {
    pub(super) fn indices(&self, device: &Device) -> Tensor<1, Int> {
        indices(&self.rows, device)
    }
}

fn indices(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    Tensor::from_ints(rows.as_slice(), device)
}

/// Rows of `x [M, D]` → `[k, D]`.
pub fn gather(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows = indices(rows, &x.device());
    super::embedding(x, rows)
}

/// `x [M, D]` with the rows that went through a block replaced: `y [k, D]` is what it made of them, `gate [k, 1]` their score. Other
/// rows stay as they are, bit for bit.
pub fn merge(x: Tensor<2>, y: Tensor<2>, gate: Tensor<2>, merge: Merge) -> Tensor<2> {
    if is_cpu(&x.device()) {
        let (x, y, gate) = (x.into_dispatch(), y.into_dispatch(), gate.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_merge(x, y, gate, merge))
    } else {
        plain::merge(x, y, gate, &merge)
    }
}
