//! Remainder policies: a sharing pattern laid over a source model whose layers the recursions do
//! not divide.
//!
//! Depths are those of the result, `0 .. num_hidden_layers` of the *result*, and each of them comes
//! from one layer of the source. With `S` source layers in the loop and `R` recursions:
//!
//! - `drop` keeps `R ⌊S/R⌋` of them, spread evenly from the loop's first to its last (the reference
//!   code of Mixture-of-Recursions, <https://github.com/raymin0223/mixture_of_recursions>, always
//!   does this);
//! - `repeat` runs `R ⌈S/R⌉` depths, spread likewise, so that some source layers occur twice in a
//!   row (the paper's appendix D adds layers instead of dropping them);
//! - `pad-unshared` loops `R ⌊S/R⌋` and leaves the others unshared, half of them before the loop
//!   and half after it, with the odd one before it.

use crate::{Pattern, ShareError, ShareMap, Sharing};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Remainder policy: treatment of layers that the recursions do not divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemainderPolicy {
    /// Leave some source layers out.
    Drop,
    /// Run some source layers twice.
    Repeat,
    /// Leave some source layers unshared.
    PadUnshared,
}

impl RemainderPolicy {
    /// Every choice, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Drop, Self::Repeat, Self::PadUnshared];

    /// The name in configurations and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Repeat => "repeat",
            Self::PadUnshared => "pad-unshared",
        }
    }
}

impl fmt::Display for RemainderPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for RemainderPolicy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || format!("unknown fit `{name}`, expected one of drop, repeat, pad-unshared");
        Self::ALL.into_iter().find(|fit| fit.name() == name).ok_or_else(unknown)
    }
}

/// A share map, and the source layer that each of its depths comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    map: ShareMap,
    /// Source layer of each depth, never descending unless the layers were chosen.
    sources: Vec<usize>,
    num_source_layers: usize,
    /// Source layers that stay unshared because the recursions do not divide.
    left_alone: Vec<usize>,
}

impl Stack {
    /// Lays `pattern` with `num_recursions` over a source of `num_source_layers`; `remainder` is
    /// the policy for layers that are left over.
    ///
    /// # Errors
    /// When layers are left over and there is no policy, the pattern leaves nothing to share, or a
    /// map does not fit.
    pub fn new(
        num_source_layers: usize,
        num_recursions: usize,
        pattern: &Pattern,
        remainder: Option<RemainderPolicy>,
    ) -> Result<Self, ShareError> {
        let plain = || -> Result<Self, ShareError> {
            let map = ShareMap::lay(pattern, num_source_layers, num_recursions)?;
            let sources = (0..num_source_layers).collect();
            Ok(Self { map, sources, num_source_layers, left_alone: Vec::new() })
        };
        let (Pattern::Loop { sharing, prelude, coda }, Some(policy)) = (pattern, remainder) else { return plain() };
        let num_shared = pattern.num_shared(num_source_layers)?;
        if num_recursions == 0 || num_shared.is_multiple_of(num_recursions) {
            return plain();
        }
        let length = match policy {
            RemainderPolicy::Drop | RemainderPolicy::PadUnshared => num_shared / num_recursions * num_recursions,
            RemainderPolicy::Repeat => num_shared.div_ceil(num_recursions) * num_recursions,
        };
        if length == 0 {
            let (needed, pattern) = (num_recursions + prelude + coda, pattern.to_string());
            return Err(ShareError::TooFewLayers { num_hidden_layers: num_source_layers, needed, pattern });
        }
        if policy == RemainderPolicy::PadUnshared {
            let rest = num_shared - length;
            let (before, after) = (rest.div_ceil(2), rest / 2);
            let inner = if sharing.repeats_in_place() { Sharing::Sequence } else { Sharing::Cycle };
            let padded = Pattern::new(inner, Some(prelude + before), Some(coda + after), None)?;
            let map = ShareMap::lay(&padded, num_source_layers, num_recursions)?;
            let end = num_source_layers - coda;
            let left_alone = (*prelude..prelude + before).chain(end - after..end).collect();
            return Ok(Self { map, sources: (0..num_source_layers).collect(), num_source_layers, left_alone });
        }
        let last = num_source_layers - coda - 1;
        let sources = (0..*prelude).chain(spread(*prelude, last, length)).chain(last + 1..num_source_layers).collect();
        let map = ShareMap::lay(pattern, prelude + length + coda, num_recursions)?;
        Ok(Self { map, sources, num_source_layers, left_alone: Vec::new() })
    }

