//! Divergences of the student's distribution `q` from the reference `p`, and their gradients for
//! the student's logits.
//!
//! A divergence `D(q)` with derivatives `g_i = ∂D/∂q_i` has the gradient `q_i (g_i − Σ_j q_j g_j)`
//! for the logits of `q`. So all but forward KL need sums over the vocabulary before the first
//! component of the gradient is known.
//!
//! | | `D` | `g_i`, up to a constant |
//! |---|---|---|
//! | forward KL | `Σ p (log p − log q)` | `−p/q` |
//! | reverse KL | `Σ q (log q − log p)` | `log q − log p` |
//! | JSD(β) | `β KL(p‖m) + (1−β) KL(q‖m)` | `(1−β)(log q − log m)` |
//! | total variation | `½ Σ abs(p − q)` | `½ sign(q − p)` |
//! | skew KL(α) | `KL(p‖m)` | `−(1−α) p/m` |
//!
//! JSD(β) has the mixture `m = βp + (1−β)q` (<https://arxiv.org/abs/2306.13649>), skew KL(α) has
//! `m = αp + (1−α)q` (<https://arxiv.org/abs/2402.03898>).

use crate::kernels::cpu::simd::{exp, ln};
use retie_config::Divergence;

/// `log p`, `log q` and `q` of one token of the vocabulary.
#[derive(Clone, Copy)]
pub struct At {
    pub log_p: f32,
    pub log_q: f32,
    pub q: f32,
}

/// Loops over the vocabulary for one row.
pub trait Row {
    /// Sums both components of `f`, without writing.
    fn sum(&self, f: impl Fn(At) -> [f32; 2]) -> [f32; 2];

    /// Writes the second component of `f` as the gradient; returns the sum of the first.
    fn write(&mut self, f: impl Fn(At) -> [f32; 2]) -> f32;
}

/// Writes the gradient of the divergence for `s/T`, and returns its value.
#[inline(always)]
pub fn divergence(kind: Divergence, row: &mut impl Row) -> f32 {
    match kind {
        Divergence::ForwardKl => row.write(
            #[inline(always)]
            |At { log_p, log_q, q }| {
                let p = exp(log_p);
                [p * (log_p - log_q), q - p]
            },
        ),
        Divergence::ReverseKl => {
            let [value, _] = row.sum(
                #[inline(always)]
                |At { log_p, log_q, q }| [q * (log_q - log_p), 0.0],
            );
            row.write(
                #[inline(always)]
                |At { log_p, log_q, q }| [0.0, q * (log_q - log_p - value)],
            );
            value
        }
        Divergence::Jsd { beta } => {
            let beta = beta as f32;
            let rest = 1.0 - beta;
            let [of_p, of_q] = row.sum(
                #[inline(always)]
                |At { log_p, log_q, q }| {
                    let p = exp(log_p);
                    let log_m = ln(beta * p + rest * q);
                    [p * (log_p - log_m), q * (log_q - log_m)]
                },
            );
            row.write(
                #[inline(always)]
                |At { log_p, log_q, q }| [0.0, rest * q * (log_q - ln(beta * exp(log_p) + rest * q) - of_q)],
            );
            beta * of_p + rest * of_q
        }
        Divergence::Tvd => {
            let [value, mean] = row.sum(
                #[inline(always)]
                |At { log_p, q, .. }| {
                    let p = exp(log_p);
                    [0.5 * (p - q).abs(), q * half_sign(q - p)]
                },
            );
            row.write(
                #[inline(always)]
                |At { log_p, q, .. }| [0.0, q * (half_sign(q - exp(log_p)) - mean)],
            );
            value
        }
        Divergence::SkewKl { alpha } => {
            let alpha = alpha as f32;
            let rest = 1.0 - alpha;
            let [value, mean] = row.sum(
                #[inline(always)]
                |At { log_p, q, .. }| {
                    let p = exp(log_p);
                    let m = alpha * p + rest * q;
                    [p * (log_p - ln(m)), p * q / m]
                },
            );
            row.write(
                #[inline(always)]
                |At { log_p, q, .. }| {
                    let p = exp(log_p);
                    [0.0, rest * q * (mean - p / (alpha * p + rest * q))]
                },
            );
            value
        }
    }
}

/// ½ for positive numbers, −½ for negative ones, 0 for 0.
#[inline(always)]
fn half_sign(x: f32) -> f32 {
    let positive = if x > 0.0 { 0.5 } else { 0.0 };
    let negative = if x < 0.0 { 0.5 } else { 0.0 };
    positive - negative
}
