//! Nucleus sampling (Holtzman et al., <https://arxiv.org/abs/1904.09751>), the `TopPLogitsWarper`
//! of `transformers`.

use super::draw::weights;

/// Keeps the fewest tokens, the most probable first, whose probabilities reach `top_p`, and removes
/// the others. Among equal ones the first stays.
pub fn apply(logits: &mut [f32], top_p: f32) {
    let mut tokens: Vec<(usize, f64)> = weights(logits).collect();
    let total: f64 = tokens.iter().map(|(_, weight)| weight).sum();
    let reached = f64::from(top_p) * total;
    // Tokens of at most this weight have less than 1 − p together: none of them stays or has to be
    // sorted.
    let negligible = (total - reached) / tokens.len() as f64;
    tokens.retain(|(_, weight)| *weight > negligible);
    tokens.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut before = 0.0;
    let nucleus = tokens.iter().take_while(|(_, weight)| {
        let stays = before < reached;
        before += weight;
        stays
    });
    let nucleus: Vec<(usize, f32)> = nucleus.map(|(token, _)| (*token, logits[*token])).collect();
    logits.fill(f32::NEG_INFINITY);
    nucleus.into_iter().for_each(|(token, logit)| logits[token] = logit);
}
