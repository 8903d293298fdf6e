//! Active sequences.

use crate::{
    EngineError, FinishReason, Request, Sampler, SequenceId, StopConditions, TokenLogprobs, exits, held::Salt,
};
use retie_model::{ExitLimit, Slot};

/// State of a request between steps.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub id: SequenceId,
    pub slot: Slot,
    /// The prompt, then the new tokens.
    pub tokens: Vec<u32>,
    pub num_prompt_tokens: usize,
    /// Number of tokens that are read as a prompt is: those that it had when it got its slot.
    pub num_given: usize,
    /// Number of tokens that have been read to the end of the stack.
    pub num_read: usize,
    /// Number of tokens that have started: those that have been read, and those on their way.
    pub num_started: usize,
    /// Number of its first tokens that others have read.
    pub num_reused: usize,
    /// Number of tokens that had been read when it gave up its slot: what was asked about them has
    /// been reported.
    pub num_reported: usize,
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
            num_given: prompt.len(),
            num_read: 0,
            num_started: 0,
            num_reused: 0,
            num_reported: 0,
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

    /// What sequences that reuse its tokens have in common with it.
    pub fn whole_salt(&self) -> Salt {
        Salt::new(self.exits, &self.salt)
    }

    /// Goes on in `slot`, where its first `read` tokens are there already.
    pub fn continue_at(&mut self, slot: Slot, read: usize) {
        self.slot = slot;
        (self.num_read, self.num_started) = (read, read);
        self.num_given = self.tokens.len();
    }

    /// Gives up its slot, and what has been read of it.
    pub fn give_up(&mut self) {
        self.num_reported = self.num_reported.max(self.num_read);
        (self.num_read, self.num_started) = (0, 0);
    }

    /// Number of its first tokens that it need not read: all but the last, which is read for its
    /// logits, and none whose log-probabilities or recursion counts are still to be reported.
    pub fn num_reusable(&self) -> usize {
        let reports = self.prompt_logprobs.is_some() || self.recursion_counts;
        let most = if reports { self.num_reported } else { usize::MAX };
        most.min(self.tokens.len() - 1)
    }

    /// Number of tokens of its prompt that are still to be read for the first time.
    pub fn num_unread_of_prompt(&self) -> usize {
        self.num_prompt_tokens.saturating_sub(self.num_read.max(self.num_reported))
    }

    /// Number of tokens that it can have in the end.
    pub fn most_tokens(&self, context: usize) -> usize {
        self.tokens.len().saturating_add(self.num_wanted()).min(context)
    }

    /// Number of tokens that have not started.
    pub fn num_unstarted(&self) -> usize {
        self.tokens.len() - self.num_started
    }

    /// Number of tokens that the next passes have to read.
    pub fn num_unread(&self) -> usize {
        self.tokens.len() - self.num_read
    }

    /// True if its whole prompt has started, and what it had read before it gave up its slot.
    pub fn decodes(&self) -> bool {
        self.num_started >= self.num_given
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
