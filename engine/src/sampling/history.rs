//! Tokens of a sequence, counted for the penalties.

use std::collections::BTreeMap;

/// Count of each token of a sequence among the generated tokens; 0 for tokens that only the prompt
/// has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    counts: BTreeMap<u32, u32>,
}

impl History {
    /// History of a sequence with only its prompt.
    #[must_use]
    pub fn new(prompt: &[u32]) -> Self {
        Self { counts: prompt.iter().map(|token| (*token, 0)).collect() }
    }

    /// Adds a generated token.
    pub fn push(&mut self, token: u32) {
        *self.counts.entry(token).or_default() += 1;
    }

    /// Changes the logit of each token of the sequence; `change` gets the logit and the count.
    pub(super) fn change(&self, logits: &mut [f32], change: impl Fn(f32, u32) -> f32) {
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = change(*logit, *count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_the_prompt_count_only_when_they_are_generated() {
        let mut history = History::new(&[3, 1, 3, 9]);
        history.push(1);
        history.push(4);
        history.push(1);
        let mut logits = [0.0, 1.0, 2.0, 3.0, 4.0];
        history.change(&mut logits, |logit, count| logit + 10.0 * f32::from(count as u8) + 0.5);
        assert_eq!(logits, [0.0, 21.5, 2.0, 3.5, 14.5]);
    }
}
