//! The inference engine: sequences are admitted, continued token by token in one batch, and
//! evicted.
//!
//! 1. A [`Request`] is a prompt with its sampling parameters ([`Sampling`]) and stop conditions
//!    ([`StopConditions`]).
//! 2. [`Engine::admit`] gives it a slot of the KV cache, with the tokens that others have read, if
//!    it begins as they do ([`Engine::with_prefix_reuse`]).
//! 3. [`Engine::step`] runs one forward pass over all sequences: prompts in chunks, one token of
//!    each other sequence. It samples and returns the progress of each sequence.
//!    With [`Scheduler::Lockstep`] or [`Scheduler::Depthwise`] tokens go through the parts of a
//!    recursive stack at their own pace.
//!    With a KV cache in blocks ([`Engine::with_kv_blocks`]) the youngest sequence gives up its
//!    memory where there is too little, and reads its tokens again later.
//! 4. A finished sequence frees its slot; [`Engine::evict`] ends one early, and [`Engine::pause`]
//!    leaves one out of the steps.
//!
//! Tokens are ids: text, HTTP and queues are left to the callers. The tokens of a sequence do not
//! depend on the others in its batch, up to ties within the rounding of f32.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod engine;
mod error;
mod exits;
mod held;
mod logprobs;
mod looped;
mod memory;
mod pipeline;
mod prefixes;
mod report;
mod request;
pub mod sampling;
mod schedule;
mod scheduler;
mod sequence;
mod speculation;
mod stop;
mod stop_text;

pub use engine::{BLOCK_TOKENS, Engine, EngineOptions};
pub use error::EngineError;
pub use exits::ExitOptions;
pub use logprobs::TokenLogprobs;
pub use memory::KvUsage;
pub use prefixes::PrefixCounts;
pub use report::Progress;
pub use request::{Request, SequenceId};
pub use sampling::{Sampler, Sampling};
pub use scheduler::{ExitTrace, Scheduler};
pub use speculation::{MOST_DRAFTS, SpeculationCounts, SpeculationOptions};
pub use stop::{FinishReason, StopConditions};
pub use stop_text::StopText;
