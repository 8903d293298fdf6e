//! Parameter sharing by index: the stored layer of each depth of the unrolled stack.
//!
//! Source: Relaxed Recursive Transformers, Eq. 2 (<https://arxiv.org/abs/2410.20672>) for `cycle`;
//! Mixture-of-Recursions, Table 1 (<https://arxiv.org/abs/2507.10524>) for the four patterns that
//! need nothing but the number of recursions.
//!
//! Words: a *layer* is stored weights, a *depth* is an index in the unrolled stack, a *recursion*
//! is one pass over the shared block. `N` depths, `R` recursions, `K` layers in the shared block.

use crate::{Pattern, ShareError, Sharing};
use std::{collections::BTreeMap, fmt, ops::Range};

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

/// Numbers of recursions that `sharing` accepts for a stack of `num_hidden_layers`, ascending.
#[must_use]
pub fn dividing_recursions(num_hidden_layers: usize, sharing: Sharing) -> Vec<usize> {
    divisors(num_hidden_layers.saturating_sub(2 * sharing.num_unshared_ends()))
}

fn divisors(number: usize) -> Vec<usize> {
    (1..=number).filter(|r| number.is_multiple_of(*r)).collect()
}

/// One depth of the unrolled stack with its stored layer and its recursion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthAssignment {
    /// Position in the unrolled stack.
    pub depth: Depth,
    /// Stored layer that it runs.
    pub layer: LayerIndex,
    /// Pass over the shared block, 0-based: the number of earlier depths that run the same layer.
    /// `None` for a layer that the pattern leaves unshared.
    pub recursion: Option<usize>,
}

/// Share map: the layer and recursion of every depth. Every crate reads sharing from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareMap {
    pattern: Pattern,
    num_recursions: usize,
    num_layers: usize,
    plan: Vec<DepthAssignment>,
}

impl ShareMap {
    /// Lays a pattern without further parameters over a stack of `num_hidden_layers`.
    ///
    /// # Errors
    /// Every error of [`ShareMap::lay`].
    pub fn new(num_hidden_layers: usize, num_recursions: usize, sharing: Sharing) -> Result<Self, ShareError> {
        Self::lay(&Pattern::new(sharing, None, None, None)?, num_hidden_layers, num_recursions)
    }

    /// Lays `pattern` with `num_recursions` over a stack of `num_hidden_layers`.
    ///
    /// # Errors
    /// When the pattern leaves no layer to share, `num_recursions` does not divide the shared
    /// layers, or a map does not fit.
    pub fn lay(pattern: &Pattern, num_hidden_layers: usize, num_recursions: usize) -> Result<Self, ShareError> {
        let layers: Vec<(usize, bool)> = match pattern {
            Pattern::Map(map) => lay_map(map, num_hidden_layers, num_recursions)?,
            Pattern::Loop { sharing, prelude, coda } => {
                let num_shared = pattern.num_shared(num_hidden_layers)?;
                if num_recursions == 0 || !num_shared.is_multiple_of(num_recursions) {
                    return Err(ShareError::Indivisible {
                        num_hidden_layers,
                        num_shared,
                        num_recursions,
                        pattern: pattern.to_string(),
                        divisors: divisors(num_shared),
                    });
                }
                let block = num_shared / num_recursions;
                let inner = (0..num_shared).map(|inner| match sharing.repeats_in_place() {
                    false => inner % block,
                    true => inner / num_recursions,
                });
                let before = (0..*prelude).map(|layer| (layer, false));
                let after = (0..*coda).map(|layer| (prelude + block + layer, false));
                before.chain(inner.map(|layer| (prelude + layer, true))).chain(after).collect()
            }
        };
        let mut uses: BTreeMap<usize, usize> = BTreeMap::new();
        let plan = layers.into_iter().enumerate().map(|(depth, (layer, looped))| {
            let uses = uses.entry(layer).or_default();
            *uses += 1;
            DepthAssignment { depth: Depth(depth), layer: LayerIndex(layer), recursion: looped.then(|| *uses - 1) }
        });
        let plan = plan.collect();
        Ok(Self { pattern: pattern.clone(), num_recursions, num_layers: uses.len(), plan })
    }

