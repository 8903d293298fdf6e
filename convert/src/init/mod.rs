//! Which source layers initialise which stored layer (RRT §2.2, MoR Table 12).
//!
//! [`Init::Calibrated`] chooses no layers; it is fitted to the tied group ([`crate::calibrate`]), whose layers it has as sources, and whose
//! means its shared norms and biases are, as those of `average`.
//!
//! A method names, for each layer of the shared block, the source layers whose mean it is; all but `average` name one. The
//! unshared first and last layer, where a pattern has them, come from the first and last layer of the source. A new method is
//! one file here and one line in [`INITS`].

mod average;
mod lower;
mod random;
mod stepwise;
mod upper;

use retie_config::{Init, LayerIndex, ShareMap};

/// The shared block of a pattern and the source layers that it may come from.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The schedule.
    pub map: &'a ShareMap,
    /// First source layer inside the unshared ends: 0 or 1.
    pub first: usize,
    /// Last source layer inside the unshared ends: `N-1` or `N-2`.
    pub last: usize,
    /// Layers of the block, `K`.
    pub num_layers: usize,
}

/// An initialisation.
pub struct InitMethod {
    /// Its name.
    pub init: Init,
    /// What it does, for `--help` and the documentation.
    pub summary: &'static str,
    /// For each of the `K` layers of a block, the source layers whose mean it is. The seed is for methods that draw.
    pub sources: fn(Block<'_>, u64) -> Vec<Vec<usize>>,
}

/// Every initialisation that chooses layers, in the order of the documentation.
pub static INITS: &[InitMethod] = &[stepwise::STEPWISE, average::AVERAGE, lower::LOWER, upper::UPPER, random::RANDOM];

/// For every stored layer, the source layers whose mean it is, or that it is fitted to.
#[must_use]
pub fn layer_sources(map: &ShareMap, init: Init, seed: u64) -> Vec<Vec<usize>> {
    let range = map.block();
    let (num_layers, num_depths, num_ends) = (map.num_layers(), map.num_depths(), range.start);
    let block = Block { map, first: num_ends, last: num_depths - 1 - num_ends, num_layers: range.len() };
    let method = INITS.iter().find(|method| method.init == init).unwrap_or(&average::AVERAGE);
    let mut sources: Vec<Vec<usize>> = (0..num_ends).map(|end| vec![end]).collect();
    sources.extend((method.sources)(block, seed));
    sources.extend((0..num_layers - range.end).map(|end| vec![num_depths - (num_layers - range.end) + end]));
    sources
}

impl Block<'_> {
    /// The depths that run layer `i` of the block.
    fn tied_group(self, i: usize) -> Vec<usize> {
        self.map.depths_of(LayerIndex(self.first + i)).into_iter().map(|depth| depth.0).collect()
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
    use retie_config::Sharing;

    fn sources(n: usize, r: usize, sharing: Sharing, init: Init) -> Vec<Vec<usize>> {
        layer_sources(&ShareMap::new(n, r, sharing).unwrap(), init, 0)
    }

    #[test]
    fn every_init_of_the_configuration_that_chooses_layers_is_registered_once() {
        let registered: Vec<Init> = INITS.iter().map(|method| method.init).collect();
        let choosing: Vec<Init> = Init::ALL.into_iter().filter(|init| *init != Init::Calibrated).collect();
        assert_eq!(registered, choosing);
        assert!(INITS.iter().all(|method| !method.summary.is_empty()));
    }

    /// Unrolled source maps of the reference code, run by hand.
    #[test]
    fn unrolled_sources_are_those_of_the_reference() {
        let unrolled = |n, r, sharing, init| -> Vec<usize> {
            let map = ShareMap::new(n, r, sharing).unwrap();
            let sources = layer_sources(&map, init, 0);
            map.depths().iter().map(|step| sources[step.layer.0][0]).collect()
        };
        assert_eq!(unrolled(8, 2, Sharing::Cycle, Init::Stepwise), [0, 2, 5, 7, 0, 2, 5, 7]);
        assert_eq!(unrolled(8, 2, Sharing::MiddleCycle, Init::Stepwise), [0, 1, 4, 6, 1, 4, 6, 7]);
        assert_eq!(unrolled(6, 3, Sharing::Sequence, Init::Stepwise), [0, 0, 0, 5, 5, 5]);
    }

    /// Figure 2 of RRT (there counted from 1): Stepwise 1, 3, 6; Average (1, 4) (2, 5) (3, 6); Lower 1, 2, 3.
    #[test]
    fn the_figure_of_the_paper_is_reproduced() {
        assert_eq!(sources(6, 2, Sharing::Cycle, Init::Stepwise), [[0], [2], [5]]);
        assert_eq!(sources(6, 2, Sharing::Cycle, Init::Average), [[0, 3], [1, 4], [2, 5]]);
        assert_eq!(sources(6, 2, Sharing::Cycle, Init::Lower), [[0], [1], [2]]);
    }

    #[test]
    fn unshared_ends_come_from_the_ends_of_the_source() {
        for init in Init::ALL {
            let middle = sources(8, 3, Sharing::MiddleSequence, init);
            assert_eq!((middle.first(), middle.last()), (Some(&vec![0]), Some(&vec![7])), "{init}");
        }
    }

    proptest! {
        #[test]
        fn chosen_layers_are_distinct_ascending_and_inside_the_ends(
            block in 1usize..20, recursions in 1usize..6, which in 0usize..4, seed: u64,
        ) {
            let sharing = Sharing::ALL[which];
            let ends = sharing.num_unshared_ends();
            let n = block * recursions + 2 * ends;
            let map = ShareMap::new(n, recursions, sharing).unwrap();
            for init in Init::ALL {
                let sources = layer_sources(&map, init, seed);
                prop_assert_eq!(sources.len(), map.num_layers());
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
            let map = ShareMap::new(n, 1, Sharing::ALL[which]).unwrap();
            for init in Init::ALL {
                prop_assert_eq!(layer_sources(&map, init, seed), one_each(0..n));
            }
        }
    }
}
