//! Depthwise convolution over rows: each tap reads its own rows, and each channel has its own
//! filter.

use super::{
    readers::{Read, Readers},
    simd::vectorised,
    tensor::{from_values, values},
};
use crate::kernels::rows::Taps;
use burn::backend::{TensorMetadata, flex::FlexTensor};
use rayon::prelude::*;

const ROWS_PER_TASK: usize = 32;

/// `[rows, columns]` → `[columns, rows]`.
fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// `sum += factors ⊙ x`.
#[inline(always)]
fn add_product(sum: &mut [f32], factors: &[f32], x: &[f32]) {
    let (factors, x) = (&factors[..sum.len()], &x[..sum.len()]);
    for i in 0..sum.len() {
        sum[i] += factors[i] * x[i];
    }
}

/// `b + Σ_t w_t ⊙ x[rows_t]`: dense `x [R, D]`, `weight [D, taps]`, `bias [D]` → `[k, D]`.
pub fn forward(x: &FlexTensor, weight: &FlexTensor, bias: &FlexTensor, taps: &Taps) -> FlexTensor {
    let (x, bias) = (values(x), values(bias));
    let (width, filters) = (bias.len(), transposed(values(weight), taps.len()));
    let num_rows = taps.num_rows();
    let mut out = vec![0.0; num_rows * width];
    out.par_chunks_mut(ROWS_PER_TASK * width).enumerate().for_each(|(task, out)| {
        vectorised(
            #[inline(always)]
            || {
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    out.copy_from_slice(bias);
                    for (rows, filter) in taps.iter().zip(filters.chunks_exact(width)) {
                        let from = rows[task * ROWS_PER_TASK + row] * width;
                        add_product(out, filter, &x[from..from + width]);
                    }
                }
            },
        );
    });
    from_values(out, [num_rows, width])
}

/// Gradients of `x`, `weight` and `bias`, of those that are wanted.
pub fn backward(
    x: &FlexTensor,
    weight: &FlexTensor,
    taps: &Taps,
    grad: &FlexTensor,
    wanted: [bool; 3],
) -> [Option<FlexTensor>; 3] {
    let [num_sources, width] = x.shape().dims();
    let (x, weight, grad) = (values(x), values(weight), values(grad));
    let of_x =
        || from_values(grad_x(num_sources, &transposed(weight, taps.len()), taps, grad, width), [num_sources, width]);
    let of_weight = || {
        let of_tap = |rows: &std::sync::Arc<[usize]>| {
            let mut sum = vec![0.0f32; width];
            vectorised(
                #[inline(always)]
                || {
                    for (from, grad) in rows.iter().zip(grad.chunks_exact(width)) {
                        add_product(&mut sum, grad, &x[from * width..][..width]);
                    }
                },
            );
            sum
        };
        let sums: Vec<f32> = taps.par_iter().map(of_tap).collect::<Vec<_>>().concat();
        from_values(transposed(&sums, width), [width, taps.len()])
    };
    let of_bias = || {
        let mut sum = vec![0.0f32; width];
        for grad in grad.chunks_exact(width) {
            sum.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
        }
        from_values(sum, [width])
    };
    [wanted[0].then(of_x), wanted[1].then(of_weight), wanted[2].then(of_bias)]
}

/// Each row gets the gradients of what has read it, tap by tap.
fn grad_x(num_sources: usize, filters: &[f32], taps: &Taps, grad: &[f32], width: usize) -> Vec<f32> {
    let readers = Readers::new(num_sources, taps.iter().map(|rows| &**rows));
    let mut out = vec![0.0; num_sources * width];
    out.par_chunks_mut(width * ROWS_PER_TASK).enumerate().for_each(|(task, out)| {
        vectorised(
            #[inline(always)]
            || {
                for (row, out) in out.chunks_exact_mut(width).enumerate() {
                    for Read { gather, at } in readers.of(task * ROWS_PER_TASK + row) {
                        let filter = &filters[*gather as usize * width..][..width];
                        add_product(out, filter, &grad[*at as usize * width..][..width]);
                    }
                }
            },
        );
    });
    out
}