    /// Share map of a plain model: each depth has its own layer.
    #[must_use]
    pub fn identity(num_hidden_layers: usize) -> Self {
        let plan = (0..num_hidden_layers)
            .map(|i| DepthAssignment { depth: Depth(i), layer: LayerIndex(i), recursion: Some(0) })
            .collect();
        let pattern = Pattern::Loop { sharing: Sharing::Cycle, prelude: 0, coda: 0 };
        Self { pattern, num_recursions: 1, num_layers: num_hidden_layers, plan }
    }

    /// Depths in the order in which they run.
    #[must_use]
    pub fn depths(&self) -> &[DepthAssignment] {
        &self.plan
    }

    /// Length of the unrolled stack, `N`.
    #[must_use]
    pub fn num_depths(&self) -> usize {
        self.plan.len()
    }

    /// Number of stored layers.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// Number of passes over the shared block, `R`; for a map the size of its largest tied group.
    #[must_use]
    pub fn num_recursions(&self) -> usize {
        self.num_recursions
    }

    /// The pattern's name.
    #[must_use]
    pub fn sharing(&self) -> Sharing {
        self.pattern.sharing()
    }

    /// The pattern.
    #[must_use]
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Tied group of `layer`: the depths that run it, ascending.
    #[must_use]
    pub fn depths_of(&self, layer: LayerIndex) -> Vec<Depth> {
        self.plan.iter().filter(|p| p.layer == layer).map(|p| p.depth).collect()
    }

    /// True if more than one depth runs `layer`.
    #[must_use]
    pub fn is_shared(&self, layer: LayerIndex) -> bool {
        self.plan.iter().filter(|p| p.layer == layer).count() > 1
    }

    /// True if `step` is the first depth of a pass over a shared block.
    #[must_use]
    pub fn begins_pass(&self, step: &DepthAssignment) -> bool {
        let before = step.depth.0.checked_sub(1).map(|depth| self.plan[depth].recursion);
        step.recursion.is_some() && before != Some(step.recursion)
    }

    /// Layers that more than one depth runs, ascending.
    #[must_use]
    pub fn shared_layers(&self) -> Vec<LayerIndex> {
        (0..self.num_layers).map(LayerIndex).filter(|layer| self.is_shared(*layer)).collect()
    }

    /// Consecutive depths of the same recursion as ranges, in order; the unshared ends are ranges
    /// of their own.
    #[must_use]
    pub fn passes(&self) -> Vec<Range<usize>> {
        let mut passes: Vec<(Option<usize>, Range<usize>)> = Vec::new();
        for step in &self.plan {
            match passes.last_mut() {
                Some((recursion, depths)) if *recursion == step.recursion => depths.end = step.depth.0 + 1,
                _ => passes.push((step.recursion, step.depth.0..step.depth.0 + 1)),
            }
        }
        passes.into_iter().map(|(_, depths)| depths).collect()
    }

    /// Number of depths up to the end of each recursion. `None` where recursions do not run one
    /// after the other, as in `sequence`.
    #[must_use]
    pub fn recursion_ends(&self) -> Option<Vec<usize>> {
        let recursion = |depths: &Range<usize>| self.plan[depths.start].recursion;
        let passes = self.passes().into_iter().filter(|depths| recursion(depths).is_some());
        let (recursions, ends): (Vec<_>, Vec<_>) = passes.map(|depths| (recursion(&depths), depths.end)).unzip();
        recursions.into_iter().eq((0..self.num_recursions).map(Some)).then_some(ends)
    }

    /// Stored layers of the shared block, `K` of them, as a range; `None` for a map.
    #[must_use]
    pub fn block(&self) -> Option<Range<usize>> {
        match &self.pattern {
            Pattern::Loop { prelude, coda, .. } => Some(*prelude..self.num_layers - coda),
            Pattern::Map(_) => None,
        }
    }
}

