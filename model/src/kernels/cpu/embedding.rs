//! Embedding: rows of a table by id, and the gradient of the table, which is zero except for the
//! rows that were read. A bf16 table is widened.

use super::{
    readers::{Read, Readers},
    simd::Scalar,
    tensor::{bf16_values, dense, from_values, values},
};
use burn::{
    backend::{TensorMetadata, flex::FlexTensor},
    tensor::DType,
};
use rayon::prelude::*;

const ROWS_PER_TASK: usize = 64;

/// `table [V, D]`, `ids [M]` → `[M, D]`, and the ids for the backward pass.
pub fn forward(table: FlexTensor, ids: &FlexTensor) -> (FlexTensor, Vec<usize>) {
    let table = dense(table);
    let [_, width] = table.shape().dims();
    let ids = indices(ids);
    let out = match table.dtype() {
        DType::BF16 => gather(bf16_values(&table), &ids, width),
        _ => gather(values(&table), &ids, width),
    };
    (from_values(out, [ids.len(), width]), ids)
}

fn gather<T: Scalar>(table: &[T], ids: &[usize], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; ids.len() * width];
    out.par_chunks_mut(ROWS_PER_TASK * width).zip(ids.par_chunks(ROWS_PER_TASK)).for_each(|(out, ids)| {
        for (out, id) in out.chunks_exact_mut(width).zip(ids) {
            out.iter_mut().zip(&table[id * width..(id + 1) * width]).for_each(|(out, x)| *out = x.widen());
        }
    });
    out
}

/// Gradient of a table of `num_rows` rows. A row that was read more than once gets the sum, in the
/// order of the reads.
pub fn backward(ids: &[usize], num_rows: usize, grad: FlexTensor) -> FlexTensor {
    let grad = dense(grad);
    let [_, width] = grad.shape().dims();
    let (readers, grad) = (Readers::new(num_rows, std::iter::once(ids)), values(&grad));
    let mut sum = vec![0.0; num_rows * width];
    sum.par_chunks_mut(ROWS_PER_TASK * width).enumerate().for_each(|(task, sum)| {
        for (row, sum) in sum.chunks_exact_mut(width).enumerate() {
            for Read { at, .. } in readers.of(task * ROWS_PER_TASK + row) {
                let grad = &grad[*at as usize * width..][..width];
                sum.iter_mut().zip(grad).for_each(|(sum, value)| *sum += value);
            }
        }
    });
    from_values(sum, [num_rows, width])
}

/// Token ids as indices; the integer type depends on the device.
fn indices(ids: &FlexTensor) -> Vec<usize> {
    let ids = dense(ids.clone());
    let count = ids.layout().num_elements();
    match ids.dtype() {
        DType::I32 => ids.storage::<i32>()[..count].iter().map(|id| *id as usize).collect(),
        DType::I64 => ids.storage::<i64>()[..count].iter().map(|id| *id as usize).collect(),
        other => unreachable!("token ids of type {other:?}"),
    }
}
