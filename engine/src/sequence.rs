//! Active sequences.

use crate::{EngineError, FinishReason, Request, Sampler, SequenceId, StopConditions, TokenLogprobs, exits};
use retie_model::{ExitLimit, Slot};

/// State of a request between steps.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub id: SequenceId,
    pub slot: Slot,
    /// The prompt, then the new tokens.
    pub tokens: Vec<u32>,
    pub num_prompt_tokens: usize,
    /// Number of tokens that have been read to the end of the stack.
    pub num_read: usize,
    /// Number of tokens that have started: those that have been read, and those on their way.
    pub num_started: usize,
    /// Number of its first tokens that others have read.
    pub num_reused: usize,
    pub recursion_counts: bool,
    /// When its tokens leave the loop.
    pub exits: ExitLimit,
    /// Sequences with another salt reuse nothing of it.
    pub salt: String,
    /// Number of most probable tokens to report with each new token.
    logprobs: Option<usize>,
    /// Number of most probable tokens to report with each token of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// True while steps leave it out.
    pub paused: bool,
    sampler: Sampler,
    stop: StopConditions,
    /// Forced tokens still to come, the last one first.
    forced: Vec<u32>,
    /// Reason why it ends once its last token has been read; `None` otherwise.
    pub ending: Option<FinishReason>,
}

/// A new token of a sequence.
#[derive(Debug)]
pub(crate) struct Choice {
    pub token: u32,
    /// Its log-probabilities, if the request asked for them.
    pub logprobs: Option<TokenLogprobs>,
    /// Reason if the sequence ends with it.
    pub reason: Option<FinishReason>,
}

impl Sequence {
    pub fn new(id: SequenceId, slot: Slot, request: Request) -> Self {
        let exits = exits::limit(&request);
        let Request { prompt, sampling, stop, mut forced, recursion_counts, salt, .. } = request;
        let (logprobs, prompt_logprobs) = (request.logprobs, request.prompt_logprobs);
        forced.reverse();
        Self {
            id,
            slot,
            num_prompt_tokens: prompt.len(),
            num_read: 0,
            num_started: 0,
            num_reused: 0,
            recursion_counts,
            exits,
            salt,
            logprobs,
            prompt_logprobs,
            paused: false,
            sampler: Sampler::new(sampling, &prompt),
            tokens: prompt,
            stop,
            forced,
            ending: None,
        }
    }

    /// Number of tokens that have not started.
    pub fn num_unstarted(&self) -> usize {
        self.tokens.len() - self.num_started
    }

    /// Number of tokens that the next passes have to read.
    pub fn num_unread(&self) -> usize {
        self.tokens.len() - self.num_read
    }

    /// True if its whole prompt has started.
    pub fn decodes(&self) -> bool {
        self.num_started >= self.num_prompt_tokens
    }

    /// True if every token has been read, so that a new one has to be chosen.
    pub fn wants_token(&self) -> bool {
        self.num_unread() == 0 && self.ending.is_none() && !self.is_read_only()
    }

    /// True if no new token is wanted: the prompt is only read.
    fn is_read_only(&self) -> bool {
        self.stop.max_new_tokens == Some(0)
    }

    /// True if its prompt has been read and no new token is wanted.
    pub fn is_done(&self) -> bool {
        self.is_read_only() && self.num_unread() == 0
    }

    /// True if its next tokens can be drafted: it has one unread token and nothing is forced or
    /// reported about what is read.
    pub fn takes_drafts(&self) -> bool {
        let is_free = self.forced.is_empty() && !self.recursion_counts && self.ending.is_none();
        is_free && self.decodes() && self.num_unread() == 1 && !self.is_read_only()
    }

    /// Sampler of drafts: a copy, which draws the same random numbers.
    pub fn drafter(&self) -> Sampler {
        self.sampler.clone()
    }

    /// The last token.
    pub fn last(&self) -> Option<u32> {
        self.tokens.last().copied()
    }

    /// Number of new tokens that it can still get, if its text does not end before.
    pub fn num_wanted(&self) -> usize {
        let new = self.tokens.len() - self.num_prompt_tokens;
        self.stop.max_new_tokens.map_or(usize::MAX, |most| most.saturating_sub(new))
    }

    /// Chooses the next token from its logits `[V]`.
    ///
    /// # Errors
    /// There is none to choose: the logits are no numbers.
    pub fn choose(&mut self, logits: &mut [f32], context: usize) -> Result<Choice, EngineError> {
        // The sampler changes the logits.
        let raw = self.logprobs.map(|num_top| (logits.to_vec(), num_top));
        let token = match self.forced.pop() {
            Some(token) => {
                self.sampler.force(token);
                token
            }
            None => self.sampler.next(logits, self.tokens.len())?,
        };
        self.tokens.push(token);
        let room = context.saturating_sub(self.tokens.len());
        Ok(Choice {
            token,
            logprobs: raw.map(|(logits, num_top)| TokenLogprobs::from_logits(&logits, token, num_top)),
            reason: self.stop.reached(&self.tokens[self.num_prompt_tokens..], room),
        })
    }

    /// True if `reason` ends the sequence only after its last token has been read, for its
    /// recursion count.
    pub fn reads_last(&self, reason: FinishReason) -> bool {
        self.recursion_counts && reason != FinishReason::EndOfText
    }
}
