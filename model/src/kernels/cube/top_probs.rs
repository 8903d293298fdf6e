//! Divergence of a row of the student's logits from a teacher of which only the top is known: its
//! most probable tokens, and all others as one further outcome, as `head_loss::top` has it. A row
//! is a cube's. While it works, the logits of the named tokens lie aside, so that the rest is a sum
//! of its own.

use super::{
    divergence::{FORWARD_KL, Term, number, slope, value},
    head::ids,
    launch::{Bound, UNITS, cubes, dims, empty, max_of_cube, on_device, sum_of_cube, units},
    softmax::LOWEST,
};
use crate::kernels::TopProbs;
use burn::tensor::{Device, Tensor, TensorData};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// `log Σ exp(f·x)` of a row whose largest `f·x` is `shift`, finite where nothing of it is left.
#[cube]
fn log_sum(x: &mut [f32], start: usize, width: usize, factor: f32, shift: f32, scratch: &mut Shared<[f32]>) -> f32 {
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        sum += (x[start + i] * factor - shift).exp();
        i += comptime!(UNITS);
    }
    let mut sum = sum_of_cube(sum, scratch);
    if sum < comptime!(f32::MIN_POSITIVE) {
        sum = comptime!(f32::MIN_POSITIVE).runtime();
    }
    sum.ln() + shift
}

/// Gradient of an outcome for its logarithm before the softmax.
#[cube]
fn gradient(log_p: f32, log_q: f32, mean_slope: f32, parameter: f32, #[comptime] kind: u32) -> f32 {
    if comptime!(kind == FORWARD_KL) {
        log_q.exp() - log_p.exp()
    } else {
        log_q.exp() * (slope(log_p, log_q, parameter, kind) - mean_slope)
    }
}

/// Derivative of the soft cap at a logit that has been through it.
#[cube]
fn slope_of_cap(logit: f32, cap: f32, #[comptime] has_cap: bool) -> f32 {
    if comptime!(has_cap) { 1.0f32 - logit * logit / (cap * cap) } else { 1.0f32.runtime() }
}

/// `named` has where the tokens of each row begin, `[R + 1]`, and the tokens; `log_probs` one
/// number more of each row. Adds to `grads [R, V]`, and writes the value of each row.
#[cube(launch)]
fn top_divergence_kernel(
    logits: &mut [f32],
    aside: &mut [f32],
    named: &[i32],
    log_probs: &[f32],
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
    let first = named[row] as usize;
    let count = named[row + 1] as usize - first;
    let of_tokens = rows + 1 + first;
    let of_probs = first + row;
    // The largest logit, of which no exponential overflows.
    let mut shift = logits[start] * inverse_temperature;
    let mut i = UNIT_POS as usize;
    while i < width {
        let scaled = logits[start + i] * inverse_temperature;
        if scaled > shift {
            shift = scaled;
        }
        i += comptime!(UNITS);
    }
    let shift = max_of_cube(shift, &mut scratch);
    let whole = log_sum(logits, start, width, inverse_temperature, shift, &mut scratch);
    let mut j = UNIT_POS as usize;
    while j < count {
        let at = start + named[of_tokens + j] as usize;
        aside[first + j] = logits[at];
        logits[at] = comptime!(LOWEST).runtime();
        j += comptime!(UNITS);
    }
    sync_storage();
    let log_rest = log_sum(logits, start, width, inverse_temperature, shift, &mut scratch) - whole;
    // Each unit has some tokens, and one of them the rest.
    let log_p_rest = log_probs[of_probs + count];
    let mut total = 0.0f32;
    let mut mean_slope = 0.0f32;
    let mut j = UNIT_POS as usize;
    while j < count {
        let log_q = aside[first + j] * inverse_temperature - whole;
        let log_p = log_probs[of_probs + j];
        total += value(log_p, log_q, parameter, kind);
        if comptime!(kind != FORWARD_KL) {
            mean_slope += log_q.exp() * slope(log_p, log_q, parameter, kind);
        }
        j += comptime!(UNITS);
    }
    if UNIT_POS == 0 {
        total += value(log_p_rest, log_rest, parameter, kind);
        if comptime!(kind != FORWARD_KL) {
            mean_slope += log_rest.exp() * slope(log_p_rest, log_rest, parameter, kind);
        }
    }
    let total = sum_of_cube(total, &mut scratch);
    let mean_slope = sum_of_cube(mean_slope, &mut scratch);
    // A token of the rest has its part of the rest's gradient.
    let of_rest = scale * gradient(log_p_rest, log_rest, mean_slope, parameter, kind);
    let mut i = UNIT_POS as usize;
    while i < width {
        let logit = logits[start + i];
        if logit > comptime!(LOWEST) {
            let part = (logit * inverse_temperature - whole - log_rest).exp();
            grads[start + i] += of_rest * part * slope_of_cap(logit, cap, has_cap);
        }
        i += comptime!(UNITS);
    }
    sync_storage();
    let mut j = UNIT_POS as usize;
    while j < count {
        let at = start + named[of_tokens + j] as usize;
        let logit = aside[first + j];
        let log_q = logit * inverse_temperature - whole;
        let grad = scale * gradient(log_probs[of_probs + j], log_q, mean_slope, parameter, kind);
        grads[at] += grad * slope_of_cap(logit, cap, has_cap);
        logits[at] = logit;
        j += comptime!(UNITS);
    }
    if UNIT_POS == 0 {
        values[row * 5 + column] = total;
    }
}

/// The top of some rows, on the device.
#[derive(Debug)]
pub struct TopRows {
    /// Where the tokens of each row begin, `[R + 1]`, and the tokens.
    named: CubeTensor,
    /// Of the tokens of each row and of the rest.
    log_probs: CubeTensor,
    /// Number of tokens.
    count: usize,
}

impl TopRows {
    /// `rows` of `top` from row `start` on.
    pub fn upload(top: &TopProbs, start: usize, rows: usize, device: &Device) -> Self {
        let (mut begins, mut tokens, mut log_probs) = (vec![0], Vec::new(), Vec::new());
        for row in start..start + rows {
            let (ids, of_row) = top.row(row);
            tokens.extend_from_slice(ids);
            log_probs.extend_from_slice(of_row);
            begins.push(tokens.len() as u32);
        }
        let (count, len) = (tokens.len(), log_probs.len());
        let log_probs = Tensor::<1>::from_data(TensorData::new(log_probs, [len]), device);
        Self { named: ids(&[begins, tokens].concat(), device), log_probs: on_device(log_probs), count }
    }
}

/// As [`divergence::add`](super::divergence::add), from the `top` of a teacher at the temperature
/// of the term.
pub fn add(logits: &CubeTensor, top: &TopRows, term: Term, grads: &CubeTensor, values: &CubeTensor, column: usize) {
    let [rows, width] = dims(logits);
    let (kind, parameter) = number(term.divergence);
    top_divergence_kernel::launch(
        &logits.client.clone(),
        cubes(rows),
        units(),
        logits.clone().bound(),
        empty(logits, [top.count.max(1)]).bound(),
        top.named.clone().bound(),
        top.log_probs.clone().bound(),
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
