//! Linear `y = x·Wᵀ`, and with merged LoRA, `y = x·(W + B·A)ᵀ`.
//!
//! The gradient of a weight is a sum over all rows. A product gives it to few cubes, so the rows
//! are taken in pieces, whose products are summed.

use super::{
    launch::{Bound, cubes_for_units, dense, dims, empty_like, position, reshaped, units},
    lora,
    sum_rows::sum_rows,
};
use crate::kernels::work::{self, Product};
use burn::backend::{TensorMetadata, ops::FloatTensorOps};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::prelude::*;
use std::ops::RangeInclusive;

/// Rows of a piece: enough for a product to be worth its launch, few enough for many pieces at a
/// time.
const ROWS_OF_A_PIECE: RangeInclusive<usize> = 128..=512;

/// `x·y`, which is counted.
pub fn product(x: CubeTensor, y: CubeTensor) -> CubeTensor {
    let (x_shape, y_shape) = (x.shape(), y.shape());
    if let ([leading @ .., rows, inner], [.., columns]) = (&x_shape[..], &y_shape[..]) {
        let batch = leading.iter().product();
        work::product(Product { batch, rows: *rows, inner: *inner, columns: *columns });
    }
    CubeBackend::float_matmul(x, y)
}

/// The last two dimensions swapped, without a copy.
pub fn transposed(x: CubeTensor) -> CubeTensor {
    CubeBackend::float_transpose(x)
}

/// `x [M, in]`, `weight [out, in]` → `[M, out]`.
pub fn forward(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
    product(x, transposed(weight))
}

/// Gradients of `x` and of `weight`, if they are wanted.
pub fn backward(x: CubeTensor, weight: CubeTensor, grad: CubeTensor, wanted: [bool; 2]) -> [Option<CubeTensor>; 2] {
    let grad_weight = wanted[1].then(|| gradient_of_weight(x, grad.clone()));
    [wanted[0].then(|| product(grad, weight)), grad_weight]
}

/// `gradᵀ·x`, `[out, in]`, of `x [M, in]` and `grad [M, out]`.
fn gradient_of_weight(x: CubeTensor, grad: CubeTensor) -> CubeTensor {
    let ([rows, input], [_, out]) = (dims(&x), dims(&grad));
    let pieces = ROWS_OF_A_PIECE.rev().find(|size| rows.is_multiple_of(*size)).map_or(1, |size| rows / size);
    if pieces == 1 {
        return product(transposed(grad), x);
    }
    let in_pieces = |x, width| reshaped(dense(x), [pieces, rows / pieces, width]);
    let parts = product(transposed(in_pieces(grad, out)), in_pieces(x, input));
    reshaped(sum_rows(reshaped(dense(parts), [pieces, out * input])), [out, input])
}

#[cube(launch)]
fn merge_kernel(weight: &[f32], a: &[f32], b: &[f32], merged: &mut [f32], count: usize, input: usize, rank: usize) {
    let at = position();
    if at < count {
        let (row, column) = (at / input, at % input);
        let mut sum = 0.0f32;
        for r in 0..rank {
            sum += b[row * rank + r] * a[r * input + column];
        }
        merged[at] = weight[at] + sum;
    }
}

/// `W + B·A`, `[out, in]`, of `a [rank, in]` and `b [out, rank]`.
pub fn merged(weight: &CubeTensor, a: &CubeTensor, b: &CubeTensor) -> CubeTensor {
    let (weight, a, b) = (dense(weight.clone()), dense(a.clone()), dense(b.clone()));
    let ([out, input], [rank, _]) = (dims(&weight), dims(&a));
    let sum = empty_like(&weight);
    let client = weight.client.clone();
    merge_kernel::launch(
        &client,
        cubes_for_units(out * input),
        units(),
        weight.bound(),
        a.bound(),
        b.bound(),
        sum.clone().bound(),
        out * input,
        input,
        rank,
    );
    sum
}

/// What the backward pass of a linear with merged LoRA keeps beside its input.
#[derive(Clone, Debug)]
pub struct Merged {
    /// `W + B·A`.
    pub weight: CubeTensor,
    pub a: CubeTensor,
    pub b: CubeTensor,
}

impl Merged {
    pub fn new([weight, a, b]: [CubeTensor; 3]) -> Self {
        Self { weight: merged(&weight, &a, &b), a, b }
    }
}

/// Gradients of `x`, `W`, `A` and `B`: those of the factors are products of that of `W`, which is
/// also that of the sum.
pub fn backward_merged(x: CubeTensor, parts: Merged, grad: CubeTensor, wanted: [bool; 4]) -> [Option<CubeTensor>; 4] {
    let Merged { weight, a, b } = parts;
    let wants_factors = wanted[2] || wanted[3];
    let [grad_x, of_sum] = backward(x, weight, grad, [wanted[0], wanted[1] || wants_factors]);
    let of_factors = of_sum.as_ref().filter(|_| wants_factors).map(|of_sum| lora::gradients(of_sum, &[[a, b]]));
    let [grad_a, grad_b] = match of_factors.and_then(|mut grads| grads.pop()) {
        Some(grads) => grads.map(Some),
        None => [None, None],
    };
    [grad_x, of_sum.filter(|_| wanted[1]), grad_a, grad_b]
}
