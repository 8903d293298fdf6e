//! Early exits of an unrolled stack: the depths that a token runs if it leaves the loop after its
//! first recursions.
//!
//! An exit skips recursions and nothing else. The unshared layers after the loop (the coda) run at
//! every exit, as the final norm and the head do (Mixture-of-Recursions, §2.1,
//! <https://arxiv.org/abs/2507.10524>): an exit after the first recursion of a selection is the
//! model without the removed layers.

use crate::{ShareError, ShareMap};
use std::ops::Range;

/// Exits after `1 … R` recursions; the last one is the whole stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exits {
    ends: Vec<usize>,
    num_depths: usize,
}

impl Exits {
    /// Number of recursions, `R`.
    #[must_use]
    pub fn num_recursions(&self) -> usize {
        self.ends.len()
    }

    /// Number of depths up to the end of the first `recursions` recursions.
    ///
    /// # Panics
    /// When there are no recursions, or more than `R`.
    #[must_use]
    pub fn end(&self, recursions: usize) -> usize {
        self.ends[recursions - 1]
    }

    /// Depths after the loop, which run at every exit.
    #[must_use]
    pub fn coda(&self) -> Range<usize> {
        self.end(self.num_recursions())..self.num_depths
    }

    /// Number of depths that the exit after `recursions` recursions runs.
    #[must_use]
    pub fn num_depths(&self, recursions: usize) -> usize {
        self.end(recursions) + self.coda().len()
    }
}

impl ShareMap {
    /// Early exits of the stack.
    ///
    /// # Errors
    /// When its recursions do not run one after the other, without other layers between them.
    pub fn exits(&self) -> Result<Exits, ShareError> {
        let none = |reason| ShareError::NoExits { pattern: self.pattern().to_string(), reason };
        let ends = self.recursion_ends().ok_or_else(|| none("its recursions do not run one after the other"))?;
        let looped = self.depths().iter().skip_while(|step| step.recursion.is_none());
        let looped = looped.take(ends.last().map_or(0, |last| last - self.loop_start()));
        if looped.into_iter().any(|step| step.recursion.is_none()) {
            return Err(none("it has unshared layers between its recursions"));
        }
        Ok(Exits { ends, num_depths: self.num_depths() })
    }

    /// First depth of the loop.
    #[must_use]
    pub fn loop_start(&self) -> usize {
        self.depths().iter().take_while(|step| step.recursion.is_none()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pattern, Sharing};

    #[test]
    fn an_exit_skips_recursions_and_keeps_the_layers_after_the_loop() {
        let map = ShareMap::new(11, 3, Sharing::MiddleCycle).unwrap();
        let exits = map.exits().unwrap();
        assert_eq!((exits.num_recursions(), exits.coda(), map.loop_start()), (3, 10..11, 1));
        assert_eq!([1, 2, 3].map(|r| (exits.end(r), exits.num_depths(r))), [(4, 5), (7, 8), (10, 11)]);
        let cycle = ShareMap::new(6, 2, Sharing::Cycle).unwrap().exits().unwrap();
        assert_eq!((cycle.coda(), cycle.num_depths(1)), (6..6, 3));
        let plain = ShareMap::identity(4).exits().unwrap();
        assert_eq!((plain.num_recursions(), plain.num_depths(1)), (1, 4));
    }

    #[test]
    fn patterns_without_a_common_prelude_and_coda_have_no_exits() {
        let error = |map: ShareMap| map.exits().unwrap_err().to_string();
        assert_eq!(
            error(ShareMap::new(6, 2, Sharing::Sequence).unwrap()),
            "`sequence` has no early exits: its recursions do not run one after the other"
        );
        let map = ShareMap::lay(&Pattern::Map(vec![0, 1, 2, 1, 3]), 5, 2).unwrap();
        assert!(error(map).ends_with("no early exits: it has unshared layers between its recursions"));
    }
}
