//! Initialisation of the stored layers from source layers (RRT §2.2, MoR Table 12).
//!
//! A method names, for each looped layer, the source layers whose mean it is; all but `average`
//! name one. Unshared layers, where a pattern has them, come from the source layer at their own
//! place. A new method is a variant of [`Init`], one file here, and one entry in [`INITS`].
//!
//! [`Init::Calibrated`] is no such method: it is fitted to the tied group ([`crate::calibrate`]),
//! whose layers it has as sources. Its shared norms and biases are their means, as those of
//! `average`.

mod average;
mod lower;
mod random;
mod select;
mod stepwise;
mod upper;

use retie_config::{Init, LayerIndex, Stack};

/// The looped layers of a pattern and the source layers that they may come from.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// For each looped layer, the source layers of the depths that run it: its tied group.
    pub groups: &'a [Vec<usize>],
    /// The source layers that depths of the loop stand for, ascending, each once; at least as many
    /// as there are groups.
    pub candidates: &'a [usize],
}

/// An initialisation that chooses source layers.
pub struct InitMethod {
    /// Its name.
    pub init: Init,
    /// For each looped layer, the source layers whose mean it is. The seed is for methods that
    /// draw.
    pub sources: fn(Block<'_>, u64) -> Vec<Vec<usize>>,
}

/// Every initialisation that chooses layers, in the order of the documentation.
pub static INITS: &[InitMethod] =
    &[stepwise::STEPWISE, average::AVERAGE, lower::LOWER, upper::UPPER, random::RANDOM, select::SELECT];

/// For every stored layer, the source layers whose mean it is, or that it is fitted to.
#[must_use]
pub fn layer_sources(stack: &Stack, init: Init, seed: u64) -> Vec<Vec<usize>> {
    let map = stack.map();
    let source = |depth: usize| stack.sources()[depth];
    let own = |layer| map.depths_of(LayerIndex(layer)).into_iter().map(|depth| source(depth.0)).collect::<Vec<_>>();
    let mut sources: Vec<Vec<usize>> = (0..map.num_layers()).map(own).collect();
    let steps = || map.depths().iter().filter(|step| step.recursion.is_some());
    let mut candidates: Vec<usize> = steps().map(|step| source(step.depth.0)).collect();
    candidates.dedup();
    let mut looped: Vec<usize> = steps().map(|step| step.layer.0).collect();
    looped.sort_unstable();
    looped.dedup();
    let groups: Vec<Vec<usize>> = looped.iter().map(|layer| sources[*layer].clone()).collect();
    let chosen = (method(init).sources)(Block { groups: &groups, candidates: &candidates }, seed);
    for (layer, from) in looped.into_iter().zip(chosen) {
        sources[layer] = from;
    }
    sources
}

/// The entry of [`INITS`] that gives the sources of an init; of [`Init::Calibrated`] they are the
/// tied group.
fn method(init: Init) -> &'static InitMethod {
    let init = if init == Init::Calibrated { Init::Average } else { init };
    match INITS.iter().find(|method| method.init == init) {
        Some(method) => method,
        None => unreachable!("every init that chooses layers is registered: a test compares the two lists"),
    }
}

