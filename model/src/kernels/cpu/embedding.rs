//! Embedding: rows of a table by id, and the gradient of the table, which is zero except for the
//! rows that were read. A bf16 table is widened.

use super::{
    simd::Scalar,
    tensor::{bf16_values, dense, from_values, values},
};
use burn::{
    backend::{TensorMetadata, flex::FlexTensor},
    tensor::DType,
};

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
    let mut out = Vec::with_capacity(ids.len() * width);
    for id in ids {
        out.extend(table[id * width..(id + 1) * width].iter().map(|x| x.widen()));
    }
    out
}

/// Gradient of a table of `num_rows` rows. A row that was read more than once gets the sum, in the
/// order of the reads.
pub fn backward(ids: &[usize], num_rows: usize, grad: FlexTensor) -> FlexTensor {
    let grad = dense(grad);
    let [_, width] = grad.shape().dims();
    let mut sum = vec![0.0; num_rows * width];
    for (id, grad) in ids.iter().zip(values(&grad).chunks_exact(width)) {
        for (sum, value) in sum[id * width..(id + 1) * width].iter_mut().zip(grad) {
            *sum += value;
        }
    }
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
