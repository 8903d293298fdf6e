//! Softmax of attention scores over the keys that a query attends to, in place, and its backward
//! pass. A row of scores is a cube's. Keys behind the own one, and those outside the window, get 0.

use super::launch::{Bound, UNITS, cubes, dims, empty, max_of_cube, sum_of_cube, units};
use crate::kernels::Scoring;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Score that stands for none; above every other's exponential.
pub const LOWEST: f32 = -1.0e30;

/// The first key of a query, from `from` on; a window of 0 is none.
#[cube]
pub fn first_key(from: usize, last: usize, window: usize) -> usize {
    let mut first = from;
    if window > 0 && last + 1 > window + from {
        first = last + 1 - window;
    }
    first
}

#[cube]
pub fn capped(score: f32, cap: f32, #[comptime] has_cap: bool) -> f32 {
    if comptime!(has_cap) {
        // tanh by an exponential of a negative number, which cannot overflow.
        let e = (-2.0f32 * (score / cap).abs()).exp();
        let size = cap * (1.0f32 - e) / (1.0f32 + e);
        if score < 0.0f32 { -size } else { size }
    } else {
        score
    }
}

#[cube]
fn softmax_row(
    scores: &mut [f32],
    log_sums: &mut [f32],
    row: usize,
    keys: usize,
    from: usize,
    last: usize,
    window: usize,
    scale: f32,
    cap: f32,
    #[comptime] has_cap: bool,
) {
    let mut scratch = Shared::new_slice(comptime!(UNITS));
    let start = row * keys;
    let first = first_key(from, last, window);
    let mut largest = comptime!(LOWEST).runtime();
    let mut i = first + UNIT_POS as usize;
    while i <= last {
        let score = capped(scores[start + i] * scale, cap, has_cap);
        if score > largest {
            largest = score;
        }
        i += comptime!(UNITS);
    }
    let largest = max_of_cube(largest, &mut scratch);
    let mut sum = 0.0f32;
    let mut i = first + UNIT_POS as usize;
    while i <= last {
        let value = (capped(scores[start + i] * scale, cap, has_cap) - largest).exp();
        scores[start + i] = value;
        sum += value;
        i += comptime!(UNITS);
    }
    let sum = sum_of_cube(sum, &mut scratch);
    let factor = 1.0f32 / sum;
    let mut i = UNIT_POS as usize;
    while i < keys {
        if i < first || i > last {
            scores[start + i] = 0.0f32;
        } else {
            scores[start + i] *= factor;
        }
        i += comptime!(UNITS);
    }
    if UNIT_POS == 0 {
        log_sums[row] = sum.ln() + largest;
    }
}

#[cube(launch)]
fn softmax_kernel(
    scores: &mut [f32],
    log_sums: &mut [f32],
    rows: usize,
    tokens: usize,
    keys: usize,
    window: usize,
    scale: f32,
    cap: f32,
    #[comptime] has_cap: bool,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let last = keys - tokens + row % tokens;
    softmax_row(scores, log_sums, row, keys, 0usize, last, window, scale, cap, has_cap);
}

#[cube(launch)]
fn softmax_within_kernel(
    scores: &mut [f32],
    log_sums: &mut [f32],
    bounds: &[i32],
    rows: usize,
    rows_of_sequence: usize,
    tokens: usize,
    keys: usize,
    window: usize,
    scale: f32,
    cap: f32,
    #[comptime] has_cap: bool,
    #[comptime] are_last: bool,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let bound = bounds[row / rows_of_sequence * tokens + row % tokens] as usize;
    if comptime!(are_last) {
        softmax_row(scores, log_sums, row, keys, 0usize, bound, window, scale, cap, has_cap);
    } else {
        let last = keys - tokens + row % tokens;
        softmax_row(scores, log_sums, row, keys, bound, last, window, scale, cap, has_cap);
    }
}

