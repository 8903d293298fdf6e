//! Frequency penalty (OpenAI, <https://platform.openai.com/docs/api-reference/chat/create>).

use super::History;

/// Subtracts `penalty` from the logit of a token for each time that it was generated; the prompt
/// does not count.
pub fn apply(logits: &mut [f32], history: &History, penalty: f32) {
    history.change(logits, |logit, count| logit - count as f32 * penalty);
}
