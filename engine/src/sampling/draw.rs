//! Choice from processed logits: the most probable token, or a draw.

use rand_chacha::rand_core::Rng;

/// The first token whose logit is no number that others can be compared with: NaN or +∞, or −∞ if
/// all are; the sampler removes tokens by −∞.
pub fn unusable(logits: &[f32]) -> Option<usize> {
    let bad = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY);
    bad.or_else(|| logits.iter().all(|logit| *logit == f32::NEG_INFINITY).then_some(0))
}

/// The token with the largest logit, the first of equal ones. The logits have to be usable.
pub fn best(logits: &[f32]) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|logit| *logit == largest).unwrap_or(0) as u32
}

/// Tokens that were not removed, with probabilities in f64 relative to the largest.
pub fn weights(logits: &[f32]) -> impl Iterator<Item = (usize, f64)> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let kept = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
    kept.map(move |(token, logit)| (token, f64::from(logit - largest).exp()))
}

/// A token drawn from the softmax of `logits`, which have to be usable, with one number of `rng`.
pub fn draw(logits: &[f32], rng: &mut impl Rng) -> u32 {
    let tokens: Vec<(usize, f64)> = weights(logits).collect();
    let total: f64 = tokens.iter().map(|(_, weight)| weight).sum();
    // 53 random bits make a uniform number in [0, 1).
    let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let mut left = uniform * total;
    let drawn = tokens.iter().find(|(_, weight)| {
        left -= weight;
        left < 0.0
    });
    drawn.or(tokens.last()).map_or(0, |(token, _)| *token as u32)
}
