//! Presence penalty (OpenAI, <https://platform.openai.com/docs/api-reference/chat/create>).

use super::History;

/// Subtracts `penalty` once from the logits of tokens that were generated; the prompt does not
/// count.
pub fn apply(logits: &mut [f32], history: &History, penalty: f32) {
    history.change(logits, |logit, count| if count > 0 { logit - penalty } else { logit });
}
