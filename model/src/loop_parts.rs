//! The parts of a recursive stack: the depths before the loop, the shared block, the depths after
//! the loop. Sequences go through them at their own pace: one pass over the shared block takes rows
//! of all recursions (continuous depth-wise batching, Relaxed Recursive Transformers, §3.8,
//! <https://arxiv.org/abs/2410.20672>).
//!
//! The rows are sorted by recursion. A linear multiplies all of them with the shared weight at
//! once; LoRA, own norms and extras belong to a depth, and are applied to its rows. Every depth has
//! keys and values of its own, so attention runs recursion by recursion.

use crate::{
    CausalLm, KvCache, Span,
    at_depths::AtDepths,
    block::Block,
    kv::{DepthCaches, DepthRows, KvSource},
};
use burn::tensor::Tensor;
use retie_config::KvSharing;
use std::ops::Range;

/// Depths of the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopParts {
    /// Depths before the loop; may be empty.
    pub before: Range<usize>,
    /// Depths of each recursion: the same layers in the same order.
    pub recursions: Vec<Range<usize>>,
    /// Depths after the loop; may be empty.
    pub after: Range<usize>,
}

/// Tokens in a recursion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InRecursion {
    /// Index of the recursion.
    pub recursion: usize,
    /// The tokens.
    pub span: Span,
}

impl CausalLm {
    /// Parts of the stack; `None` if recursions do not run the same layers one after the other, if
    /// a router decides who runs them, or if they share keys and values.
    #[must_use]
    pub fn loop_parts(&self) -> Option<LoopParts> {
        let (map, kinds) = (self.share_map(), &self.config().anatomy.depths);
        let has_steps = self.config().recursion.as_ref().is_some_and(|recursion| !recursion.steps.is_empty());
        if has_steps || self.router().is_some() || self.kv_sharing() != KvSharing::RecursionWise {
            return None;
        }
        let mut parts = LoopParts { before: 0..0, recursions: Vec::new(), after: 0..0 };
        for pass in map.passes() {
            match map.depths()[pass.start].recursion {
                Some(recursion) if recursion == parts.recursions.len() => parts.recursions.push(pass),
                None if parts.recursions.is_empty() => parts.before = pass,
                None if parts.after.is_empty() => parts.after = pass,
                _ => return None,
            }
        }
        let first = parts.recursions.first()?.clone();
        let alike = |pass: &Range<usize>| {
            let equal = |(a, b): (usize, usize)| map.depths()[a].layer == map.depths()[b].layer && kinds[a] == kinds[b];
            pass.len() == first.len() && first.clone().zip(pass.clone()).all(equal)
        };
        let ordered = parts.before.end <= first.start && (parts.after.is_empty() || parts.after.start > first.start);
        (ordered && parts.recursions.iter().all(alike)).then_some(parts)
    }

    /// Runs unshared depths over the hidden states `x [M, D]` of `spans`, whose keys and values are
    /// added to the cache.
    #[must_use]
    pub fn run_part(&self, x: Tensor<2>, depths: Range<usize>, spans: &[Span], cache: &mut KvCache) -> Tensor<2> {
        if depths.is_empty() {
            return x;
        }
        let rows = self.row_context(cache.layout_of(spans.iter().copied()));
        self.run_cached_depths(x, depths, &rows, cache)
    }

    /// Runs the shared block over the hidden states `x [M, D]` of `tokens`, which are sorted by
    /// recursion, each in its own recursion. If `exits`, later recursions get the keys and values
    /// too, for the case that the tokens do not reach them ("latest").
    ///
    /// # Panics
    /// When the tokens are not sorted.
    #[must_use]
    pub fn run_block(
        &self,
        mut x: Tensor<2>,
        parts: &LoopParts,
        tokens: &[InRecursion],
        exits: bool,
        cache: &mut KvCache,
    ) -> Tensor<2> {
        let rows = self.row_context(cache.layout_of(tokens.iter().map(|tokens| tokens.span)));
        let groups: Vec<&[InRecursion]> = tokens.chunk_by(|a, b| a.recursion == b.recursion).collect();
        assert!(groups.windows(2).all(|pair| pair[0][0].recursion < pair[1][0].recursion), "sorted by recursion");
        let layouts: Vec<_> =
            groups.iter().map(|group| cache.layout_of(group.iter().map(|tokens| tokens.span))).collect();
        let recursions: Vec<usize> = groups.iter().map(|group| group[0].recursion).collect();
        let map = self.share_map();
        let num_layers = parts.recursions.first().map_or(0, Range::len);
        for index in 0..num_layers {
            let depth = |recursion: usize| parts.recursions[recursion].start + index;
            let first = depth(recursions[0]);
            let own = match recursions.as_slice() {
                [recursion] => AtDepths::One(&self.model.depths[depth(*recursion)]),
                several => {
                    let of = |(recursion, layout): (&usize, &crate::kernels::Layout)| {
                        (&self.model.depths[depth(*recursion)], layout.num_rows())
                    };
                    AtDepths::Several(several.iter().zip(&layouts).map(of).collect())
                }
            };
            let config = self.config();
            let (layer, kind) = (&self.model.layers[map.depths()[first].layer.0], config.anatomy.depths[first]);
            let depth_rows = recursions.iter().zip(&layouts).map(|(recursion, layout)| {
                let later = if exits { recursion + 1..parts.recursions.len() } else { 0..0 };
                DepthRows { depth: depth(*recursion), layout, later: later.map(depth).collect() }
            });
            let kv = KvSource::OfDepths(DepthCaches { groups: depth_rows.collect(), cache: &mut *cache });
            x = Block { layer, own, config, kind }.forward(x, &rows, kv, None);
        }
        x
    }
}
