//! What can be kept of a teacher's distribution: its `k` most probable tokens and, as one further outcome, all others together.
//!
//! A divergence is then taken over `k + 1` outcomes, of the teacher and, from its logits, of the student. It is never more than that
//! over all tokens (data-processing inequality), and how the rest is divided among its tokens is left to the other terms. For a token
//! `j` of the rest, `∂D/∂s_j = (∂D/∂s_R) q_j/q_R`, where `∂D/∂s_R = q_R (g_R − Σ q g)` is the gradient of a softmax over the
//! outcomes; see [`super::divergence`].

use super::{
    Chunks, HeadInput, device,
    divergence::{At, Row},
    host,
};
use crate::kernels::{host::simd::exp, is_cpu};
use rayon::prelude::*;

/// Probabilities of some tokens of each row, and of all the others together.
#[derive(Clone, Debug, PartialEq)]
pub struct TopProbs {
    /// `k`.
    pub k: usize,
    /// `[M, k]`, the most probable first.
    pub ids: Vec<u32>,
    /// `[M, k + 1]`: logarithms, of the ids and of the rest.
    pub log_probs: Vec<f32>,
}

/// The `k` most probable tokens of each row of `input.hidden`, under softmax(logits / temperature).
///
/// # Panics
/// When `k` is 0 or more than there are tokens.
#[must_use]
pub fn top_probs(input: &HeadInput, k: usize, temperature: f32) -> TopProbs {
    let [tokens, _] = input.hidden.dims();
    let [vocab_size, _] = input.head.weight.dims();
    assert!((1..=vocab_size).contains(&k), "{k} of {vocab_size} tokens");
    let mut top = TopProbs { k, ids: Vec::with_capacity(tokens * k), log_probs: Vec::with_capacity(tokens * (k + 1)) };
    let mut see = |logits: &[f32]| {
        let rows: Vec<_> = logits.par_chunks_exact(vocab_size).map(|row| top_of(row, k, temperature)).collect();
        for (ids, log_probs) in rows {
            top.ids.extend(ids);
            top.log_probs.extend(log_probs);
        }
    };
    let chunks = Chunks::of(tokens, vocab_size);
    if is_cpu(&input.hidden.device()) {
        host::logits_of(input, chunks, &mut see);
    } else {
        device::logits_of(input, chunks, &mut see);
    }
    top
}

/// Equal logits are taken in the order of their ids.
fn top_of(logits: &[f32], k: usize, temperature: f32) -> (Vec<u32>, Vec<f32>) {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if k < ids.len() {
        ids.select_nth_unstable_by(k - 1, by_logit);
    }
    let (top, rest) = ids.split_at_mut(k);
    top.sort_unstable_by(by_logit);
    let scaled = |id: &u32| f64::from(logits[*id as usize]) / f64::from(temperature);
    let shift = scaled(&top[0]);
    let sum = |ids: &[u32]| ids.iter().map(|id| (scaled(id) - shift).exp()).sum::<f64>();
    let (of_top, of_rest) = (sum(top), sum(rest));
    let log_sum = (of_top + of_rest).ln();
    // A rest without a token has a probability that is not 0, so that every logarithm is a number.
    let rest = of_rest.max(f64::from(f32::MIN_POSITIVE)).ln() - log_sum;
    let log_probs = top.iter().map(|id| (scaled(id) - shift - log_sum) as f32).chain([rest as f32]);
    (top.to_vec(), log_probs.collect())
}

/// The outcomes of one row.
pub struct Outcomes<'a> {
    /// Of the teacher, `[k + 1]`.
    pub log_p: &'a [f32],
    /// Of the student.
    pub log_q: Vec<f32>,
    /// Gradient for the student's outcomes.
    pub slopes: Vec<f32>,
}

impl Outcomes<'_> {
    #[inline(always)]
    fn all(&self) -> impl Iterator<Item = At> {
        self.log_p.iter().zip(&self.log_q).map(|(log_p, log_q)| At { log_p: *log_p, log_q: *log_q, q: exp(*log_q) })
    }
}

impl Row for Outcomes<'_> {
    #[inline(always)]
    fn sum(&self, f: impl Fn(At) -> [f32; 2]) -> [f32; 2] {
        self.all().map(f).fold([0.0; 2], |[a, b], [x, y]| [a + x, b + y])
    }

    #[inline(always)]
    fn write(&mut self, f: impl Fn(At) -> [f32; 2]) -> f32 {
        let mut total = 0.0;
        let mut slopes = Vec::with_capacity(self.log_q.len());
        for at in self.all() {
            let [value, slope] = f(at);
            total += value;
            slopes.push(slope);
        }
        self.slopes = slopes;
        total
    }
}
