//! DoRA (<https://arxiv.org/abs/2402.09353>) on top of a linear with LoRA: `y ← y · m / n` with
//! `n = ‖W + B A‖` by row, a constant of the backward pass.
//!
//! `y [M, out]`, `m` and `n` `[out]`, `W [out, in]`, `A [rank, in]`, `B [out, rank]`.
//!
//! Rows of `W + B A` are computed panel by panel and their norms taken in f64. Expanding the
//! square, `‖W‖² + 2 B·(W Aᵀ) + (B A Aᵀ)·B`, takes as many multiply-adds (`out · in · rank`), and
//! would subtract large numbers where the LoRA update cancels most of a row. A panel takes 1 MiB.

use super::{
    matmul::{Matrix, add_product},
    simd::{LANES, vectorised},
    tensor::{added, from_values, on_host, values},
    weight::Weight,
};
use burn::{
    backend::{TensorMetadata, flex::FlexTensor},
    tensor::{Tensor, TensorData},
};
use rayon::prelude::*;

/// Elements of a panel: 1 MiB of f32.
const PANEL_ELEMENTS: usize = 1 << 18;
/// Output rows per task.
const ROWS_PER_TASK: usize = 32;

/// Factors `m / n`, `[out]`.
fn factors(magnitudes: &FlexTensor, norms: &FlexTensor) -> Vec<f32> {
    values(magnitudes).iter().zip(values(norms)).map(|(m, n)| m / n).collect()
}

/// DoRA scaling `y · m / n`.
pub fn forward(y: &FlexTensor, magnitudes: &FlexTensor, norms: &FlexTensor) -> FlexTensor {
    from_values(scaled(values(y), &factors(magnitudes, norms)), y.shape())
}

/// `x [M, out]` with column `o` multiplied by `factors[o]`.
fn scaled(x: &[f32], factors: &[f32]) -> Vec<f32> {
    let (width, mut out) = (factors.len(), vec![0.0; x.len()]);
    let chunk = width * ROWS_PER_TASK;
    out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(out, x)| {
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            out.iter_mut().zip(x).zip(factors).for_each(|((out, x), factor)| *out = x * factor);
        }
    });
    out
}

/// Gradients of `y` and `m`, where requested: `dy · m / n` and `Σ_rows (dy ∘ y) / n`.
pub fn backward(
    y: &FlexTensor,
    magnitudes: &FlexTensor,
    norms: &FlexTensor,
    grad: &FlexTensor,
    [y_wanted, magnitudes_wanted, _]: [bool; 3],
) -> [Option<FlexTensor>; 3] {
    let width = values(norms).len();
    let grad_y = y_wanted.then(|| from_values(scaled(values(grad), &factors(magnitudes, norms)), y.shape()));
    let grad_magnitudes = magnitudes_wanted.then(|| {
        let chunk = width * ROWS_PER_TASK;
        let part = |(y, grad): (&[f32], &[f32])| {
            let mut sums = vec![0.0f32; width];
            for (y, grad) in y.chunks_exact(width).zip(grad.chunks_exact(width)) {
                sums.iter_mut().zip(y).zip(grad).for_each(|((sum, y), grad)| *sum += y * grad);
            }
            sums
        };
        let parts: Vec<Vec<f32>> = values(y).par_chunks(chunk).zip(values(grad).par_chunks(chunk)).map(part).collect();
        let mut total = added(parts.iter().map(Vec::as_slice), width);
        total.iter_mut().zip(values(norms)).for_each(|(sum, norm)| *sum /= norm);
        from_values(total, magnitudes.shape())
    });
    [grad_y, grad_magnitudes, None]
}

/// DoRA norms `‖W + B A‖` by row, `[out]`; 1 for a zero row.
pub fn row_norms(weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    let device = weight.device();
    let [weight, a, b] = [weight, a, b].map(on_host);
    let ([out, input], [rank, _]) = (weight.shape().dims(), a.shape().dims());
    let rows = (PANEL_ELEMENTS / input.max(1)).max(1);
    let (a, b) = (Weight::from_tensor(&a).rows(0..rank), Weight::from_tensor(&b).rows(0..out));
    let mut norms = Vec::with_capacity(out);
    for first in (0..out).step_by(rows) {
        let range = first..(first + rows).min(out);
        let mut panel = Weight::from_tensor(&weight).rows(range.clone()).into_owned();
        let b = &b[range.start * rank..range.end * rank];
        add_product(&mut panel, Matrix::new(b, [range.len(), rank]), Matrix::new(&a, [rank, input]));
        norms.par_extend(panel.par_chunks_exact(input).map(norm));
    }
    Tensor::from_data(TensorData::new(norms, [out]), &device)
}

/// Norm of a row; 1 for a zero row.
fn norm(row: &[f32]) -> f32 {
    let squares = vectorised(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; LANES];
            let (chunks, rest) = row.as_chunks::<LANES>();
            for x in chunks {
                for i in 0..LANES {
                    lanes[i] += f64::from(x[i]) * f64::from(x[i]);
                }
            }
            lanes.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
        },
    );
    if squares == 0.0 { 1.0 } else { squares.sqrt() as f32 }
}
