//! Row selections: rows of a matrix that an operation reads or writes.

use burn::tensor::{Device, Int, Tensor};
use retie_config::Gating;
use std::{ops::Range, sync::Arc};

/// Rows that went through a block, and the gating that combines its output with its input
/// (Mixture-of-Recursions, Eq. 2.1, <https://arxiv.org/abs/2507.10524>).
#[derive(Clone, Debug)]
pub struct Merge {
    /// Selected rows, ascending, without duplicates.
    pub rows: Arc<[usize]>,
    /// Gating of the output.
    pub gating: Gating,
}

impl Merge {
    pub(super) fn indices(&self, device: &Device) -> Tensor<1, Int> {
        row_indices(&self.rows, device)
    }
}

/// Copy of consecutive rows into a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowCopy {
    /// Source rows.
    pub rows: Range<usize>,
    /// First destination row in the buffer.
    pub at: usize,
}

/// LoRA of consecutive rows: `a [rank, in]`, `b [out, rank]`.
#[derive(Clone, Debug)]
pub struct RowsLora {
    /// Rows that it corrects.
    pub rows: Range<usize>,
    /// Factor `A`.
    pub a: Tensor<2>,
    /// Factor `B`.
    pub b: Tensor<2>,
}

/// Row numbers on a device, `[k]`.
pub(super) fn row_indices(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    Tensor::from_ints(rows.as_slice(), device)
}
