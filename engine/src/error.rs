//! Errors of this crate.

use crate::Scheduler;

/// Errors of an engine or a request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// A value is out of its range.
    #[error("`{name}` is `{found}`, expected {expected}\nhint: change `{name}`")]
    OutOfRange {
        /// The field.
        name: &'static str,
        /// Its value.
        found: String,
        /// Accepted values.
        expected: String,
    },
    /// The prompt has no token.
    #[error("the prompt is empty, expected at least one token\nhint: start with the BOS token of the model")]
    EmptyPrompt,
    /// A token id outside the vocabulary of the model.
    #[error(
        "token {token} of the prompt is not in the vocabulary of {vocab_size} tokens\nhint: does the tokenizer belong to the model?"
    )]
    UnknownToken {
        /// Its id.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A stop sequence without tokens, which would end every text at once.
    #[error("a stop sequence has no tokens, expected at least one\nhint: leave it out")]
    EmptyStopSequence,
    /// Prompt and new tokens exceed the context.
    #[error(
        "a prompt of {prompt_tokens} tokens and {new_tokens} new ones do not fit the context of {context}\nhint: shorten the prompt or ask for fewer new tokens"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Requested new tokens, at least.
        new_tokens: usize,
        /// Maximum length of a sequence, in tokens.
        context: usize,
    },
    /// A model whose tokens cannot go through the parts at their own pace.
    #[error("scheduler `{scheduler}` cannot serve the model: {reason}\nhint: scheduler `full` serves every model")]
    NoLoop {
        /// Name of the scheduler.
        scheduler: &'static str,
        /// What the model lacks.
        reason: String,
    },
    /// An exit trace with more recursions than the model has.
    #[error(
        "the exit trace has a recursion count of {found}, and the model has {expected} recursions\nhint: use counts of 1 to {expected}"
    )]
    TraceTooDeep {
        /// The largest count.
        found: usize,
        /// Recursions of the model.
        expected: usize,
    },
    /// An exit trace for the scheduler that runs every recursion.
    #[error(
        "an exit trace is given to scheduler `full`, which runs every recursion of every token\nhint: use `lockstep` or `depthwise`, or no trace"
    )]
    TraceInFull,
    /// Tokens cannot leave the loop of the model early.
    #[error("tokens cannot leave the loop early: {reason}\nhint: run every token through the whole stack")]
    NoExits {
        /// What the model lacks.
        reason: String,
    },
    /// A request asks for exits that the engine was not started with.
    #[error(
        "`{name}` is given, but this model is served without early exits\nhint: calibrate them with `retie calibrate`"
    )]
    ExitsOff {
        /// The field.
        name: &'static str,
    },
    /// The exit after the first recursion cannot draft for the model.
    #[error("the model cannot speculate: {reason}\nhint: decode it plainly")]
    NoDrafts {
        /// What it lacks.
        reason: String,
    },
    /// Every slot is occupied.
    #[error("all {num_slots} slots have a sequence\nhint: admit it when one has finished, or use more slots")]
    NoFreeSlot {
        /// Slots of the engine.
        num_slots: usize,
    },
    /// Too few blocks of the KV cache are free.
    #[error(
        "the request needs {needed} blocks of the KV cache, and {available} are free beside those of the sequences that run\nhint: admit it when one has finished, or use more blocks"
    )]
    NoFreeBlocks {
        /// Blocks that it needs.
        needed: usize,
        /// Blocks that it can have: none while sequences wait that gave theirs up.
        available: usize,
    },
    /// The KV cache of a device is not in blocks.
    #[error(
        "the KV cache on a device has rows for each slot, and no tokens that all slots share\nhint: choose its size by the number of slots and the context"
    )]
    NoBlocks,
    /// The model gives logits that no token can be chosen from.
    #[error(
        "the model's logits after {position} tokens are not numbers: that of token {token} is `{value}`\nhint: its weights are damaged, or too large for the type that is computed in: try `--dtype f32`"
    )]
    LogitsNotFinite {
        /// Tokens of the sequence before it.
        position: usize,
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
}

impl EngineError {
    /// A scheduler that has no speculation.
    pub(crate) fn no_drafts_with(scheduler: Scheduler) -> Self {
        Self::NoDrafts { reason: format!("scheduler `{scheduler}` reads every token for itself") }
    }
}
