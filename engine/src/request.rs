//! Requests: a prompt with its sampling parameters and stop conditions.

use crate::{EngineError, Sampling, StopConditions};

/// Identifier of a sequence of an engine. Later sequences have greater ones; none is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub(crate) u64);

/// A prompt with its sampling parameters and stop conditions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Sampling parameters; greedy by default.
    pub sampling: Sampling,
    /// Stop conditions.
    pub stop: StopConditions,
    /// First new tokens, forced in place of sampled ones (teacher forcing). They cost as much as
    /// sampled tokens.
    pub forced: Vec<u32>,
    /// Requests [`Progress::recursion_counts`](crate::Progress::recursion_counts). The last token
    /// is then read too: the sequence ends a step later, unless it ends with an EOS token.
    pub recursion_counts: bool,
    /// Number of recursions after which tokens, those of the prompt too, leave the loop at the
    /// latest; `None` for all.
    pub max_recursions: Option<usize>,
    /// Number of the engine's exit rule at which tokens leave the loop; `None` for no early exit.
    pub exit_threshold: Option<f32>,
    /// Sequences reuse what others have read only if they have the same salt.
    pub salt: String,
    /// Requests [`Progress::logprobs`](crate::Progress::logprobs), with this many of the most
    /// probable tokens.
    pub logprobs: Option<usize>,
    /// Requests [`Progress::prompt_logprobs`](crate::Progress::prompt_logprobs), with this many of
    /// the most probable tokens. The request may then ask for no new token: it only scores its
    /// prompt.
    pub prompt_logprobs: Option<usize>,
}

impl Request {
    /// Checks the request for a model of `vocab_size` tokens and sequences of at most `context`
    /// tokens.
    ///
    /// # Errors
    /// When the prompt is empty, has unknown tokens or is too long, or a value is out of its range.
    pub fn check(&self, vocab_size: usize, context: usize) -> Result<(), EngineError> {
        self.sampling.check()?;
        self.stop.check()?;
        if self.stop.max_new_tokens == Some(0) && self.prompt_logprobs.is_none() {
            let expected = "at least 1".to_owned();
            return Err(EngineError::OutOfRange { name: "max_new_tokens", found: "0".to_owned(), expected });
        }
        if self.prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let known = |token: &u32| usize::try_from(*token).is_ok_and(|token| token < vocab_size);
        if let Some(token) = self.prompt.iter().chain(&self.forced).find(|token| !known(token)) {
            return Err(EngineError::UnknownToken { token: *token, vocab_size });
        }
        let (prompt_tokens, new_tokens) = (self.prompt.len(), self.stop.max_new_tokens.unwrap_or(1));
        if prompt_tokens.saturating_add(new_tokens) > context {
            return Err(EngineError::TooLong { prompt_tokens, new_tokens, context });
        }
        Ok(())
    }
}
