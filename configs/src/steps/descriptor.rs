//! Compressed descriptors with chunk recursion (FlashVGGT, <https://arxiv.org/abs/2512.01540>), for
//! one dimension and causal: the tokens of a sequence are divided into chunks, and a query attends
//! to the keys of its own chunk up to its own as they are, and to every earlier chunk through
//! *descriptors*: pooled keys and values of `ratio` tokens, of which every `stride`-th is kept. The
//! first `sinks` tokens stay as they are.
//!
//! Keys are pooled as they are before the rotary embedding, and turned to the position of the token
//! before the middle of their block:
//!
//! | `pool` | tokens of a block of `r` that are averaged |
//! |---|---|
//! | `centre` | the two in the middle; the one, if `r` is odd |
//! | `mean` | all |
//! | `nearest` | the one before the middle |
//!
//! A sequence that is no longer than a chunk has the logits of whole attention, whatever the other
//! parameters are; with `ratio: 1, stride: 1` every sequence has.

use super::*;
use crate::{KvSharing, named::named};

named! {
    /// Which tokens of a block a descriptor is the mean of.
    DescriptorPool, "pool" {
        /// The middle.
        Centre = "centre",
        /// All.
        Mean = "mean",
        /// The one before the middle.
        Nearest = "nearest",
    }
}

/// Parameters of `descriptor`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescriptorConfig {
    /// Tokens of a chunk, `C`.
    pub chunk: usize,
    /// Tokens of a block, `r`.
    pub ratio: usize,
    /// One descriptor of so many is kept, `p`.
    #[serde(default = "DescriptorConfig::one")]
    pub stride: usize,
    /// First tokens of a sequence that stay as they are.
    #[serde(default)]
    pub sinks: usize,
    /// What a descriptor is the mean of.
    #[serde(default = "DescriptorConfig::centre")]
    pub pool: DescriptorPool,
}

impl DescriptorConfig {
    fn one() -> usize {
        1
    }

    fn centre() -> DescriptorPool {
        DescriptorPool::Centre
    }

    /// First tokens of the blocks of chunk `chunk` whose descriptors are kept, counted within the
    /// chunk. Blocks of sinks have none.
    pub fn kept_blocks(&self, chunk: usize) -> impl Iterator<Item = usize> {
        let sinks = if chunk == 0 { self.sinks } else { 0 };
        (0..self.chunk).step_by(self.ratio * self.stride).filter(move |first| *first >= sinks)
    }

    /// Number of keys that stand for the first `chunks` chunks: sinks and descriptors.
    #[must_use]
    pub fn memory(&self, chunks: usize) -> usize {
        match chunks {
            0 => 0,
            chunks => self.sinks + self.kept_blocks(0).count() + (chunks - 1) * self.kept_blocks(1).count(),
        }
    }

    /// Tokens of a block that are averaged, and the one whose position the descriptor has.
    #[must_use]
    pub fn pooled(&self) -> (std::ops::Range<usize>, usize) {
        let middle = (self.ratio - 1) / 2;
        let tokens = match self.pool {
            DescriptorPool::Centre => middle..self.ratio / 2 + 1,
            DescriptorPool::Mean => 0..self.ratio,
            DescriptorPool::Nearest => middle..middle + 1,
        };
        (tokens, middle)
    }

    /// Keys that a cache holds for a sequence of up to `tokens` tokens.
    #[must_use]
    pub fn cached(&self, tokens: usize) -> usize {
        tokens.min(self.chunk) + self.memory(tokens.div_ceil(self.chunk).saturating_sub(1))
    }
}

impl StepMechanism for DescriptorConfig {
    fn slot(&self) -> Slot {
        Slot::Attention
    }

    fn problems(&self, place: &Place<'_>) -> Vec<String> {
        let Self { chunk, ratio, stride, sinks, .. } = self;
        let mut problems = Vec::new();
        for (key, value) in [("chunk", chunk), ("ratio", ratio), ("stride", stride)] {
            if *value == 0 {
                problems.push(format!("`{key}` is 0, expected 1 or more"));
            }
        }
        if problems.is_empty() {
            if !chunk.is_multiple_of(*ratio) {
                let below = chunk / ratio * ratio;
                problems.push(format!(
                    "`chunk` is {chunk}, expected a multiple of `ratio` {ratio}, e.g. {}",
                    below.max(*ratio)
                ));
            }
            if sinks > chunk || !sinks.is_multiple_of(*ratio) {
                problems
                    .push(format!("`sinks` is {sinks}, expected a multiple of `ratio` {ratio} up to `chunk` {chunk}"));
            }
        }
        if let Some(window) = place.window() {
            problems.push(format!("depths see a window of {window} tokens, expected full attention"));
        }
        if place.recursion.kv_sharing != KvSharing::RecursionWise {
            let found = place.recursion.kv_sharing;
            problems.push(format!("the model has `kv_sharing: {found}`, expected `recursion_wise`"));
        }
        if let Some(router) = &place.recursion.router {
            let kind = router.kind();
            problems.push(format!(
                "the model has `{kind}` routers, expected none: a descriptor stands for neighbouring tokens, and routers leave some out"
            ));
        }
        problems
    }

    fn mean_keys(&self, keys: f64) -> Option<f64> {
        let tokens = keys.round() as usize;
        let chunks = tokens.div_ceil(self.chunk);
        let seen = (0..chunks).map(|chunk| {
            let own = self.chunk.min(tokens - chunk * self.chunk) as f64;
            own * self.memory(chunk) as f64 + own * (own + 1.0) / 2.0
        });
        Some(seen.sum::<f64>() / tokens.max(1) as f64)
    }

    fn cached_keys(&self, tokens: usize) -> Option<usize> {
        Some(self.cached(tokens))
    }
}
