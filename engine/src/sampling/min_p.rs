//! Min-p sampling (Nguyen et al., <https://arxiv.org/abs/2407.01082>), the `MinPLogitsWarper` of
//! `transformers`.

use super::draw::weights;

/// Removes tokens whose probability is below `min_p` times the largest.
pub fn apply(logits: &mut [f32], min_p: f32) {
    // The largest weight is 1.
    let removed: Vec<usize> =
        weights(logits).filter(|(_, weight)| *weight < f64::from(min_p)).map(|(token, _)| token).collect();
    removed.into_iter().for_each(|token| logits[token] = f32::NEG_INFINITY);
}