/// Methods that choose layers give one source each.
fn one_each(layers: impl IntoIterator<Item = usize>) -> Vec<Vec<usize>> {
    layers.into_iter().map(|layer| vec![layer]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use retie_config::{Pattern, RemainderPolicy, Sharing};

    fn stack(n: usize, r: usize, sharing: Sharing) -> Stack {
        Stack::new(n, r, &Pattern::new(sharing, None, None, None).unwrap(), None).unwrap()
    }

    fn sources(n: usize, r: usize, sharing: Sharing, init: Init) -> Vec<Vec<usize>> {
        layer_sources(&stack(n, r, sharing), init, 0)
    }

    #[test]
    fn every_init_of_the_configuration_that_chooses_layers_is_registered_once() {
        let registered: Vec<Init> = INITS.iter().map(|method| method.init).collect();
        let choosing: Vec<Init> = Init::ALL.iter().copied().filter(|init| *init != Init::Calibrated).collect();
        assert_eq!(registered, choosing);
    }

    /// Unrolled source maps of the reference code, run by hand.
    #[test]
    fn unrolled_sources_are_those_of_the_reference() {
        let unrolled = |n, r, sharing, init| -> Vec<usize> {
            let stack = stack(n, r, sharing);
            let sources = layer_sources(&stack, init, 0);
            stack.map().depths().iter().map(|step| sources[step.layer.0][0]).collect()
        };
        assert_eq!(unrolled(8, 2, Sharing::Cycle, Init::Stepwise), [0, 2, 5, 7, 0, 2, 5, 7]);
        assert_eq!(unrolled(8, 2, Sharing::MiddleCycle, Init::Stepwise), [0, 1, 4, 6, 1, 4, 6, 7]);
        assert_eq!(unrolled(6, 3, Sharing::Sequence, Init::Stepwise), [0, 0, 0, 5, 5, 5]);
    }

    /// Figure 2 of RRT (there counted from 1): Stepwise 1, 3, 6; Average (1, 4) (2, 5) (3, 6);
    /// Lower 1, 2, 3.
    #[test]
    fn the_figure_of_the_paper_is_reproduced() {
        assert_eq!(sources(6, 2, Sharing::Cycle, Init::Stepwise), [[0], [2], [5]]);
        assert_eq!(sources(6, 2, Sharing::Cycle, Init::Average), [[0, 3], [1, 4], [2, 5]]);
        assert_eq!(sources(6, 2, Sharing::Cycle, Init::Lower), [[0], [1], [2]]);
    }

    #[test]
    fn unshared_ends_come_from_the_ends_of_the_source() {
        for init in Init::ALL {
            let middle = sources(8, 3, Sharing::MiddleSequence, *init);
            assert_eq!((middle.first(), middle.last()), (Some(&vec![0]), Some(&vec![7])), "{init}");
        }
    }

    #[test]
    fn a_map_and_a_rest_choose_among_what_is_looped() {
        let start = |stack: &Stack, init| layer_sources(stack, init, 0);
        let map = Stack::new(6, 2, &Pattern::Map(vec![0, 1, 2, 1, 2, 3]), None).unwrap();
        assert_eq!(start(&map, Init::Average), [vec![0], vec![1, 3], vec![2, 4], vec![5]]);
        assert_eq!(start(&map, Init::Upper), [[0], [3], [4], [5]]);
        let pattern = Pattern::new(Sharing::Cycle, Some(1), Some(0), None).unwrap();
        let fitted = |fit| Stack::new(8, 3, &pattern, Some(fit)).unwrap();
        // 7 layers of the loop: 6 of them run, 9 depths run them, or one more stays unshared.
        assert_eq!(start(&fitted(RemainderPolicy::Drop), Init::Average), [vec![0], vec![1, 3, 6], vec![2, 5, 7]]);
        assert_eq!(start(&fitted(RemainderPolicy::Drop), Init::Stepwise), [[0], [1], [7]]);
        let repeat = fitted(RemainderPolicy::Repeat);
        assert_eq!(repeat.sources(), [0, 1, 2, 2, 3, 4, 5, 6, 6, 7]);
        assert_eq!(start(&repeat, Init::Lower), [[0], [1], [2], [3]]);
        assert_eq!(
            start(&fitted(RemainderPolicy::PadUnshared), Init::Average),
            [vec![0], vec![1], vec![2, 4, 6], vec![3, 5, 7]]
        );
    }

    proptest! {
        #[test]
        fn chosen_layers_are_distinct_ascending_and_inside_the_ends(
            block in 1usize..20, recursions in 1usize..6, which in 0usize..4, seed: u64,
        ) {
            let sharing = Sharing::ALL[which];
            let ends = sharing.num_unshared_ends();
            let n = block * recursions + 2 * ends;
            let stack = stack(n, recursions, sharing);
            for init in Init::ALL {
                let sources = layer_sources(&stack, *init, seed);
                prop_assert_eq!(sources.len(), stack.map().num_layers());
                let inner = &sources[ends..sources.len() - ends];
                if matches!(init, Init::Average | Init::Calibrated) {
                    let mut all: Vec<usize> = inner.concat();
                    all.sort_unstable();
                    prop_assert_eq!(all, (ends..n - ends).collect::<Vec<_>>());
                } else {
                    prop_assert!(inner.iter().all(|s| s.len() == 1 && s[0] >= ends && s[0] < n - ends));
                    prop_assert!(inner.windows(2).all(|w| w[0][0] < w[1][0]), "{} {:?}", init, inner);
                }
            }
        }

        #[test]
        fn with_one_recursion_every_layer_comes_from_itself(n in 3usize..40, which in 0usize..4, seed: u64) {
            let stack = stack(n, 1, Sharing::ALL[which]);
            for init in Init::ALL {
                prop_assert_eq!(layer_sources(&stack, *init, seed), one_each(0..n));
            }
        }
    }
}
