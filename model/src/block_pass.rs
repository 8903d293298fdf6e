//! One pass over the shared block with rows of all recursions (continuous depth-wise batching,
//! Relaxed Recursive Transformers, §3.8, <https://arxiv.org/abs/2410.20672>).
//!
//! The rows are sorted by recursion. A linear multiplies all of them with the shared weight at
//! once; LoRA, own norms, extras and steps belong to a depth, and are applied to its rows.
//! Attention runs recursion by recursion: over keys and values of the depth's own, or with
//! `kv_sharing: shared` over those of the first recursion. With `hybrid` the first recursion's are
//! copied to the later ones, where a token's own replace them.

use crate::{
    CausalLm, KvCache, LoopParts, Span,
    at_depths::AtDepths,
    block::Block,
    exit::BesideWaiting,
    kernels::Layout,
    kv::{DepthCaches, DepthRows, KvSource},
};
use burn::tensor::Tensor;
use retie_config::{KvSharing, SkippedKv};
use std::ops::Range;

/// Tokens in a recursion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InRecursion {
    /// Index of the recursion.
    pub recursion: usize,
    /// The tokens.
    pub span: Span,
}

/// A pass over the shared block.
#[derive(Clone, Copy, Debug)]
pub struct BlockPass<'a> {
    /// Parts of the stack.
    pub parts: &'a LoopParts,
    /// Tokens of the pass, sorted by recursion, each in its own recursion.
    pub tokens: &'a [InRecursion],
    /// Policy for the keys and values of skipped recursions, which the cache was made for.
    pub kv: SkippedKv,
    /// True if a token of the pass may leave the loop before the last recursion.
    pub may_leave: bool,
}

impl CausalLm {
    /// Runs the shared block over the hidden states `x [M, D]` of the tokens of `pass`. Tokens that
    /// have left earlier and wait for one of these (`recompute`) run beside them.
    ///
    /// # Panics
    /// When the tokens are not sorted.
    #[must_use]
    pub fn run_block(&self, x: Tensor<2>, pass: BlockPass<'_>, cache: &mut KvCache) -> Tensor<2> {
        if pass.kv != SkippedKv::Recompute {
            return self.run_block_rows(x, pass, cache);
        }
        let (x, beside) = BesideWaiting::join(x, pass.tokens, cache);
        let x = self.run_block_rows(x, BlockPass { tokens: &beside.tokens, ..pass }, cache);
        beside.split(x, pass.parts.recursions.len(), cache)
    }

    fn run_block_rows(&self, mut x: Tensor<2>, pass: BlockPass<'_>, cache: &mut KvCache) -> Tensor<2> {
        let BlockPass { parts, tokens, kv, may_leave } = pass;
        let rows = self.row_context(cache.layout_of(tokens.iter().map(|tokens| tokens.span)));
        let groups: Vec<&[InRecursion]> = tokens.chunk_by(|a, b| a.recursion == b.recursion).collect();
        assert!(groups.windows(2).all(|pair| pair[0][0].recursion < pair[1][0].recursion), "sorted by recursion");
        let layout = |group: &&[InRecursion]| {
            let layout = cache.layout_of(group.iter().map(|tokens| tokens.span));
            let (recursion, all) = (group[0].recursion, (0..layout.num_rows()).collect::<Vec<_>>());
            // With `skip` the buffers of a recursion hold the tokens that reach it.
            cache.select(recursion, parts.recursions[recursion].clone(), &layout, &all).unwrap_or(layout)
        };
        let layouts: Vec<Layout> = groups.iter().map(layout).collect();
        let recursions: Vec<usize> = groups.iter().map(|group| group[0].recursion).collect();
        let map = self.share_map();
        let num_layers = parts.recursions.first().map_or(0, Range::len);
        for index in 0..num_layers {
            let depth = |recursion: usize| parts.recursions[recursion].start + index;
            let first = depth(recursions[0]);
            let own = match recursions.as_slice() {
                [recursion] => AtDepths::One(&self.model.depths[depth(*recursion)]),
                several => {
                    let of = |(recursion, layout): (&usize, &Layout)| {
                        (&self.model.depths[depth(*recursion)], layout.num_rows())
                    };
                    AtDepths::Several(several.iter().zip(&layouts).map(of).collect())
                }
            };
            let config = self.config();
            let (layer, kind) = (&self.model.layers[map.depths()[first].layer.0], config.anatomy.depths[first]);
            let depth_rows = recursions.iter().zip(&layouts).map(|(recursion, layout)| {
                let copies = match self.kv_sharing() {
                    KvSharing::RecursionWise => may_leave && kv == SkippedKv::Latest,
                    KvSharing::Shared => false,
                    KvSharing::Hybrid => *recursion == 0,
                };
                let later = if copies { recursion + 1..parts.recursions.len() } else { 0..0 };
                let computes = *recursion == 0 || self.kv_sharing() != KvSharing::Shared;
                let depth = |recursion: usize| parts.recursions[recursion].start + index;
                let reads = depth(if computes { *recursion } else { 0 });
                DepthRows { depth: reads, layout, computes, later: later.map(depth).collect() }
            });
            let kv = KvSource::OfDepths(DepthCaches { groups: depth_rows.collect(), cache: &mut *cache });
            x = Block { layer, own, config, kind }.forward(x, &rows, kv, None);
        }
        x
    }

    /// Does what the policy asks for tokens that leave the loop early, with their states `x [M,
    /// D]`: each of `tokens` names the recursion that it does not reach.
    pub fn leave_block(&self, x: &Tensor<2>, pass: BlockPass<'_>, cache: &mut KvCache) {
        match pass.kv {
            SkippedKv::Propagate => self.propagate(x, pass, cache),
            SkippedKv::Recompute => BesideWaiting::wait(x, pass.tokens, cache),
            SkippedKv::Skip | SkippedKv::Latest | SkippedKv::Shared => {}
        }
    }

    /// `propagate`: keys and values that the weights of the skipped recursions make of the states.
    fn propagate(&self, x: &Tensor<2>, pass: BlockPass<'_>, cache: &mut KvCache) {
        let mut start = 0;
        for group in pass.tokens.chunk_by(|a, b| a.recursion == b.recursion) {
            let rows = self.row_context(cache.layout_of(group.iter().map(|tokens| tokens.span)));
            let x = x.clone().narrow(0, start, rows.num_rows());
            start += rows.num_rows();
            for depth in pass.parts.recursions[group[0].recursion..].iter().cloned().flatten() {
                let made = self.keys_values(x.clone(), depth, &rows);
                let _ = cache.depth(depth, &rows.layout).append(made);
            }
        }
    }
}
