//! Rows written into a buffer that outlives a forward pass: keys and values into a cache.

use super::{host::DecoderOps, is_cpu, plain};
use burn::{backend::Dispatch, tensor::Tensor};
use std::{ops::Range, sync::Arc};

/// Consecutive rows, and where the first of them goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Rows of what is written.
    pub rows: Range<usize>,
    /// Row of the buffer.
    pub at: usize,
}

/// `buffer [S, D]` with the rows `values [M, D]` where `runs` say. On the CPU in place, if nothing else holds the buffer.
pub fn write_rows(buffer: Tensor<2>, values: Tensor<2>, runs: &Arc<[Run]>) -> Tensor<2> {
    if is_cpu(&buffer.device()) {
        let (buffer, values) = (buffer.into_dispatch(), values.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_write(buffer, values, runs.clone()))
    } else {
        plain::write_rows(buffer, &values, runs)
    }
}
