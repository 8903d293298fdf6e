//! Repetition penalty (CTRL, Keskar et al., <https://arxiv.org/abs/1909.05858>, §4.1), the
//! `RepetitionPenaltyLogitsProcessor` of `transformers`.

use super::History;

/// Divides positive logits of the sequence's tokens by `penalty`, and multiplies negative ones by
/// it.
pub fn apply(logits: &mut [f32], history: &History, penalty: f32) {
    history.change(logits, |logit, _| if logit < 0.0 { logit * penalty } else { logit / penalty });
}
