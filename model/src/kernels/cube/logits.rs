//! Cross-entropy and z-loss of rows of logits, with their gradient; soft caps.

use super::{
    launch::{Bound, UNITS, cubes, cubes_for_units, dims, max_of_cube, position, sum_of_cube, units},
    softmax::capped,
};
use crate::kernels::CrossEntropyTerm;
use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// `log Σ exp(f·x)` of a row.
#[cube]
pub fn log_sum_of_row(x: &[f32], start: usize, width: usize, factor: f32, scratch: &mut Shared<[f32]>) -> f32 {
    let mut largest = x[start] * factor;
    let mut i = UNIT_POS as usize;
    while i < width {
        let value = x[start + i] * factor;
        if value > largest {
            largest = value;
        }
        i += comptime!(UNITS);
    }
    let largest = max_of_cube(largest, scratch);
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        sum += (x[start + i] * factor - largest).exp();
        i += comptime!(UNITS);
    }
    sum_of_cube(sum, scratch).ln() + largest
}

/// `c·tanh(x/c)` in place.
#[cube(launch)]
fn cap_kernel(x: &mut [f32], count: usize, cap: f32) {
    let at = position();
    if at < count {
        x[at] = capped(x[at], cap, true);
    }
}

/// Puts dense logits through the soft cap in place.
pub fn cap(logits: &CubeTensor, softcap: f32) {
    let count = logits.shape().num_elements();
    let arg = logits.clone().bound();
    cap_kernel::launch(&logits.client.clone(), cubes_for_units(count), units(), arg, count, softcap);
}

/// Writes the gradient of a row, and its first three values of five; the other two are 0.
#[cube(launch)]
fn cross_entropy_kernel(
    logits: &[f32],
    targets: &[i32],
    grads: &mut [f32],
    values: &mut [f32],
    rows: usize,
    width: usize,
    weight: f32,
    smoothing: f32,
    z_loss: f32,
    cap: f32,
    #[comptime] has_cap: bool,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut scratch = Shared::new_slice(comptime!(UNITS));
    let start = row * width;
    let log_sum = log_sum_of_row(logits, start, width, 1.0f32, &mut scratch);
    let target = targets[row] as usize;
    let uniform = smoothing / f32::cast_from(width as u32);
    let own = 1.0f32 + 2.0f32 * z_loss * log_sum;
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let logit = logits[start + i];
        let log_q = logit - log_sum;
        sum += log_q;
        let mut grad = log_q.exp() * own - uniform;
        if i == target {
            grad -= 1.0f32 - smoothing;
        }
        grad *= weight;
        if comptime!(has_cap) {
            grad *= 1.0f32 - logit * logit / (cap * cap);
        }
        grads[start + i] = grad;
        i += comptime!(UNITS);
    }
    let sum = sum_of_cube(sum, &mut scratch);
    if UNIT_POS == 0 {
        values[row * 5] = log_sum - logits[start + target];
        values[row * 5 + 1] = -sum / f32::cast_from(width as u32);
        values[row * 5 + 2] = log_sum * log_sum;
        values[row * 5 + 3] = 0.0f32;
        values[row * 5 + 4] = 0.0f32;
    }
}

/// Writes the gradient of cross-entropy and z-loss for `logits` to `grads`, `[R, V]` each, and the
/// values of each row to `values [R, 5]`. The weight of `text` is that of a row.
pub fn cross_entropy(
    logits: &CubeTensor,
    targets: CubeTensor,
    text: CrossEntropyTerm,
    softcap: Option<f32>,
    grads: &CubeTensor,
    values: &CubeTensor,
) {
    let [rows, width] = dims(logits);
    cross_entropy_kernel::launch(
        &logits.client.clone(),
        cubes(rows),
        units(),
        logits.clone().bound(),
        targets.bound(),
        grads.clone().bound(),
        values.clone().bound(),
        rows,
        width,
        text.weight,
        text.label_smoothing,
        text.z_loss,
        softcap.unwrap_or(1.0),
        softcap.is_some(),
    );
}
