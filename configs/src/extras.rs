//! Small vectors of one depth that a conversion may add. They leave the logits as they are until they are trained.
//!
//! With them a depth of the loop computes, from what it reads `x [M, D]`,
//!
//! ```text
//! x ← x + γ ⊙ RMSNorm(x) + e                      at the first depth of a pass
//! x ← x + s ⊙ attention(norm(x));  x ← x + t ⊙ mlp(norm(x))
//! ```
//!
//! `loop_norm` is `γ`, `loop_embedding` is `e`, `residual_scale` is `s` and `t` (LayerScale, <https://arxiv.org/abs/2103.17239>, started at 1).

use crate::{DepthPlan, ShareMap};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One kind of such vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DepthExtra {
    /// A vector that says which pass this is, added to what the pass reads; starts at 0.
    LoopEmbedding,
    /// A norm of what the pass before left, added to it; its weight starts at 0.
    LoopNorm,
    /// Factors of what attention and feed-forward network add to the stream; start at 1.
    ResidualScale,
}

impl DepthExtra {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::LoopEmbedding, Self::LoopNorm, Self::ResidualScale];

    /// The name in configurations and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LoopEmbedding => "loop_embedding",
            Self::LoopNorm => "loop_norm",
            Self::ResidualScale => "residual_scale",
        }
    }

    /// Names of its vectors `[D]`, under `model.depths.{d}`.
    #[must_use]
    pub fn parts(self) -> &'static [&'static str] {
        match self {
            Self::LoopEmbedding => &["extras.loop_embedding"],
            Self::LoopNorm => &["extras.loop_norm"],
            Self::ResidualScale => &["extras.attention_scale", "extras.mlp_scale"],
        }
    }

    /// What every element is as long as nothing was trained.
    #[must_use]
    pub fn start(self) -> f32 {
        match self {
            Self::LoopEmbedding | Self::LoopNorm => 0.0,
            Self::ResidualScale => 1.0,
        }
    }

    /// Whether a depth has it: the first of each pass (from the second on, for the norm), or all of the loop.
    #[must_use]
    pub fn is_at(self, map: &ShareMap, step: &DepthPlan) -> bool {
        match self {
            Self::LoopEmbedding => map.begins_pass(step),
            Self::LoopNorm => map.begins_pass(step) && step.recursion.is_some_and(|recursion| recursion > 0),
            Self::ResidualScale => map.is_shared(step.layer),
        }
    }
}

impl fmt::Display for DepthExtra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DepthExtra {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|extra| extra.name() == name);
        found.ok_or_else(|| format!("unknown extra `{name}`, expected one of {known}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sharing;

    fn depths(extra: DepthExtra, sharing: Sharing) -> Vec<usize> {
        let map = ShareMap::new(8, 2, sharing).unwrap();
        map.depths().iter().filter(|step| extra.is_at(&map, step)).map(|step| step.depth.0).collect()
    }

    #[test]
    fn a_pass_begins_where_the_recursion_changes() {
        assert_eq!(depths(DepthExtra::LoopEmbedding, Sharing::MiddleCycle), [1, 4]);
        assert_eq!(depths(DepthExtra::LoopNorm, Sharing::MiddleCycle), [4]);
        assert_eq!(depths(DepthExtra::ResidualScale, Sharing::MiddleCycle), [1, 2, 3, 4, 5, 6]);
        // Repeated in place every layer is a loop of its own.
        assert_eq!(depths(DepthExtra::LoopEmbedding, Sharing::Sequence), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(depths(DepthExtra::LoopNorm, Sharing::Sequence), [1, 3, 5, 7]);
    }

    #[test]
    fn every_name_parses_to_itself() {
        for extra in DepthExtra::ALL {
            assert_eq!(extra.name().parse(), Ok(extra));
            assert_eq!(serde_json::to_value(extra).unwrap(), extra.name());
        }
        assert!("loop_gate".parse::<DepthExtra>().is_err());
    }
}
