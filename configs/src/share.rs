//! Which stored layer each depth of the unrolled stack uses: parameter sharing by index.
//!
//! Source: Relaxed Recursive Transformers, Eq. 2 (<https://arxiv.org/abs/2410.20672>) for `cycle`; Mixture-of-Recursions,
//! Table 1 (<https://arxiv.org/abs/2507.10524>) for the four patterns.
//!
//! Words: a *layer* is stored weights, a *depth* is an index in the unrolled stack, a *recursion* is one pass over the
//! shared block. `N` depths, `R` recursions, `K` layers in the shared block.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Index in the unrolled stack, `0..num_hidden_layers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Depth(pub usize);

/// Index of stored weights, `0..ShareMap::num_layers()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerIndex(pub usize);

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for LayerIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How depths share layers. `F`, `L`: the unshared first and last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// The block is repeated: `0,1,2,0,1,2`.
    Cycle,
    /// Each layer is repeated in place: `0,0,1,1,2,2`.
    Sequence,
    /// `cycle` between an unshared first and last layer: `F,0,1,2,0,1,2,L`.
    MiddleCycle,
    /// `sequence` between an unshared first and last layer: `F,0,0,1,1,2,2,L`.
    MiddleSequence,
}

impl Sharing {
    /// Every pattern, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Cycle, Self::Sequence, Self::MiddleCycle, Self::MiddleSequence];

    /// The name in configurations and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cycle => "cycle",
            Self::Sequence => "sequence",
            Self::MiddleCycle => "middle_cycle",
            Self::MiddleSequence => "middle_sequence",
        }
    }

    /// Number of unshared layers at each end of the stack.
    #[must_use]
    pub fn num_unshared_ends(self) -> usize {
        match self {
            Self::Cycle | Self::Sequence => 0,
            Self::MiddleCycle | Self::MiddleSequence => 1,
        }
    }
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Sharing {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| {
            format!("unknown sharing `{name}`, expected one of cycle, sequence, middle_cycle, middle_sequence")
        })
    }
}

/// Why a sharing pattern cannot be laid over a stack.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// `R` does not divide the layers that the pattern shares.
    #[error(
        "`{num_recursions}` recursions do not divide the {num_shared} layers that `{sharing}` shares \
         (of {num_hidden_layers})\nhint: these numbers of recursions do: {}",
        list(divisors)
    )]
    Indivisible {
        /// Layers of the source model.
        num_hidden_layers: usize,
        /// Layers that the pattern shares.
        num_shared: usize,
        /// What was asked for.
        num_recursions: usize,
        /// The pattern.
        sharing: Sharing,
        /// The numbers that divide.
        divisors: Vec<usize>,
    },
    /// The pattern leaves nothing to share.
    #[error("`{sharing}` needs at least {needed} layers, found {num_hidden_layers}")]
    TooFewLayers {
        /// Layers of the source model.
        num_hidden_layers: usize,
        /// Smallest stack that the pattern accepts.
        needed: usize,
        /// The pattern.
        sharing: Sharing,
    },
}

fn list(numbers: &[usize]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The numbers of recursions that `sharing` accepts for a stack of `num_hidden_layers`, ascending.
#[must_use]
pub fn dividing_recursions(num_hidden_layers: usize, sharing: Sharing) -> Vec<usize> {
    let num_shared = num_hidden_layers.saturating_sub(2 * sharing.num_unshared_ends());
    (1..=num_shared).filter(|r| num_shared.is_multiple_of(*r)).collect()
}

/// One step of the unrolled stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthPlan {
    /// Position in the unrolled stack.
    pub depth: Depth,
    /// Stored weights that it runs.
    pub layer: LayerIndex,
    /// Pass over the shared block, 0-based; `None` for an unshared first or last layer.
    pub recursion: Option<usize>,
}

/// The whole schedule: depth → (layer, recursion). Every crate reads sharing from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareMap {
    sharing: Sharing,
    num_recursions: usize,
    num_layers: usize,
    plan: Vec<DepthPlan>,
}

impl ShareMap {
    /// Lays `sharing` with `num_recursions` over a stack of `num_hidden_layers`.
    ///
    /// # Errors
    /// When the pattern leaves nothing to share, or `num_recursions` does not divide what it shares.
    pub fn new(num_hidden_layers: usize, num_recursions: usize, sharing: Sharing) -> Result<Self, ShareError> {
        let ends = sharing.num_unshared_ends();
        let needed = 2 * ends + 1;
        if num_hidden_layers < needed {
            return Err(ShareError::TooFewLayers { num_hidden_layers, needed, sharing });
        }
        let num_shared = num_hidden_layers - 2 * ends;
        if num_recursions == 0 || !num_shared.is_multiple_of(num_recursions) {
            return Err(ShareError::Indivisible {
                num_hidden_layers,
                num_shared,
                num_recursions,
                sharing,
                divisors: dividing_recursions(num_hidden_layers, sharing),
            });
        }
        let block = num_shared / num_recursions;
        let plan = (0..num_hidden_layers)
            .map(|depth| {
                let (layer, recursion) = if depth < ends {
                    (0, None)
                } else if depth >= ends + num_shared {
                    (ends + block, None)
                } else {
                    let inner = depth - ends;
                    let (layer, recursion) = match sharing {
                        Sharing::Cycle | Sharing::MiddleCycle => (inner % block, inner / block),
                        Sharing::Sequence | Sharing::MiddleSequence => (inner / num_recursions, inner % num_recursions),
                    };
                    (ends + layer, Some(recursion))
                };
                DepthPlan { depth: Depth(depth), layer: LayerIndex(layer), recursion }
            })
            .collect();
        Ok(Self { sharing, num_recursions, num_layers: block + 2 * ends, plan })
    }

