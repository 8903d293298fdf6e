//! Stop conditions of a sequence.

use crate::EngineError;
use retie_config::ModelConfig;

/// Stop conditions of a sequence, in addition to the end of its context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopConditions {
    /// Maximum number of new tokens; `None` for as many as fit the context.
    pub max_new_tokens: Option<usize>,
    /// EOS tokens, which end a text.
    pub eos_token_ids: Vec<u32>,
    /// Stop sequences: token sequences that end the text once generated.
    pub sequences: Vec<Vec<u32>>,
}

/// Reason why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// Its last token is an EOS token.
    EndOfText,
    /// Its last tokens are a stop sequence.
    StopSequence,
    /// It has the requested number of new tokens.
    MaxNewTokens,
    /// Its context is full.
    ContextLength,
}

impl StopConditions {
    /// Stop conditions with the EOS tokens of a model, and `max_new_tokens`.
    #[must_use]
    pub fn for_model(config: &ModelConfig, max_new_tokens: Option<usize>) -> Self {
        Self { max_new_tokens, eos_token_ids: config.eos_token_ids.clone(), sequences: Vec::new() }
    }

    /// # Errors
    /// When a stop sequence is empty.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        if self.sequences.iter().any(Vec::is_empty) {
            return Err(EngineError::EmptyStopSequence);
        }
        Ok(())
    }

    /// The reason why a sequence with the new tokens `new` ends, if any; `room` more tokens fit its
    /// context.
    pub(crate) fn reached(&self, new: &[u32], room: usize) -> Option<FinishReason> {
        if new.last().is_some_and(|last| self.eos_token_ids.contains(last)) {
            Some(FinishReason::EndOfText)
        } else if self.sequences.iter().any(|sequence| new.ends_with(sequence)) {
            Some(FinishReason::StopSequence)
        } else if self.max_new_tokens.is_some_and(|most| new.len() >= most) {
            Some(FinishReason::MaxNewTokens)
        } else {
            (room == 0).then_some(FinishReason::ContextLength)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_condition_that_holds_is_the_reason() {
        let stop =
            StopConditions { max_new_tokens: Some(4), eos_token_ids: vec![0, 9], sequences: vec![vec![5, 6], vec![7]] };
        let reached = |new: &[u32]| stop.reached(new, 1);
        assert_eq!(reached(&[]), None);
        assert_eq!(reached(&[5, 1, 6]), None);
        assert_eq!(reached(&[1, 5, 6]), Some(FinishReason::StopSequence));
        assert_eq!(reached(&[1, 2, 3, 7]), Some(FinishReason::StopSequence));
        assert_eq!(reached(&[1, 2, 3, 9]), Some(FinishReason::EndOfText));
        assert_eq!(reached(&[1, 2, 3, 4]), Some(FinishReason::MaxNewTokens));
        assert_eq!(stop.reached(&[1, 2], 0), Some(FinishReason::ContextLength));
    }
}
