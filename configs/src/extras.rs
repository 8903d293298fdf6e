//! Extras: small per-depth vectors that a conversion may add. They do not change the logits until
//! they are trained.
//!
//! A depth of the loop computes, from its input `x [M, D]`,
//!
//! ```text
//! x ← x + γ ⊙ RMSNorm(x) + e                      at the first depth of a recursion
//! x ← x + s ⊙ attention(norm(x));  x ← x + t ⊙ mlp(norm(x))
//! ```
//!
//! `loop_norm` is `γ`, `loop_embedding` is `e`, `residual_scale` is `s` and `t` (LayerScale,
//! <https://arxiv.org/abs/2103.17239>, started at 1).

use crate::{DepthAssignment, ShareMap};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Kind of extra.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DepthExtra {
    /// Embedding of the recursion, added to the input of its first depth; starts at 0.
    LoopEmbedding,
    /// Norm of the output of the previous recursion, added to that output; its weight starts at 0.
    LoopNorm,
    /// Per-channel factors on the outputs of attention and feed-forward network; start at 1.
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

    /// Its vectors, each `[D]`.
    #[must_use]
    pub fn vectors(self) -> &'static [ExtraVector] {
        match self {
            Self::LoopEmbedding => &[ExtraVector::LoopEmbedding],
            Self::LoopNorm => &[ExtraVector::LoopNorm],
            Self::ResidualScale => &[ExtraVector::AttentionScale, ExtraVector::MlpScale],
        }
    }

    /// Initial value of every element.
    #[must_use]
    pub fn start(self) -> f32 {
        match self {
            Self::LoopEmbedding | Self::LoopNorm => 0.0,
            Self::ResidualScale => 1.0,
        }
    }

    /// True if a depth has this extra: the first depth of each recursion (for the norm, from the
    /// second recursion on), or every depth of the loop.
    #[must_use]
    pub fn is_at(self, map: &ShareMap, step: &DepthAssignment) -> bool {
        match self {
            Self::LoopEmbedding => map.begins_pass(step),
            Self::LoopNorm => map.begins_pass(step) && step.recursion.is_some_and(|recursion| recursion > 0),
            Self::ResidualScale => map.is_shared(step.layer),
        }
    }
}

/// One vector of an extra.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExtraVector {
    /// `e`.
    LoopEmbedding,
    /// `γ`.
    LoopNorm,
    /// `s`.
    AttentionScale,
    /// `t`.
    MlpScale,
}

impl ExtraVector {
    /// Name under `model.depths.{d}`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LoopEmbedding => "extras.loop_embedding",
            Self::LoopNorm => "extras.loop_norm",
            Self::AttentionScale => "extras.attention_scale",
            Self::MlpScale => "extras.mlp_scale",
        }
    }
}

impl fmt::Display for ExtraVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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