    /// Stack of chosen source layers, one for each depth: layers that are kept, each once and
    /// ascending, but for one block that may be listed several times in a row, once for each
    /// recursion of a loop. `0 1 2 3 2 3 7` loops `2 3` twice.
    ///
    /// # Errors
    /// [`ShareError::SourceLayers`] when the list is empty, names a layer that the source does not
    /// have, or is of another form.
    pub fn chosen(num_source_layers: usize, sources: &[usize]) -> Result<Self, ShareError> {
        let wrong = |problem: String| ShareError::SourceLayers { problem };
        if let Some(layer) = sources.iter().find(|layer| **layer >= num_source_layers) {
            return Err(wrong(format!(
                "layer {layer} is listed, expected 0 to {}",
                num_source_layers.saturating_sub(1)
            )));
        }
        if sources.is_empty() {
            return Err(wrong("no layer is listed".to_owned()));
        }
        let again = |depth: usize| (depth + 1..sources.len()).find(|later| sources[*later] == sources[depth]);
        let looped = (0..sources.len()).find_map(|depth| Some((depth, again(depth)?)));
        let (prelude, num_recursions, length) = match looped {
            None => (0, 1, sources.len()),
            Some((first, second)) => {
                let block = &sources[first..second];
                let repeats = sources[first..].chunks(block.len()).take_while(|chunk| *chunk == block).count();
                (first, repeats, repeats * block.len())
            }
        };
        let coda = sources.len() - prelude - length;
        let block = length / num_recursions;
        let kept: Vec<usize> = sources[..prelude + block].iter().chain(&sources[prelude + length..]).copied().collect();
        if let Some(pair) = kept.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(wrong(format!("layer {} stands after layer {}", pair[1], pair[0])));
        }
        let pattern = Pattern::Loop { sharing: Sharing::Cycle, prelude, coda };
        let map = ShareMap::lay(&pattern, sources.len(), num_recursions)?;
        Ok(Self { map, sources: sources.to_vec(), num_source_layers, left_alone: Vec::new() })
    }

    /// Share map of the result.
    #[must_use]
    pub fn map(&self) -> &ShareMap {
        &self.map
    }

    /// Source layer of each depth; never descending unless the layers were chosen.
    #[must_use]
    pub fn sources(&self) -> &[usize] {
        &self.sources
    }

    /// Layers of the source.
    #[must_use]
    pub fn num_source_layers(&self) -> usize {
        self.num_source_layers
    }

    /// Source layers that no depth comes from.
    #[must_use]
    pub fn dropped(&self) -> Vec<usize> {
        (0..self.num_source_layers).filter(|layer| !self.sources.contains(layer)).collect()
    }

    /// Source layers that two depths in a row come from.
    #[must_use]
    pub fn repeated(&self) -> Vec<usize> {
        self.sources.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect()
    }

    /// Source layers that the pattern would share and that stay unshared because the recursions do
    /// not divide.
    #[must_use]
    pub fn left_alone(&self) -> &[usize] {
        &self.left_alone
    }

    /// Treatment of the layers that were left over, as a sentence; `None` if there were none.
    #[must_use]
    pub fn rest(&self) -> Option<String> {
        let list = |layers: &[usize]| {
            let numbers = layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!("source {} {numbers}", if layers.len() == 1 { "layer" } else { "layers" })
        };
        let (dropped, repeated) = (self.dropped(), self.repeated());
        let depths = self.map.num_depths();
        match (dropped.as_slice(), repeated.as_slice(), self.left_alone()) {
            ([], [], []) => None,
            ([], [], alone) => Some(format!("{} left unshared, as the recursions do not divide", list(alone))),
            ([], twice, _) => Some(format!("{} run twice: the stack has {depths} depths", list(twice))),
            (dropped, _, _) => Some(format!("{} left out: the stack has {depths} depths", list(dropped))),
        }
    }
}

