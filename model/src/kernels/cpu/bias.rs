//! Bias of a linear: a row that is added to every row.

use super::{
    simd::vectorised,
    tensor::{added, from_values, values, zeros_like},
};
use burn::backend::{TensorMetadata, flex::FlexTensor};
use rayon::prelude::*;

const ROWS_PER_TASK: usize = 32;

/// `x + b`: dense `x [M, D]`, `bias [D]`.
pub fn forward(x: &FlexTensor, bias: &FlexTensor) -> FlexTensor {
    let bias = values(bias);
    let width = bias.len();
    let chunk = width * ROWS_PER_TASK;
    let mut out = zeros_like(x);
    out.par_chunks_mut(chunk).zip(values(x).par_chunks(chunk)).for_each(|(out, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    for i in 0..width {
                        out[i] = x[i] + bias[i];
                    }
                }
            },
        );
    });
    from_values(out, x.shape())
}

/// Gradient of the bias: the sum over rows of `grad [M, D]`.
pub fn backward(grad: &FlexTensor) -> FlexTensor {
    let [_, width] = grad.shape().dims();
    let of_task = |grad: &[f32]| {
        let mut sums = vec![0.0f32; width];
        vectorised(
            #[inline(always)]
            || {
                for grad in grad.chunks_exact(width) {
                    for i in 0..width {
                        sums[i] += grad[i];
                    }
                }
            },
        );
        sums
    };
    let partial: Vec<Vec<f32>> = values(grad).par_chunks(width * ROWS_PER_TASK).map(of_task).collect();
    from_values(added(partial.iter().map(Vec::as_slice), width), [width])
}
