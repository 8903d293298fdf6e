//! Recursive generalisation attention (RGT, <https://arxiv.org/abs/2303.06373>), for one dimension
//! and causal. The tokens of a sequence are divided into chunks of `latents` tokens. A query
//! attends to the keys of its own chunk up to its own and of the chunk before it as they are, and
//! to all earlier tokens through *latents*: keys and values that one filter over `stride`
//! neighbours, applied to its own result again and again, makes of them:
//!
//! ```text
//! z_{0,i} = (k_i, v_i);  z_{t+1,j} = b + Σ_{m < stride} w_m ⊙ z_{t, stride·j + m}
//! ```
//!
//! The tokens before the chunk before a query's, `n` of them, are seen as the `⌊n/stride^T⌋`
//! latents of the first level `T ≥ 1` that has no more than `latents`, and what is left of them as
//! the fewest latents of the levels below. So a query has at most
//! `3·latents + (T − 1)·(stride − 1)` keys. The level depends on the position of the query, not on
//! the length of the sequence: a token changes nothing before it, and decoding goes on from what it
//! has.
//!
//! Keys are reduced as they are before the rotary embedding, and a latent is turned to the position
//! of the token before its middle. `key_ratio` is the part of the channels of a head in which
//! latents have keys: those of the lowest rotary frequencies, which differ least between the tokens
//! of a latent. The filter starts as the mean, so that a latent is that of its tokens.
//!
//! The reference reduces hidden states, before they are projected, and refines the result with two
//! further convolutions. A filter that is equal in all channels commutes with the projections; that
//! of keys and values needs no hidden states in the cache.

use super::*;
use crate::{KvSharing, TensorInit};

/// Parameters of `rg`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RgConfig {
    /// Neighbours that one latent of the next level is made of.
    pub stride: usize,
    /// Most latents of the highest level, and tokens of a chunk.
    pub latents: usize,
    /// Part of the channels of a head in which latents have keys.
    pub key_ratio: f64,
}

impl Default for RgConfig {
    fn default() -> Self {
        Self { stride: 4, latents: 64, key_ratio: 1.0 }
    }
}

/// Key and value that stand for `stride^level` consecutive tokens; those of level 0 are a token's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Latent {
    /// How many times the filter has been applied.
    pub level: u32,
    /// Number among the latents of its level.
    pub index: usize,
}

impl Latent {
    /// Tokens that it stands for.
    #[must_use]
    pub fn tokens(self, stride: usize) -> std::ops::Range<usize> {
        let each = stride.pow(self.level);
        self.index * each..(self.index + 1) * each
    }

    /// Position of its key: that of the token before the middle.
    #[must_use]
    pub fn position(self, stride: usize) -> usize {
        let tokens = self.tokens(stride);
        tokens.start + (tokens.len() - 1) / 2
    }

    /// What the filter makes it of, in order.
    pub fn parts(self, stride: usize) -> impl Iterator<Item = Self> {
        let Self { level, index } = self;
        (0..stride).map(move |part| Self { level: level.saturating_sub(1), index: stride * index + part })
    }
}

impl RgConfig {
    /// Latents of `chunk` that stand for what is before the chunk before it, in the order of their
    /// tokens.
    #[must_use]
    pub fn latents_before(&self, chunk: usize) -> Vec<Latent> {
        let tokens = chunk.saturating_sub(1) * self.latents;
        let mut top = 1;
        while tokens / self.stride.pow(top) > self.latents {
            top += 1;
        }
        let (mut found, mut start) = (Vec::new(), 0);
        for level in (1..=top).rev() {
            let each = self.stride.pow(level);
            let count = (tokens - start) / each;
            found.extend((0..count).map(|index| Latent { level, index: start / each + index }));
            start += count * each;
        }
        found
    }

    /// Tokens of the chunk before `chunk`.
    #[must_use]
    pub fn whole_before(&self, chunk: usize) -> usize {
        if chunk == 0 { 0 } else { self.latents }
    }

    /// Most latents of any of the first `chunks` chunks.
    #[must_use]
    pub fn most_latents(&self, chunks: usize) -> usize {
        (0..chunks).map(|chunk| self.latents_before(chunk).len()).max().unwrap_or(0)
    }

    /// Keys that a cache holds for a sequence of up to `tokens` tokens.
    #[must_use]
    pub fn cached(&self, tokens: usize) -> usize {
        let chunks = tokens.div_ceil(self.latents);
        self.most_latents(chunks) + self.whole_before(chunks.saturating_sub(1)) + tokens.min(self.latents)
    }

    /// Channels of a head of `head_dim` in which latents have keys, ascending. The first
    /// `rotary_dim` are rotated in pairs `(i, i + rotary_dim/2)`, the last of them most slowly.
    #[must_use]
    pub fn key_channels(&self, head_dim: usize, rotary_dim: usize) -> Vec<usize> {
        let half = rotary_dim / 2;
        let pairs = (0..half).rev().flat_map(|pair| [pair, pair + half]);
        let slowest = (rotary_dim..head_dim).chain(pairs);
        let count = 2 * (self.key_ratio * head_dim as f64 / 2.0).round() as usize;
        let mut channels: Vec<usize> = slowest.take(count.max(2)).collect();
        channels.sort_unstable();
        channels
    }
}

impl StepMechanism for RgConfig {
    fn slot(&self) -> Slot {
        Slot::Attention
    }

    fn problems(&self, place: &Place<'_>) -> Vec<String> {
        let Self { stride, latents, key_ratio } = self;
        let mut problems = Vec::new();
        if *stride < 2 {
            problems.push(format!("`stride` is {stride}, expected 2 or more"));
        } else if *latents == 0 || !latents.is_multiple_of(*stride) {
            let below = latents / stride * stride;
            let e_g = below.max(*stride);
            problems.push(format!("`latents` is {latents}, expected a multiple of `stride` {stride}, e.g. {e_g}"));
        }
        if !(*key_ratio > 0.0 && *key_ratio <= 1.0) {
            problems.push(format!("`key_ratio` is {key_ratio}, expected more than 0, up to 1"));
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
                "the model has `{kind}` routers, expected none: a latent stands for neighbouring tokens, and routers leave some out"
            ));
        }
        problems
    }

    fn tensors(&self, place: &Place<'_>) -> Vec<StepTensor> {
        let width = place.model.key_value_size();
        let mean = TensorInit::Constant(1.0 / self.stride as f32);
        vec![
            StepTensor::weight("rg.keys.weight", &[width, self.stride], mean),
            StepTensor::bias("rg.keys.bias", width),
            StepTensor::weight("rg.values.weight", &[width, self.stride], mean),
            StepTensor::bias("rg.values.bias", width),
        ]
    }

    /// The filter is no matrix product.
    fn operations(&self, _: &Place<'_>) -> f64 {
        0.0
    }

    fn mean_keys(&self, keys: f64) -> Option<f64> {
        let tokens = keys.round() as usize;
        let seen = (0..tokens.div_ceil(self.latents)).map(|chunk| {
            let own = self.latents.min(tokens - chunk * self.latents) as f64;
            let before = self.latents_before(chunk).len() + self.whole_before(chunk);
            own * before as f64 + own * (own + 1.0) / 2.0
        });
        Some(seen.sum::<f64>() / tokens.max(1) as f64)
    }

    fn cached_keys(&self, tokens: usize) -> Option<usize> {
        Some(self.cached(tokens))
    }
}
