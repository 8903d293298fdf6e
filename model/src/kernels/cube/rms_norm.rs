//! RMSNorm over the last dimension: `y = x / sqrt(mean(x²) + ε) · w` (Zhang & Sennrich,
//! <https://arxiv.org/abs/1910.07467>), alone and with the residual connection before it. A row is
//! a cube's; its gradient is too, and the cube adds up the gradients of the weight of [`ROWS`]
//! rows. The gradient that the residual stream has of its own is added where that of the norm is
//! made.

use super::{
    launch::{Bound, UNITS, cubes, dense, dims, empty, empty_like, sum_of_cube, units},
    sum_rows::sum_rows,
};
use burn::backend::TensorMetadata;
use burn_cubecl::{ops::numeric::zeros_client, tensor::CubeTensor};
use cubecl::prelude::*;

/// Rows of a cube in the backward pass.
const ROWS: usize = 16;

#[cube]
fn inverse_rms(x: &[f32], start: usize, width: usize, eps: f32, scratch: &mut Shared<[f32]>) -> f32 {
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let value = x[start + i];
        sum += value * value;
        i += comptime!(UNITS);
    }
    let mean = sum_of_cube(sum, scratch) / f32::cast_from(width as u32);
    1.0f32 / (mean + eps).sqrt()
}

#[cube(launch)]
fn rms_norm_kernel(x: &[f32], weight: &[f32], out: &mut [f32], rows: usize, width: usize, eps: f32) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut scratch = Shared::new_slice(comptime!(UNITS));
    let start = row * width;
    let scale = inverse_rms(x, start, width, eps, &mut scratch);
    let mut i = UNIT_POS as usize;
    while i < width {
        out[start + i] = x[start + i] * scale * weight[i];
        i += comptime!(UNITS);
    }
}

/// Writes the sum of `x` and `y`, and normalises it.
#[cube(launch)]
fn add_rms_norm_kernel(
    x: &[f32],
    y: &[f32],
    weight: &[f32],
    sum: &mut [f32],
    out: &mut [f32],
    rows: usize,
    width: usize,
    eps: f32,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut scratch = Shared::new_slice(comptime!(UNITS));
    let start = row * width;
    let mut squares = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let value = x[start + i] + y[start + i];
        sum[start + i] = value;
        squares += value * value;
        i += comptime!(UNITS);
    }
    let mean = sum_of_cube(squares, &mut scratch) / f32::cast_from(width as u32);
    let scale = 1.0f32 / (mean + eps).sqrt();
    let mut i = UNIT_POS as usize;
    while i < width {
        // A unit reads what it has written itself.
        out[start + i] = sum[start + i] * scale * weight[i];
        i += comptime!(UNITS);
    }
}

/// With `r` the inverse RMS: `dx = r·(w∘dy) − x·r³/D·Σ(w∘dy∘x)`, and of its rows
/// `dw = Σ r·(dy∘x)`; with a residual connection, its gradient is added to `dx`.
#[cube(launch)]
fn rms_norm_backward_kernel(
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    residual: &[f32],
    grad_x: &mut [f32],
    grad_weight: &mut [f32],
    rows: usize,
    width: usize,
    eps: f32,
    #[comptime] has_residual: bool,
) {
    let first = CUBE_POS * comptime!(ROWS);
    if first >= rows {
        terminate!();
    }
    let mut scratch = Shared::new_slice(comptime!(UNITS));
    let mut scales = Shared::<[f32]>::new_slice(comptime!(ROWS));
    let mut end = first + comptime!(ROWS);
    if end > rows {
        end = rows;
    }
    for row in first..end {
        let start = row * width;
        let scale = inverse_rms(x, start, width, eps, &mut scratch);
        let mut sum = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < width {
            sum += x[start + i] * grad[start + i] * weight[i];
            i += comptime!(UNITS);
        }
        let projection = sum_of_cube(sum, &mut scratch) * scale * scale * scale / f32::cast_from(width as u32);
        let mut i = UNIT_POS as usize;
        while i < width {
            let mut value = grad[start + i] * weight[i] * scale - x[start + i] * projection;
            if comptime!(has_residual) {
                value += residual[start + i];
            }
            grad_x[start + i] = value;
            i += comptime!(UNITS);
        }
        if UNIT_POS == 0 {
            scales[row - first] = scale;
        }
    }
    sync_cube();
    let mut i = UNIT_POS as usize;
    while i < width {
        let mut sum = 0.0f32;
        for row in first..end {
            sum += grad[row * width + i] * x[row * width + i] * scales[row - first];
        }
        grad_weight[CUBE_POS * width + i] = sum;
        i += comptime!(UNITS);
    }
}

/// `x [M, D]`, `weight [D]` → `[M, D]`.
pub fn forward(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
    let (x, weight) = (dense(x), dense(weight));
    let [rows, width] = dims(&x);
    let out = empty_like(&x);
    let client = x.client.clone();
    let out_arg = out.clone().bound();
    rms_norm_kernel::launch(&client, cubes(rows), units(), x.bound(), weight.bound(), out_arg, rows, width, eps);
    out
}

/// `x + y`, `[M, D]` each, and its norm.
pub fn forward_of_sum(x: CubeTensor, y: CubeTensor, weight: CubeTensor, eps: f32) -> [CubeTensor; 2] {
    let (x, y, weight) = (dense(x), dense(y), dense(weight));
    let [rows, width] = dims(&x);
    let (sum, out) = (empty_like(&x), empty_like(&x));
    add_rms_norm_kernel::launch(
        &x.client.clone(),
        cubes(rows),
        units(),
        x.bound(),
        y.bound(),
        weight.bound(),
        sum.clone().bound(),
        out.clone().bound(),
        rows,
        width,
        eps,
    );
    [sum, out]
}

/// What the backward pass of a norm needs: its input, its weight and ε.
pub type Saved = (CubeTensor, CubeTensor, f32);

/// Gradients of the input of a norm and of its weight, of those of the input beside the norm and of
/// the norm.
pub fn backward_beside((x, weight, eps): Saved, given: [Option<CubeTensor>; 2]) -> [Option<CubeTensor>; 2] {
    match given {
        [residual, Some(grad)] => backward(x, weight, grad, residual, eps).map(Some),
        // The graph goes on to what the weight was made of.
        [residual, None] => {
            let CubeTensor { client, device, dtype, .. } = &weight;
            [residual, Some(zeros_client(client.clone(), device.clone(), weight.shape(), *dtype))]
        }
    }
}

/// Gradients of `x`, with `residual` added, and of `weight`.
pub fn backward(
    x: CubeTensor,
    weight: CubeTensor,
    grad: CubeTensor,
    residual: Option<CubeTensor>,
    eps: f32,
) -> [CubeTensor; 2] {
    let (x, weight, grad, has_residual) = (dense(x), dense(weight), dense(grad), residual.is_some());
    let residual = residual.map_or_else(|| grad.clone(), dense);
    let [rows, width] = dims(&x);
    let pieces = rows.div_ceil(ROWS);
    let (grad_x, grad_weight) = (empty_like(&x), empty(&x, [pieces, width]));
    let client = x.client.clone();
    rms_norm_backward_kernel::launch(
        &client,
        cubes(pieces),
        units(),
        x.bound(),
        weight.bound(),
        grad.bound(),
        residual.bound(),
        grad_x.clone().bound(),
        grad_weight.clone().bound(),
        rows,
        width,
        eps,
        has_residual,
    );
    [grad_x, sum_rows(grad_weight)]
}
