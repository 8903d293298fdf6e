//! Sliced attention (SReT, <https://arxiv.org/abs/2111.05297>), causal: a query attends to the keys
//! up to its own that are in its slice. Slices depend on positions alone, so that decoding
//! knows them, where the paper permutes at random:
//!
//! | `order` | slice of position `i` | pairs of a query and a key, of `N` tokens |
//! |---|---|---|
//! | `stride` | `i mod groups` | about `N²/(2·groups)` |
//! | `chunk` | `⌊i·groups/length⌋` | about `N·length/(2·groups)` |
//!
//! In a routed model that shares no keys and values, positions count the tokens that the recursion
//! selects. Rotary embeddings keep the positions of the sequence.

use super::*;
use crate::named::named;

named! {
    /// Which tokens make up a slice.
    SliceOrder, "order" {
        /// Every `groups`-th.
        Stride = "stride",
        /// Consecutive ones.
        Chunk = "chunk",
    }
}

/// Parameters of `sliced`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlicedConfig {
    /// Number of slices; 1 is the whole attention.
    pub groups: usize,
    /// Which tokens make up a slice.
    #[serde(default = "SlicedConfig::stride")]
    pub order: SliceOrder,
    /// Of order `chunk`: tokens that are divided into `groups` slices; further slices follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
}

impl SlicedConfig {
    fn stride() -> SliceOrder {
        SliceOrder::Stride
    }

    /// Tokens of a slice of order `chunk`; `None` of order `stride`.
    #[must_use]
    pub fn chunk(&self) -> Option<usize> {
        match self.order {
            SliceOrder::Stride => None,
            SliceOrder::Chunk => self.length.map(|length| length.div_ceil(self.groups.max(1))),
        }
    }
}

impl StepMechanism for SlicedConfig {
    fn slot(&self) -> Slot {
        Slot::Attention
    }

    fn problems(&self, place: &Place<'_>) -> Vec<String> {
        let Self { groups, order, length } = self;
        let mut problems = Vec::new();
        if *groups == 0 {
            problems.push("`groups` is 0, expected 1 or more".to_owned());
        }
        match (order, length) {
            (SliceOrder::Chunk, None) => {
                problems.push("`order: chunk` has no `length`, expected the tokens that it divides".to_owned());
            }
            (SliceOrder::Chunk, Some(length)) if *groups == 0 || !length.is_multiple_of(*groups) || *length == 0 => {
                let least = groups.max(&1);
                problems.push(format!("`length` is {length}, expected a multiple of {groups}, at least {least}"));
            }
            (SliceOrder::Stride, Some(length)) => {
                problems.push(format!("`length` is {length}, expected none with `order: stride`"));
            }
            _ => {}
        }
        if let Some(window) = place.window() {
            problems.push(format!("depths see a window of {window} tokens, expected full attention"));
        }
        problems
    }

    fn keeps_logits(&self) -> bool {
        self.groups == 1 && self.order == SliceOrder::Stride
    }

    fn mean_keys(&self, keys: f64) -> Option<f64> {
        // Tokens of a slice: `n` consecutive ones have `n(n + 1)/2` pairs.
        let pairs = |tokens: f64| tokens * (tokens + 1.0) / 2.0;
        let sum = match self.chunk() {
            Some(chunk) => {
                let chunk = chunk as f64;
                (keys / chunk).floor() * pairs(chunk) + pairs(keys % chunk)
            }
            None => {
                let (groups, rest) = (self.groups as f64, keys % self.groups as f64);
                let each = (keys / groups).floor();
                rest.floor() * pairs(each + 1.0) + (groups - rest.floor()) * pairs(each)
            }
        };
        Some(sum / keys)
    }
}