/// In place of the gradient of the probabilities that of the products of queries and keys:
/// `p (dp − Σ p dp)`, times the scale and the derivative of the soft cap.
#[cube(launch)]
fn softmax_backward_kernel(
    probs: &[f32],
    log_sums: &[f32],
    grads: &mut [f32],
    rows: usize,
    keys: usize,
    scale: f32,
    cap: f32,
    #[comptime] has_cap: bool,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut scratch = Shared::new_slice(comptime!(UNITS));
    let start = row * keys;
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < keys {
        sum += probs[start + i] * grads[start + i];
        i += comptime!(UNITS);
    }
    let sum = sum_of_cube(sum, &mut scratch);
    let mut i = UNIT_POS as usize;
    while i < keys {
        let p = probs[start + i];
        let mut grad = p * (grads[start + i] - sum) * scale;
        if comptime!(has_cap) {
            if p > 0.0f32 {
                let part = (p.ln() + log_sums[row]) / cap;
                grad *= 1.0f32 - part * part;
            }
        }
        grads[start + i] = grad;
        i += comptime!(UNITS);
    }
}

/// The keys that queries attend to, besides those of the window.
#[derive(Clone, Debug)]
pub enum Keys {
    /// Those up to the own one, where the queries are the last keys.
    Causal,
    /// Those up to the given one: `[B, T]`, or `[1, T]` for all sequences.
    UpTo(CubeTensor),
    /// Those from the given one, `[B, T]`, up to the own one.
    From(CubeTensor),
}

/// Rows `[B, N, T]` of scores.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub batch: usize,
    pub heads: usize,
    pub tokens: usize,
    pub keys: usize,
}

impl Rows {
    fn count(self) -> usize {
        self.batch * self.heads * self.tokens
    }
}

/// Probabilities in place of products of queries and keys, `[B·N·T, S]`, and `log Σ exp` of the
/// scores of each row.
pub fn forward(scores: &CubeTensor, rows: Rows, keys: &Keys, scoring: Scoring) -> CubeTensor {
    let log_sums = empty(scores, [rows.count()]);
    let client = scores.client.clone();
    let (window, cap) = (scoring.window.unwrap_or(0), scoring.softcap.unwrap_or(1.0));
    let (scores, sums) = (scores.clone().bound(), log_sums.clone().bound());
    let (count, launched) = (rows.count(), cubes(rows.count()));
    let (bounds, are_last) = match keys {
        Keys::Causal => {
            softmax_kernel::launch(
                &client,
                launched,
                units(),
                scores,
                sums,
                count,
                rows.tokens,
                rows.keys,
                window,
                scoring.scale,
                cap,
                scoring.softcap.is_some(),
            );
            return log_sums;
        }
        Keys::UpTo(last) => (last, true),
        Keys::From(first) => (first, false),
    };
    let [masks, _] = dims(bounds);
    // One mask is that of every sequence.
    let rows_of_sequence = if masks == 1 { count } else { rows.heads * rows.tokens };
    softmax_within_kernel::launch(
        &client,
        launched,
        units(),
        scores,
        sums,
        bounds.clone().bound(),
        count,
        rows_of_sequence,
        rows.tokens,
        rows.keys,
        window,
        scoring.scale,
        cap,
        scoring.softcap.is_some(),
        are_last,
    );
    log_sums
}

/// Gradients of products of queries and keys in place of those of probabilities, `[B·N·T, S]`.
pub fn backward(probs: &CubeTensor, log_sums: CubeTensor, grads: &CubeTensor, rows: Rows, scoring: Scoring) {
    softmax_backward_kernel::launch(
        &probs.client.clone(),
        cubes(rows.count()),
        units(),
        probs.clone().bound(),
        log_sums.bound(),
        grads.clone().bound(),
        rows.count(),
        rows.keys,
        scoring.scale,
        scoring.softcap.unwrap_or(1.0),
        scoring.softcap.is_some(),
    );
}
