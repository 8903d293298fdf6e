//! Sum of two matrices by factors of all or of each channel.

use super::{
    simd::vectorised,
    tensor::{added, from_values, values, zeros_like},
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

/// Gradients of `x`, `y`, `f` and `g`, of those that are wanted, in one pass over the rows.
pub fn backward([x, y, f, g]: [&FlexTensor; 4], grad: &FlexTensor, wanted: [bool; 4]) -> [Option<FlexTensor>; 4] {
    let [_, width] = x.shape().dims();
    let factors = [wide(f, width), wide(g, width)];
    let chunk = width * ROWS_PER_TASK;
    // A matrix with a factor of 1 has the gradient of the sum.
    let scales = [(wanted[0], f), (wanted[1], g)].map(|(wanted, factors)| wanted && values(factors) != [1.0]);
    let [mut grad_x, mut grad_y] = scales.map(|scales| if scales { zeros_like(x) } else { Vec::new() });
    let num_tasks = values(x).len().div_ceil(chunk);
    let outputs = parts(&mut grad_x, chunk, num_tasks).into_par_iter().zip(parts(&mut grad_y, chunk, num_tasks));
    let inputs = values(grad).par_chunks(chunk).zip(values(x).par_chunks(chunk).zip(values(y).par_chunks(chunk)));
    let partial: Vec<[Vec<f32>; 2]> = outputs
        .zip(inputs)
        .map(|((grad_x, grad_y), (grad, (x, y)))| {
            let side = |index: usize, out: &mut [f32], matrix: &[f32]| {
                let mut sums = vec![0.0f32; if wanted[2 + index] { width } else { 0 }];
                vectorised(
                    #[inline(always)]
                    || rows(grad, matrix, &factors[index], out, &mut sums),
                );
                sums
            };
            [side(0, grad_x, x), side(1, grad_y, y)]
        })
        .collect();
    let of_factors = |index: usize, factors: &FlexTensor| {
        let total = added(partial.iter().map(|part| part[index].as_slice()), width);
        let total = if values(factors).len() == 1 { vec![total.iter().sum()] } else { total };
        from_values(total, factors.shape())
    };
    let of_matrix = |scaled: Vec<f32>| if scaled.is_empty() { grad.clone() } else { from_values(scaled, x.shape()) };
    [
        wanted[0].then(|| of_matrix(grad_x)),
        wanted[1].then(|| of_matrix(grad_y)),
        wanted[2].then(|| of_factors(0, f)),
        wanted[3].then(|| of_factors(1, g)),
    ]
}

/// The parts of `x` that the tasks write; nothing for each where `x` is empty.
fn parts(x: &mut [f32], chunk: usize, count: usize) -> Vec<&mut [f32]> {
    let mut parts: Vec<&mut [f32]> = x.chunks_mut(chunk).collect();
    parts.resize_with(count, Default::default);
    parts
}

/// Writes `factors ⊙ grad` to `out`, unless that is empty, and adds `grad ∘ matrix` to `sums`,
/// unless these are.
#[inline(always)]
fn rows(grad: &[f32], matrix: &[f32], factors: &[f32], out: &mut [f32], sums: &mut [f32]) {
    let width = factors.len();
    for (row, (grad, matrix)) in grad.chunks_exact(width).zip(matrix.chunks_exact(width)).enumerate() {
        if let Some(out) = out.get_mut(row * width..(row + 1) * width) {
            for i in 0..width {
                out[i] = grad[i] * factors[i];
            }
        }
        if sums.len() == width {
            for i in 0..width {
                sums[i] += grad[i] * matrix[i];
            }
        }
    }
}
