//! Sum of two matrices by factors of all or of each channel.

use super::{
    simd::vectorised,
    tensor::{from_values, values, zeros_like},
};
use burn::backend::{TensorMetadata, flex::FlexTensor};
use rayon::prelude::*;

const ROWS_PER_TASK: usize = 32;

/// Factors of every channel.
fn wide(factors: &FlexTensor, width: usize) -> Vec<f32> {
    match values(factors) {
        [factor] => vec![*factor; width],
        factors => factors.to_vec(),
    }
}

/// `f ⊙ x + g ⊙ y`: dense `x`, `y` `[M, D]`; `f`, `g` `[D]` or `[1]` each.
pub fn forward(x: &FlexTensor, y: &FlexTensor, f: &FlexTensor, g: &FlexTensor) -> FlexTensor {
    let [_, width] = x.shape().dims();
    let (f, g) = (wide(f, width), wide(g, width));
    let chunk = width * ROWS_PER_TASK;
    let mut out = zeros_like(x);
    let inputs = values(x).par_chunks(chunk).zip(values(y).par_chunks(chunk));
    out.par_chunks_mut(chunk).zip(inputs).for_each(|(out, (x, y))| {
        vectorised(
            #[inline(always)]
            || {
                for (out, (x, y)) in out.chunks_exact_mut(width).zip(x.chunks_exact(width).zip(y.chunks_exact(width))) {
                    for i in 0..width {
                        out[i] = x[i] * f[i] + y[i] * g[i];
                    }
                }
            },
        );
    });
    from_values(out, x.shape())
}

/// Gradients of `x`, `y`, `f` and `g`, of those that are wanted.
pub fn backward([x, y, f, g]: [&FlexTensor; 4], grad: &FlexTensor, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
    let of_matrix = |factors: &FlexTensor| scaled(grad, factors);
    let of_factors = |matrix: &FlexTensor, factors: &FlexTensor| {
        let sums = products(grad, matrix);
        let sums = if values(factors).len() == 1 { vec![sums.iter().sum()] } else { sums };
        from_values(sums, factors.shape())
    };
    [
        wanted[0].then(|| of_matrix(f)),
        wanted[1].then(|| of_matrix(g)),
        wanted[2].then(|| of_factors(x, f)),
        wanted[3].then(|| of_factors(y, g)),
    ]
}

/// `factors ⊙ x`.
fn scaled(x: &FlexTensor, factors: &FlexTensor) -> FlexTensor {
    let [_, width] = x.shape().dims();
    let factors = wide(factors, width);
    let chunk = width * ROWS_PER_TASK;
    let mut out = zeros_like(x);
    out.par_chunks_mut(chunk).zip(values(x).par_chunks(chunk)).for_each(|(out, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    for i in 0..width {
                        out[i] = x[i] * factors[i];
                    }
                }
            },
        );
    });
    from_values(out, x.shape())
}

/// `Σ_rows x ∘ y`, by channel.
fn products(x: &FlexTensor, y: &FlexTensor) -> Vec<f32> {
    let [_, width] = x.shape().dims();
    let chunk = width * ROWS_PER_TASK;
    let partial: Vec<Vec<f32>> = values(x)
        .par_chunks(chunk)
        .zip(values(y).par_chunks(chunk))
        .map(|(x, y)| {
            let mut sums = vec![0.0f32; width];
            vectorised(
                #[inline(always)]
                || {
                    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact(width)) {
                        for i in 0..width {
                            sums[i] += x[i] * y[i];
                        }
                    }
                },
            );
            sums
        })
        .collect();
    // Added in the order of the rows, so that the result does not depend on the number of threads.
    let mut total = vec![0.0f32; width];
    for part in &partial {
        total.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
    }
    total
}
