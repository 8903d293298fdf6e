//! Top-k sampling (Fan et al., <https://arxiv.org/abs/1805.04833>), the `TopKLogitsWarper` of
//! `transformers`.

/// Removes tokens with logits below the `k`-th largest. Ties all stay, so more than `k` may remain.
pub fn apply(logits: &mut [f32], k: usize) {
    if k >= logits.len() {
        return;
    }
    let mut order = logits.to_vec();
    let (_, least, _) = order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    for logit in logits {
        if *logit < *least {
            *logit = f32::NEG_INFINITY;
        }
    }
}
