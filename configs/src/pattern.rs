//! Sharing patterns: their names, and a pattern with its parameters.
//!
//! `cycle` and `sequence` loop the layers between a `prelude` and a `coda` of unshared layers,
//! which are empty by default. `middle_cycle` and `middle_sequence` are the papers' names for one
//! unshared layer at each end. `map` lists the layer of every depth.

use crate::ShareError;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Name of a sharing pattern. `F`, `L`: the unshared first and last layer.
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
    /// The layer of each depth is listed explicitly.
    Map,
}

impl Sharing {
    /// Patterns that need nothing but the number of recursions, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Cycle, Self::Sequence, Self::MiddleCycle, Self::MiddleSequence];

    /// Every value of the key `sharing`.
    pub const CHOICES: [Self; 5] = [Self::Cycle, Self::Sequence, Self::MiddleCycle, Self::MiddleSequence, Self::Map];

    /// The name in configurations and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cycle => "cycle",
            Self::Sequence => "sequence",
            Self::MiddleCycle => "middle_cycle",
            Self::MiddleSequence => "middle_sequence",
            Self::Map => "map",
        }
    }

    /// Number of unshared layers at each end of the stack that the name implies.
    #[must_use]
    pub fn num_unshared_ends(self) -> usize {
        match self {
            Self::Cycle | Self::Sequence | Self::Map => 0,
            Self::MiddleCycle | Self::MiddleSequence => 1,
        }
    }

    /// True if the loop repeats each layer in place (`sequence`), not the block as a whole.
    #[must_use]
    pub fn repeats_in_place(self) -> bool {
        matches!(self, Self::Sequence | Self::MiddleSequence)
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
        Self::CHOICES.into_iter().find(|s| s.name() == name).ok_or_else(|| {
            format!("unknown sharing `{name}`, expected one of cycle, sequence, middle_cycle, middle_sequence, map")
        })
    }
}

/// A sharing pattern with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// A loop between unshared layers.
    Loop {
        /// Its name, which is not [`Sharing::Map`].
        sharing: Sharing,
        /// Unshared layers before the loop.
        prelude: usize,
        /// Unshared layers after the loop.
        coda: usize,
    },
    /// The stored layer of each depth.
    Map(Vec<usize>),
}

impl Pattern {
    /// Builds a pattern from the keys of a configuration.
    ///
    /// # Errors
    /// When the keys contradict each other.
    pub fn new(
        sharing: Sharing,
        prelude: Option<usize>,
        coda: Option<usize>,
        map: Option<&[usize]>,
    ) -> Result<Self, ShareError> {
        let mismatch = |problem: String, hint| Err(ShareError::Mismatch { problem, hint });
        let ends = sharing.num_unshared_ends();
        match (sharing, map, prelude.is_some() || coda.is_some()) {
            (Sharing::Map, None, _) => {
                mismatch("sharing `map` has no map".to_owned(), "list the layer of every depth in `map`")
            }
            (Sharing::Map, Some(_), true) => mismatch(
                "a `map` takes no `prelude` or `coda`".to_owned(),
                "a layer that the map lists once is unshared",
            ),
            (Sharing::Map, Some(map), false) => Ok(Self::Map(map.to_vec())),
            (_, Some(_), _) => {
                mismatch(format!("sharing `{sharing}` takes no `map`"), "ask for sharing `map`, or leave the map out")
            }
            (Sharing::MiddleCycle | Sharing::MiddleSequence, None, true) => mismatch(
                format!("sharing `{sharing}` takes no `prelude` or `coda`: it has one unshared layer at each end"),
                "ask for `cycle` or `sequence` with the `prelude` and `coda` that you want",
            ),
            (_, None, _) => Ok(Self::Loop { sharing, prelude: prelude.unwrap_or(ends), coda: coda.unwrap_or(ends) }),
        }
    }

    /// Its name.
    #[must_use]
    pub fn sharing(&self) -> Sharing {
        match self {
            Self::Loop { sharing, .. } => *sharing,
            Self::Map(_) => Sharing::Map,
        }
    }

    /// `prelude`, `coda` and `map` as a configuration has them; absent where the name implies them.
    #[must_use]
    pub fn keys(&self) -> (Option<usize>, Option<usize>, Option<Vec<usize>>) {
        match self {
            Self::Loop { sharing, prelude, coda } => {
                let said = |layers: usize| (layers != sharing.num_unshared_ends()).then_some(layers);
                (said(*prelude), said(*coda), None)
            }
            Self::Map(map) => (None, None, Some(map.clone())),
        }
    }

    /// Number of layers that the pattern shares in a stack of `num_hidden_layers`.
    ///
    /// # Errors
    /// When it leaves no layer to share.
    pub fn num_shared(&self, num_hidden_layers: usize) -> Result<usize, ShareError> {
        let unshared = match self {
            Self::Loop { prelude, coda, .. } => prelude.saturating_add(*coda),
            Self::Map(_) => 0,
        };
        match num_hidden_layers.checked_sub(unshared) {
            Some(shared) if shared > 0 => Ok(shared),
            _ => Err(ShareError::TooFewLayers {
                num_hidden_layers,
                needed: unshared.saturating_add(1),
                pattern: self.to_string(),
            }),
        }
    }
}

/// Text for messages: `` `middle_cycle` ``, `` `cycle` between 2 and 1 unshared layers `` or
/// `the map`.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.keys()) {
            (Self::Map(_), _) => f.write_str("the map"),
            (Self::Loop { sharing, .. }, (None, None, _)) => write!(f, "`{sharing}`"),
            (Self::Loop { sharing, prelude, coda }, _) => {
                write!(f, "`{sharing}` between {prelude} and {coda} unshared layers")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradicting_keys_are_refused_and_others_survive_a_round_trip() {
        let refused = |sharing, prelude, coda, map| Pattern::new(sharing, prelude, coda, map).unwrap_err().to_string();
        assert!(refused(Sharing::Map, None, None, None).starts_with("sharing `map` has no map"));
        assert!(refused(Sharing::Map, Some(1), None, Some(&[0])).starts_with("a `map` takes no `prelude`"));
        assert!(refused(Sharing::Cycle, None, None, Some(&[0])).starts_with("sharing `cycle` takes no `map`"));
        assert!(refused(Sharing::MiddleCycle, None, Some(2), None).contains("one unshared layer at each end"));
        for (sharing, prelude, coda, map) in [
            (Sharing::Cycle, None, None, None),
            (Sharing::Sequence, Some(3), None, None),
            (Sharing::Cycle, Some(2), Some(1), None),
            (Sharing::MiddleCycle, None, None, None),
            (Sharing::Map, None, None, Some(vec![0, 1, 0])),
        ] {
            let pattern = Pattern::new(sharing, prelude, coda, map.as_deref()).unwrap();
            assert_eq!((pattern.sharing(), pattern.keys()), (sharing, (prelude, coda, map)));
        }
    }

    #[test]
    fn every_name_parses_to_itself() {
        for sharing in Sharing::CHOICES {
            assert_eq!(sharing.name().parse(), Ok(sharing));
        }
        assert!("loop".parse::<Sharing>().is_err());
    }
}
