//! Divergence of a row of the student's logits from a teacher's: value and gradient. The formulas
//! are those of the CPU, in `head_loss::divergence`.

use super::{
    launch::{Bound, UNITS, cubes, dims, sum_of_cube, units},
    logits::log_sum_of_row,
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use retie_config::Divergence;

pub const FORWARD_KL: u32 = 0;
const REVERSE_KL: u32 = 1;
const JSD: u32 = 2;
const TVD: u32 = 3;
const SKEW_KL: u32 = 4;

/// Number of a divergence in the kernel, and its parameter.
pub fn number(divergence: Divergence) -> (u32, f32) {
    match divergence {
        Divergence::ForwardKl => (FORWARD_KL, 0.0),
        Divergence::ReverseKl => (REVERSE_KL, 0.0),
        Divergence::Jsd { beta } => (JSD, beta as f32),
        Divergence::Tvd => (TVD, 0.0),
        Divergence::SkewKl { alpha } => (SKEW_KL, alpha as f32),
    }
}

/// `share p + (1 − share) q`, above 0 where both underflow.
#[cube]
fn mixture(p: f32, share: f32, q: f32) -> f32 {
    let m = p * share + q * (1.0f32 - share);
    if m < comptime!(f32::MIN_POSITIVE) { comptime!(f32::MIN_POSITIVE).runtime() } else { m }
}

/// Addend of the divergence, of an outcome with the given log-probabilities.
#[cube]
pub fn value(log_p: f32, log_q: f32, parameter: f32, #[comptime] kind: u32) -> f32 {
    let (p, q) = (log_p.exp(), log_q.exp());
    if comptime!(kind == FORWARD_KL) {
        p * (log_p - log_q)
    } else if comptime!(kind == REVERSE_KL) {
        q * (log_q - log_p)
    } else if comptime!(kind == JSD) {
        let log_m = mixture(p, parameter, q).ln();
        parameter * p * (log_p - log_m) + (1.0f32 - parameter) * q * (log_q - log_m)
    } else if comptime!(kind == TVD) {
        0.5f32 * (q - p).abs()
    } else {
        p * (log_p - mixture(p, parameter, q).ln())
    }
}

/// `g` of the gradient `q (g − Σ q g)`.
#[cube]
pub fn slope(log_p: f32, log_q: f32, parameter: f32, #[comptime] kind: u32) -> f32 {
    let (p, q) = (log_p.exp(), log_q.exp());
    if comptime!(kind == REVERSE_KL) {
        log_q - log_p
    } else if comptime!(kind == JSD) {
        (1.0f32 - parameter) * (log_q - mixture(p, parameter, q).ln())
    } else if comptime!(kind == TVD) {
        let difference = q - p;
        if difference > 0.0f32 {
            0.5f32.runtime()
        } else if difference < 0.0f32 {
            (-0.5f32).runtime()
        } else {
            0.0f32.runtime()
        }
    } else {
        (parameter - 1.0f32) * p / mixture(p, parameter, q)
    }
}

/// Adds to `grads [R, V]`, and writes the value of each row.
#[cube(launch)]
fn divergence_kernel(
    logits: &[f32],
    teacher: &[f32],
    grads: &mut [f32],
    values: &mut [f32],
    column: usize,
    rows: usize,
    width: usize,
    inverse_temperature: f32,
    scale: f32,
    cap: f32,
    parameter: f32,
    #[comptime] kind: u32,
    #[comptime] has_cap: bool,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut scratch = Shared::new_slice(comptime!(UNITS));
    let start = row * width;
    let q_sum = log_sum_of_row(logits, start, width, inverse_temperature, &mut scratch);
    let p_sum = log_sum_of_row(teacher, start, width, inverse_temperature, &mut scratch);
    let mut total = 0.0f32;
    let mut mean_slope = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let log_q = logits[start + i] * inverse_temperature - q_sum;
        let log_p = teacher[start + i] * inverse_temperature - p_sum;
        total += value(log_p, log_q, parameter, kind);
        if comptime!(kind != FORWARD_KL) {
            mean_slope += log_q.exp() * slope(log_p, log_q, parameter, kind);
        }
        i += comptime!(UNITS);
    }
    let total = sum_of_cube(total, &mut scratch);
    let mean_slope = sum_of_cube(mean_slope, &mut scratch);
    let mut i = UNIT_POS as usize;
    while i < width {
        let logit = logits[start + i];
        let log_q = logit * inverse_temperature - q_sum;
        let log_p = teacher[start + i] * inverse_temperature - p_sum;
        let mut grad = log_q.exp() - log_p.exp();
        if comptime!(kind != FORWARD_KL) {
            grad = log_q.exp() * (slope(log_p, log_q, parameter, kind) - mean_slope);
        }
        grad *= scale;
        if comptime!(has_cap) {
            grad *= 1.0f32 - logit * logit / (cap * cap);
        }
        grads[start + i] += grad;
        i += comptime!(UNITS);
    }
    if UNIT_POS == 0 {
        values[row * 5 + column] = total;
    }
}

/// What a divergence is computed with.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    pub divergence: Divergence,
    pub temperature: f32,
    /// Factor of the gradient of a row.
    pub scale: f32,
    /// Soft cap of the logits, which they have been through.
    pub softcap: Option<f32>,
}

/// Adds the gradient of the divergence of `logits` from those of `teacher` to `grads`, `[R, V]`
/// each, and puts the value of each row into `column` of `values [R, 5]`.
pub fn add(
    logits: &CubeTensor,
    teacher: CubeTensor,
    term: Term,
    grads: &CubeTensor,
    values: &CubeTensor,
    column: usize,
) {
    let [rows, width] = dims(logits);
    let (kind, parameter) = number(term.divergence);
    divergence_kernel::launch(
        &logits.client.clone(),
        cubes(rows),
        units(),
        logits.clone().bound(),
        teacher.bound(),
        grads.clone().bound(),
        values.clone().bound(),
        column,
        rows,
        width,
        1.0 / term.temperature,
        term.scale,
        term.softcap.unwrap_or(1.0),
        parameter,
        kind,
        term.softcap.is_some(),
    );
}
