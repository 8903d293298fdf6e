//! RMSNorm over the last dimension: `y = x / sqrt(mean(x²) + ε) · w` (Zhang & Sennrich,
//! <https://arxiv.org/abs/1910.07467>).

use super::{
    simd::{dot, dot3, vectorised},
    tensor::added,
};
use rayon::prelude::*;

const ROWS_PER_TASK: usize = 32;

/// `x [M, D]`, `weight [D]` → `out [M, D]`.
pub fn forward(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    let chunk = width * ROWS_PER_TASK;
    out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(out, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let scale = inverse_rms(x, eps);
                    for i in 0..width {
                        out[i] = x[i] * scale * weight[i];
                    }
                }
            },
        );
    });
}

/// Gradients of `x` (written to `grad_x`) and of `weight` (returned). With `r` the inverse RMS:
/// `dx = r·(w∘dy) − x·r³/D·Σ(w∘dy∘x)`, `dw = Σ_rows r·(dy∘x)`.
pub fn backward(x: &[f32], weight: &[f32], grad: &[f32], eps: f32, grad_x: &mut [f32]) -> Vec<f32> {
    let width = weight.len();
    let chunk = width * ROWS_PER_TASK;
    let partial: Vec<Vec<f32>> = grad_x
        .par_chunks_mut(chunk)
        .zip(x.par_chunks(chunk))
        .zip(grad.par_chunks(chunk))
        .map(|((grad_x, x), grad)| {
            let mut grad_weight = vec![0.0f32; width];
            vectorised(
                #[inline(always)]
                || {
                    let rows = grad_x.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(grad.chunks_exact(width));
                    for ((grad_x, x), grad) in rows {
                        let scale = inverse_rms(x, eps);
                        let projection = dot3(x, grad, weight) * scale * scale * scale / width as f32;
                        for i in 0..width {
                            grad_weight[i] += grad[i] * x[i] * scale;
                            grad_x[i] = grad[i] * weight[i] * scale - x[i] * projection;
                        }
                    }
                },
            );
            grad_weight
        })
        .collect();
    added(partial.iter().map(Vec::as_slice), width)
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}
