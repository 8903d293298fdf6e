//! Row copies into a buffer, in place unless something else holds it.

use super::tensor::{dense, from_values, values};
use crate::kernels::RowCopy;
use burn::backend::{TensorMetadata, flex::FlexTensor};

/// `buffer [S, D]` with rows of `rows [M, D]` copied into it.
pub fn forward(buffer: FlexTensor, rows: FlexTensor, runs: &[RowCopy]) -> FlexTensor {
    let (mut buffer, rows) = (dense(buffer), dense(rows));
    let [_, width] = buffer.shape().dims();
    let rows = values(&rows);
    let out = buffer.storage_mut::<f32>();
    for RowCopy { rows: from, at } in runs {
        let from = &rows[from.start * width..from.end * width];
        out[at * width..][..from.len()].copy_from_slice(from);
    }
    buffer
}

/// Gradients of the buffer, `[S, D]`, and of the `num_rows` rows, `[M, D]`.
pub fn backward(runs: &[RowCopy], num_rows: usize, grad: FlexTensor) -> [Option<FlexTensor>; 2] {
    let grad = dense(grad);
    let [_, width] = grad.shape().dims();
    let mut of_buffer = values(&grad).to_vec();
    let mut of_rows = vec![0.0; num_rows * width];
    for RowCopy { rows: from, at } in runs {
        let written = &mut of_buffer[at * width..][..from.len() * width];
        of_rows[from.start * width..from.end * width].copy_from_slice(written);
        written.fill(0.0);
    }
    [Some(from_values(of_buffer, grad.shape())), Some(from_values(of_rows, [num_rows, width]))]
}