/// The layer of each depth, and true if other depths run it too.
fn lay_map(map: &[usize], num_hidden_layers: usize, num_recursions: usize) -> Result<Vec<(usize, bool)>, ShareError> {
    if map.len() != num_hidden_layers {
        return Err(ShareError::MapLength { num_hidden_layers, found: map.len() });
    }
    let mut first_uses: Vec<usize> = Vec::new(); // layers in the order of first use
    let number = |layer: usize, first_uses: &[usize]| first_uses.iter().position(|other| *other == layer);
    let mut fault = None;
    let mut renumbered = Vec::with_capacity(map.len());
    for (depth, layer) in map.iter().enumerate() {
        if number(*layer, &first_uses).is_none() {
            if *layer != first_uses.len() && fault.is_none() {
                fault = Some((depth, *layer, first_uses.len()));
            }
            first_uses.push(*layer);
        }
        renumbered.extend(number(*layer, &first_uses));
    }
    if let Some((depth, found, expected)) = fault {
        return Err(ShareError::MapNumbers { depth, found, expected, renumbered });
    }
    let count = |layer: &usize| map.iter().filter(|other| *other == layer).count();
    let found = map.iter().map(count).max().unwrap_or(1);
    if found != num_recursions {
        return Err(ShareError::MapRecursions { found, expected: num_recursions });
    }
    Ok(map.iter().map(|layer| (*layer, count(layer) > 1)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layers(n: usize, r: usize, sharing: Sharing) -> Vec<usize> {
        ShareMap::new(n, r, sharing).unwrap().depths().iter().map(|p| p.layer.0).collect()
    }

    fn recursions(map: &ShareMap) -> Vec<Option<usize>> {
        map.depths().iter().map(|p| p.recursion).collect()
    }

    #[test]
    fn a_pass_is_one_recursion_or_an_unshared_end() {
        let passes_and_ends = |n, r, sharing| {
            let map = ShareMap::new(n, r, sharing).unwrap();
            (map.passes(), map.recursion_ends())
        };
        assert_eq!(passes_and_ends(6, 2, Sharing::Cycle), (vec![0..3, 3..6], Some(vec![3, 6])));
        assert_eq!(passes_and_ends(8, 2, Sharing::MiddleCycle), (vec![0..1, 1..4, 4..7, 7..8], Some(vec![4, 7])));
        assert_eq!(passes_and_ends(4, 2, Sharing::Sequence), (vec![0..1, 1..2, 2..3, 3..4], None));
        assert_eq!(passes_and_ends(4, 4, Sharing::Sequence), (vec![0..1, 1..2, 2..3, 3..4], Some(vec![1, 2, 3, 4])));
    }

    #[test]
    fn unrolled_orders_are_those_of_the_papers() {
        assert_eq!(layers(6, 2, Sharing::Cycle), [0, 1, 2, 0, 1, 2]);
        assert_eq!(layers(6, 2, Sharing::Sequence), [0, 0, 1, 1, 2, 2]);
        assert_eq!(layers(8, 2, Sharing::MiddleCycle), [0, 1, 2, 3, 1, 2, 3, 4]);
        assert_eq!(layers(8, 2, Sharing::MiddleSequence), [0, 1, 1, 2, 2, 3, 3, 4]);
    }

    #[test]
    fn unshared_layers_stand_before_and_after_the_loop() {
        let between = |sharing| Pattern::new(sharing, Some(2), Some(1), None).unwrap();
        let map = ShareMap::lay(&between(Sharing::Cycle), 7, 2).unwrap();
        assert_eq!(map.depths().iter().map(|p| p.layer.0).collect::<Vec<_>>(), [0, 1, 2, 3, 2, 3, 4]);
        assert_eq!(recursions(&map), [None, None, Some(0), Some(0), Some(1), Some(1), None]);
        assert_eq!((map.block(), map.shared_layers()), (Some(2..4), vec![LayerIndex(2), LayerIndex(3)]));
        let map = ShareMap::lay(&between(Sharing::Sequence), 7, 2).unwrap();
        assert_eq!(map.depths().iter().map(|p| p.layer.0).collect::<Vec<_>>(), [0, 1, 2, 2, 3, 3, 4]);
        assert_eq!(
            ShareMap::lay(&between(Sharing::Cycle), 3, 1).unwrap_err().to_string(),
            "`cycle` between 2 and 1 unshared layers needs at least 4 layers, found 3"
        );
    }

    #[test]
    fn a_map_gives_layers_and_recursions() {
        let lay = |map: &[usize], n, r| ShareMap::lay(&Pattern::Map(map.to_vec()), n, r);
        let map = lay(&[0, 1, 2, 1, 2, 3], 6, 2).unwrap();
        assert_eq!((map.num_layers(), map.block(), map.sharing()), (4, None, Sharing::Map));
        assert_eq!(recursions(&map), [None, Some(0), Some(0), Some(1), Some(1), None]);
        assert_eq!(map.depths_of(LayerIndex(2)), [Depth(2), Depth(4)]);
        // With groups of different sizes, the largest is the number of recursions.
        let map = lay(&[0, 1, 0, 0, 1], 5, 3).unwrap();
        assert_eq!(recursions(&map), [Some(0), Some(0), Some(1), Some(2), Some(1)]);
        let error = lay(&[0, 2, 1, 2], 4, 2).unwrap_err().to_string();
        assert!(error.contains("depth 1 has `2`") && error.ends_with("[0, 1, 2, 1]"), "{error}");
        assert!(matches!(lay(&[0, 3, 3], 3, 2), Err(ShareError::MapNumbers { .. })));
        assert!(matches!(lay(&[0, 1], 3, 1), Err(ShareError::MapLength { .. })));
        assert!(matches!(lay(&[0, 1, 0], 3, 3), Err(ShareError::MapRecursions { found: 2, expected: 3 })));
    }

    #[test]
    fn an_indivisible_stack_names_the_recursions_that_fit() {
        let error = ShareMap::new(30, 4, Sharing::Cycle).unwrap_err();
        assert!(
            error.to_string().contains("hint: these numbers of recursions do: 1, 2, 3, 5, 6, 10, 15, 30;"),
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
            let looped = map.block().unwrap();
            for layer in 0..map.num_layers() {
                let group = map.depths_of(LayerIndex(layer));
                let expected = if looped.contains(&layer) { recursions } else { 1 };
                prop_assert_eq!(group.len(), expected);
                let passes: Vec<_> = group.iter().map(|d| map.depths()[d.0].recursion).collect();
                if looped.contains(&layer) {
                    prop_assert_eq!(passes, (0..recursions).map(Some).collect::<Vec<_>>());
                } else {
                    prop_assert_eq!(passes, vec![None]);
                }
            }
        }

        #[test]
        fn a_named_pattern_is_the_loop_and_the_map_that_it_stands_for(
            block in 1usize..8, recursions in 2usize..6, which in 0usize..4,
        ) {
            let sharing = Sharing::ALL[which];
            let ends = sharing.num_unshared_ends();
            let n = block * recursions + 2 * ends;
            let named = ShareMap::new(n, recursions, sharing).unwrap();
            let inner = if sharing.repeats_in_place() { Sharing::Sequence } else { Sharing::Cycle };
            let looped = Pattern::new(inner, Some(ends), Some(ends), None).unwrap();
            let looped = ShareMap::lay(&looped, n, recursions).unwrap();
            prop_assert_eq!(named.depths(), looped.depths());
            let map = Pattern::Map(named.depths().iter().map(|p| p.layer.0).collect());
            let map = ShareMap::lay(&map, n, recursions).unwrap();
            prop_assert_eq!(named.depths(), map.depths());
        }

        #[test]
        fn one_recursion_is_the_identity(n in 3usize..40, which in 0usize..4) {
            let map = ShareMap::new(n, 1, Sharing::ALL[which]).unwrap();
            prop_assert!(map.depths().iter().all(|p| p.depth.0 == p.layer.0));
        }
    }
}
