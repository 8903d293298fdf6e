//! LayerNorm over the last dimension: `y = (x − mean) / sqrt(var + ε) · w + b` (Ba et al.,
//! <https://arxiv.org/abs/1607.06450>).

use super::{simd::vectorised, tensor::added};
use rayon::prelude::*;

const ROWS_PER_TASK: usize = 32;

/// Mean and inverse standard deviation of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> [f32; 2] {
    let mean = lanes(x, |x| x) / x.len() as f32;
    let var = lanes(x, |x| (x - mean) * (x - mean)) / x.len() as f32;
    [mean, 1.0 / (var + eps).sqrt()]
}

/// Sum of `f(x)` over 16 lanes.
#[inline(always)]
fn lanes(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f(*x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| f(*x)).sum::<f32>()
}

/// `x [M, D]`; `weight`, `bias` `[D]` → `out [M, D]`.
pub fn forward(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    let chunk = width * ROWS_PER_TASK;
    out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(out, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let [mean, scale] = moments(x, eps);
                    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                        *out = (x - mean) * scale * weight + bias;
                    }
                }
            },
        );
    });
}

/// Gradients of `x` (written to `grad_x`), of `weight` and of `bias` (returned). With `r` the
/// inverse standard deviation, `n = (x − mean)·r` and `g = w∘dy`:
/// `dx = r·(g − mean(g) − n·mean(g∘n))`, `dw = Σ_rows dy∘n`, `db = Σ_rows dy`.
pub fn backward(x: &[f32], weight: &[f32], grad: &[f32], eps: f32, grad_x: &mut [f32]) -> [Vec<f32>; 2] {
    let width = weight.len();
    let chunk = width * ROWS_PER_TASK;
    let partial: Vec<[Vec<f32>; 2]> = grad_x
        .par_chunks_mut(chunk)
        .zip(x.par_chunks(chunk))
        .zip(grad.par_chunks(chunk))
        .map(|((grad_x, x), grad)| {
            let mut sums = [vec![0.0f32; width], vec![0.0f32; width]];
            vectorised(
                #[inline(always)]
                || {
                    let rows = grad_x.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(grad.chunks_exact(width));
                    for ((grad_x, x), grad) in rows {
                        backward_row(x, weight, grad, eps, grad_x, &mut sums);
                    }
                },
            );
            sums
        })
        .collect();
    [0, 1].map(|index| added(partial.iter().map(|part| part[index].as_slice()), width))
}

#[inline(always)]
fn backward_row(
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    eps: f32,
    grad_x: &mut [f32],
    [grad_weight, grad_bias]: &mut [Vec<f32>; 2],
) {
    let ([mean, scale], size) = (moments(x, eps), x.len() as f32);
    let (mut sum, mut projection) = (0.0f32, 0.0f32);
    for ((((grad_x, x), weight), grad), (grad_weight, grad_bias)) in
        grad_x.iter_mut().zip(x).zip(weight).zip(grad).zip(grad_weight.iter_mut().zip(grad_bias.iter_mut()))
    {
        let normed = (x - mean) * scale;
        *grad_x = grad * weight;
        sum += *grad_x;
        projection += *grad_x * normed;
        *grad_weight += grad * normed;
        *grad_bias += grad;
    }
    for (grad_x, x) in grad_x.iter_mut().zip(x) {
        *grad_x = scale * (*grad_x - sum / size - (x - mean) * scale * projection / size);
    }
}