    /// The map of a model whose depths all have layers of their own.
    #[must_use]
    pub fn identity(num_hidden_layers: usize) -> Self {
        let plan = (0..num_hidden_layers)
            .map(|i| DepthPlan { depth: Depth(i), layer: LayerIndex(i), recursion: Some(0) })
            .collect();
        Self { sharing: Sharing::Cycle, num_recursions: 1, num_layers: num_hidden_layers, plan }
    }

    /// The steps in the order in which they run.
    #[must_use]
    pub fn depths(&self) -> &[DepthPlan] {
        &self.plan
    }

    /// Length of the unrolled stack, `N`.
    #[must_use]
    pub fn num_depths(&self) -> usize {
        self.plan.len()
    }

    /// Number of layers that are stored.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// Number of passes over the shared block, `R`.
    #[must_use]
    pub fn num_recursions(&self) -> usize {
        self.num_recursions
    }

    /// The pattern.
    #[must_use]
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// The depths that run `layer`, ascending: its tied group.
    #[must_use]
    pub fn depths_of(&self, layer: LayerIndex) -> Vec<Depth> {
        self.plan.iter().filter(|p| p.layer == layer).map(|p| p.depth).collect()
    }

    /// Whether more than one depth runs `layer`.
    #[must_use]
    pub fn is_shared(&self, layer: LayerIndex) -> bool {
        self.plan.iter().filter(|p| p.layer == layer).count() > 1
    }

    /// Layers of the shared block, `K`, as a range over stored layers.
    #[must_use]
    pub fn block(&self) -> std::ops::Range<usize> {
        let ends = self.sharing.num_unshared_ends();
        ends..self.num_layers - ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layers(n: usize, r: usize, sharing: Sharing) -> Vec<usize> {
        ShareMap::new(n, r, sharing).unwrap().depths().iter().map(|p| p.layer.0).collect()
    }

    #[test]
    fn unrolled_orders_are_those_of_the_papers() {
        assert_eq!(layers(6, 2, Sharing::Cycle), [0, 1, 2, 0, 1, 2]);
        assert_eq!(layers(6, 2, Sharing::Sequence), [0, 0, 1, 1, 2, 2]);
        assert_eq!(layers(8, 2, Sharing::MiddleCycle), [0, 1, 2, 3, 1, 2, 3, 4]);
        assert_eq!(layers(8, 2, Sharing::MiddleSequence), [0, 1, 1, 2, 2, 3, 3, 4]);
    }

    #[test]
    fn an_indivisible_stack_names_the_recursions_that_fit() {
        let error = ShareMap::new(30, 4, Sharing::Cycle).unwrap_err();
        assert!(
            error.to_string().ends_with("hint: these numbers of recursions do: 1, 2, 3, 5, 6, 10, 15, 30"),
            "{error}"
        );
        assert!(matches!(ShareMap::new(2, 1, Sharing::MiddleCycle), Err(ShareError::TooFewLayers { .. })));
        assert!(ShareMap::new(6, 0, Sharing::Cycle).is_err());
    }

    proptest! {
        #[test]
        fn a_map_is_surjective_and_its_groups_have_one_depth_per_recursion(
            block in 1usize..8, recursions in 1usize..6, which in 0usize..4,
        ) {
            let sharing = Sharing::ALL[which];
            let ends = sharing.num_unshared_ends();
            let map = ShareMap::new(block * recursions + 2 * ends, recursions, sharing).unwrap();
            prop_assert_eq!(map.num_layers(), block + 2 * ends);
            for layer in 0..map.num_layers() {
                let group = map.depths_of(LayerIndex(layer));
                let expected = if map.block().contains(&layer) { recursions } else { 1 };
                prop_assert_eq!(group.len(), expected);
                let passes: Vec<_> = group.iter().map(|d| map.depths()[d.0].recursion).collect();
                if map.block().contains(&layer) {
                    prop_assert_eq!(passes, (0..recursions).map(Some).collect::<Vec<_>>());
                } else {
                    prop_assert_eq!(passes, vec![None]);
                }
            }
        }

        #[test]
        fn one_recursion_is_the_identity(n in 3usize..40, which in 0usize..4) {
            let map = ShareMap::new(n, 1, Sharing::ALL[which]).unwrap();
            prop_assert!(map.depths().iter().all(|p| p.depth.0 == p.layer.0));
        }
    }
}
