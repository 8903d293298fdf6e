//! The parts of a recursive stack: the depths before the loop, the shared block, the depths after
//! the loop. Sequences go through them at their own pace (`block_pass`).

use crate::{CausalLm, KvCache, Span};
use burn::tensor::Tensor;
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

impl CausalLm {
    /// Parts of the stack.
    ///
    /// # Errors
    /// Why it has none that tokens could go through at their own pace: recursions do not run the
    /// same layers one after the other, or a step of them is not local to a token.
    pub fn loop_parts(&self) -> Result<LoopParts, String> {
        let (map, kinds) = (self.share_map(), &self.config().anatomy.depths);
        self.check_local_steps()?;
        let not_alike = || "its recursions do not run the same layers one after the other".to_owned();
        let mut parts = LoopParts { before: 0..0, recursions: Vec::new(), after: 0..0 };
        for pass in map.passes() {
            match map.depths()[pass.start].recursion {
                Some(recursion) if recursion == parts.recursions.len() => parts.recursions.push(pass),
                None if parts.recursions.is_empty() => parts.before = pass,
                None if parts.after.is_empty() => parts.after = pass,
                _ => return Err(not_alike()),
            }
        }
        let first = parts.recursions.first().ok_or_else(not_alike)?.clone();
        let alike = |pass: &Range<usize>| {
            let equal = |(a, b): (usize, usize)| map.depths()[a].layer == map.depths()[b].layer && kinds[a] == kinds[b];
            pass.len() == first.len() && first.clone().zip(pass.clone()).all(equal)
        };
        let ordered = parts.before.end <= first.start && (parts.after.is_empty() || parts.after.start > first.start);
        if ordered && parts.recursions.iter().all(alike) { Ok(parts) } else { Err(not_alike()) }
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
}