/// `round(linspace(first, last, count))`, in f64 in the order of numpy's operations with ties to
/// even, because the reference code uses numpy. Exact fractions give other layers in some cases (30
/// layers, 15 kept: the eighth is 15, exactly it would be 14).
#[must_use]
pub fn spread(first: usize, last: usize, count: usize) -> Vec<usize> {
    let step = (last - first) as f64 / (count.max(2) - 1) as f64;
    let at = |i: usize| (i as f64 * step + first as f64).round_ties_even() as usize;
    (0..count).map(|i| if i > 0 && i == count - 1 { last } else { at(i) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stack(n: usize, r: usize, sharing: Sharing, remainder: RemainderPolicy) -> Stack {
        Stack::new(n, r, &Pattern::new(sharing, None, None, None).unwrap(), Some(remainder)).unwrap()
    }

    /// Layers that the reference code keeps, run by hand: 32 layers, 3 recursions drop 8 and 23; 30
    /// with unshared ends drop 14.
    #[test]
    fn layers_that_are_dropped_are_those_of_the_reference() {
        let cycle = stack(32, 3, Sharing::Cycle, RemainderPolicy::Drop);
        assert_eq!((cycle.dropped(), cycle.map().num_depths(), cycle.map().num_layers()), (vec![8, 23], 30, 10));
        let middle = stack(30, 3, Sharing::MiddleCycle, RemainderPolicy::Drop);
        assert_eq!((middle.dropped(), middle.map().num_depths(), middle.map().num_layers()), (vec![14], 29, 11));
        // N = 9, R = 3 between unshared ends keeps 0 1 2 3 5 6 7 8; its depths are 0 to 7.
        let nine = stack(9, 3, Sharing::MiddleCycle, RemainderPolicy::Drop);
        assert_eq!(nine.sources(), [0, 1, 2, 3, 5, 6, 7, 8]);
        assert_eq!(nine.map().depths().iter().map(|step| step.depth.0).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(nine.rest().unwrap(), "source layer 4 left out: the stack has 8 depths");
    }

    /// Appendix D of MoR: 30 layers and 3 recursions between unshared ends become 32 depths of
    /// 10 + 2 layers.
    #[test]
    fn layers_that_are_repeated_make_the_stack_of_the_paper() {
        let stack = stack(30, 3, Sharing::MiddleCycle, RemainderPolicy::Repeat);
        assert_eq!((stack.map().num_depths(), stack.map().num_layers()), (32, 12));
        assert_eq!((stack.repeated().len(), stack.dropped().len()), (2, 0));
    }

    #[test]
    fn layers_that_are_left_alone_lie_around_the_loop() {
        let stack = stack(8, 3, Sharing::Sequence, RemainderPolicy::PadUnshared);
        assert_eq!(stack.left_alone(), [0, 7]);
        assert_eq!(stack.map().depths().iter().map(|step| step.layer.0).collect::<Vec<_>>(), [0, 1, 1, 1, 2, 2, 2, 3]);
        assert_eq!(stack.map().pattern().keys(), (Some(1), Some(1), None));
        assert_eq!(stack.rest().unwrap(), "source layers 0, 7 left unshared, as the recursions do not divide");
    }

    #[test]
    fn chosen_layers_are_kept_once_but_for_a_loop() {
        let chosen = |sources: &[usize]| {
            Stack::chosen(9, sources).map(|stack| {
                let layers: Vec<usize> = stack.map().depths().iter().map(|step| step.layer.0).collect();
                (layers, stack.map().num_recursions(), stack.map().pattern().keys())
            })
        };
        assert_eq!(chosen(&[0, 2, 3, 8]).unwrap(), (vec![0, 1, 2, 3], 1, (None, None, None)));
        let looped = chosen(&[0, 1, 3, 4, 3, 4, 3, 4, 8]).unwrap();
        assert_eq!(looped, (vec![0, 1, 2, 3, 2, 3, 2, 3, 4], 3, (Some(2), Some(1), None)));
        assert_eq!(chosen(&[5, 5]).unwrap(), (vec![0, 0], 2, (None, None, None)));
        let stack = Stack::chosen(9, &[0, 1, 3, 1, 3, 8]).unwrap();
        assert_eq!((stack.dropped(), stack.repeated()), (vec![2, 4, 5, 6, 7], vec![]));
        for (sources, expected) in [
            (&[][..], "no layer is listed"),
            (&[0, 9], "layer 9 is listed, expected 0 to 8"),
            (&[0, 2, 1], "layer 1 stands after layer 2"),
            (&[0, 1, 2, 1], "layer 1 stands after layer 2"),
            (&[0, 1, 1, 2, 2, 3], "layer 2 stands after layer 2"),
        ] {
            let error = chosen(sources).unwrap_err().to_string();
            assert!(error.contains(expected), "{sources:?}: {error}");
        }
    }

    #[test]
    fn a_rest_needs_a_choice_and_a_stack_that_is_too_short_has_none() {
        let pattern = Pattern::new(Sharing::Cycle, None, None, None).unwrap();
        assert!(matches!(Stack::new(8, 3, &pattern, None), Err(ShareError::Indivisible { .. })));
        for remainder in [RemainderPolicy::Drop, RemainderPolicy::PadUnshared] {
            assert!(matches!(
                Stack::new(2, 3, &pattern, Some(remainder)),
                Err(ShareError::TooFewLayers { needed: 3, .. })
            ));
        }
        assert_eq!(Stack::new(2, 3, &pattern, Some(RemainderPolicy::Repeat)).unwrap().sources(), [0, 0, 1]);
    }

    proptest! {
        #[test]
        fn every_policy_divides_and_describes_itself(
            n in 6usize..40, r in 1usize..6, which in 0usize..4, remainder in 0usize..3,
        ) {
            let (sharing, remainder) = (Sharing::ALL[which], RemainderPolicy::ALL[remainder]);
            prop_assume!(r + 2 <= n);
            let stack = stack(n, r, sharing, remainder);
            let sources = stack.sources();
            prop_assert_eq!(sources.len(), stack.map().num_depths());
            prop_assert!(sources.windows(2).all(|w| w[0] <= w[1]) && sources.iter().all(|s| *s < n));
            let divides = (n - 2 * sharing.num_unshared_ends()).is_multiple_of(r);
            prop_assert_eq!(divides, stack.rest().is_none());
            let rest = (stack.dropped().len(), stack.repeated().len(), stack.left_alone().len());
            prop_assert!(rest.0.max(rest.1).max(rest.2) < r, "{:?}", rest);
            for layer in stack.map().shared_layers() {
                prop_assert_eq!(stack.map().depths_of(layer).len(), r);
            }
            let ends = sharing.num_unshared_ends();
            prop_assert_eq!((sources[0], sources[sources.len() - 1]), (0, n - 1));
            prop_assert_eq!(stack.map().depths().iter().filter(|s| s.recursion.is_none()).count(), 2 * ends + rest.2);
        }
    }
}
