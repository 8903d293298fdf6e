//! Per-depth LoRA: the ranks of a checkpoint, and LoRA or DoRA as its relaxation.

use crate::{ConfigError, Depth, ModelConfig, Projection, ShareMap};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// Relaxation of a shared linear at a depth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relax {
    /// `h = W'x + B A x`.
    #[default]
    Lora,
    /// `h = m / ‖W' + B A‖ ⊙ (W'x + B A x)`, with a norm and a magnitude per output row (DoRA,
    /// <https://arxiv.org/abs/2402.09353>).
    Dora,
}

impl Relax {
    /// Every relaxation, in the order of the documentation.
    pub const ALL: [Self; 2] = [Self::Lora, Self::Dora];

    /// The name in configurations and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Dora => "dora",
        }
    }

    /// The name as its paper writes it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Lora => "LoRA",
            Self::Dora => "DoRA",
        }
    }

    fn is_lora(&self) -> bool {
        *self == Self::Lora
    }
}

impl fmt::Display for Relax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Relax {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || format!("unknown relaxation `{name}`, expected one of lora, dora");
        Self::ALL.into_iter().find(|relax| relax.name() == name).ok_or_else(unknown)
    }
}

/// Per-depth LoRA on shared linears: `h = W'x + B A x`, scaling 1 (RRT Eq. 3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank `r` of every linear at every depth with a shared layer, clamped to the smaller side of
    /// the matrix. With `ranks`, their maximum.
    pub rank: usize,
    /// Ranks by linear, e.g. `self_attn.q_proj`, one per depth, 0 for none. Empty where `rank`
    /// holds everywhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ranks: BTreeMap<String, Vec<usize>>,
    /// LoRA, or DoRA with a magnitude per output row.
    #[serde(default, skip_serializing_if = "Relax::is_lora")]
    pub relax: Relax,
}

impl LoraConfig {
    /// LoRA with one rank at every linear and depth.
    #[must_use]
    pub fn uniform(rank: usize) -> Self {
        Self { rank, ranks: BTreeMap::new(), relax: Relax::Lora }
    }

    /// Ranks by linear and depth; `None` if all of them are 0.
    #[must_use]
    pub fn table(ranks: BTreeMap<String, Vec<usize>>) -> Option<Self> {
        let rank = ranks.values().flatten().copied().max().filter(|rank| *rank > 0)?;
        Some(Self { rank, ranks, relax: Relax::Lora })
    }

    /// Copy with another relaxation.
    #[must_use]
    pub fn with(self, relax: Relax) -> Self {
        Self { relax, ..self }
    }

    /// Rank of a linear of shape `[out, in]` at a depth with a shared layer; 0 for none.
    #[must_use]
    pub fn rank_at(&self, depth: Depth, projection: Projection, [out, inp]: [usize; 2]) -> usize {
        match self.ranks.is_empty() {
            true => self.rank.min(out).min(inp),
            false => self.ranks.get(projection.name()).and_then(|ranks| ranks.get(depth.0)).copied().unwrap_or(0),
        }
    }

    /// Checks the ranks against the model.
    ///
    /// # Errors
    /// With every problem found.
    pub fn check(&self, model: &ModelConfig, map: &ShareMap) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let shapes = model.projection_shapes().into_iter().map(|(projection, shape)| (projection.name(), shape));
        let shapes: BTreeMap<&str, [usize; 2]> = shapes.collect();
        for (projection, ranks) in &self.ranks {
            let Some([out, inp]) = shapes.get(projection.as_str()) else {
                problems.push(format!("`{projection}` is no linear of the model"));
                continue;
            };
            if ranks.len() != map.num_depths() {
                problems.push(format!("`{projection}` has {} ranks, expected {}", ranks.len(), map.num_depths()));
                continue;
            }
            for (step, rank) in map.depths().iter().zip(ranks) {
                let largest = if map.is_shared(step.layer) { *out.min(inp) } else { 0 };
                if *rank > largest {
                    problems.push(format!(
                        "`{projection}` at depth {} has rank {rank}, expected {largest} at most",
                        step.depth
                    ));
                }
            }
        }
        if self.rank == 0 || (!self.ranks.is_empty() && self.ranks.values().flatten().max() != Some(&self.rank)) {
            problems.push(format!("`rank` is {}, expected the largest of the ranks, above 0", self.rank));
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::LoraRanks { problems }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sharing, tiny::tiny_llama};
    use serde_json::json;

    #[test]
    fn one_rank_is_clamped_and_a_table_says_it_all() {
        let uniform = LoraConfig::uniform(6);
        assert_eq!(uniform.rank_at(Depth(3), Projection::K, [4, 8]), 4);
        assert_eq!(serde_json::to_value(&uniform).unwrap(), json!({ "rank": 6 }));
        let ranks = BTreeMap::from([("mlp.up_proj".to_owned(), vec![0, 2, 0, 5])]);
        let table = LoraConfig::table(ranks).unwrap();
        let at = |projection, depth| table.rank_at(Depth(depth), projection, [16, 8]);
        assert_eq!((table.rank, at(Projection::Up, 1), at(Projection::Up, 2), at(Projection::Gate, 1)), (5, 2, 0, 0));
        let back: LoraConfig = serde_json::from_value(serde_json::to_value(&table).unwrap()).unwrap();
        assert_eq!(back, table);
        assert_eq!(LoraConfig::table(BTreeMap::from([("mlp.up_proj".to_owned(), vec![0, 0])])), None);
        let dora = uniform.with(Relax::Dora);
        assert_eq!(serde_json::to_value(&dora).unwrap(), json!({ "rank": 6, "relax": "dora" }));
        assert_eq!(serde_json::from_value::<LoraConfig>(json!({ "rank": 6, "relax": "dora" })).unwrap(), dora);
        assert!(Relax::ALL.iter().all(|relax| relax.name().parse() == Ok(*relax)) && "vera".parse::<Relax>().is_err());
    }

    #[test]
    fn ranks_that_do_not_fit_the_model_are_all_named() {
        let map = ShareMap::new(4, 2, Sharing::MiddleCycle).unwrap();
        let ranks = BTreeMap::from([
            ("mlp.up_proj".to_owned(), vec![1, 9, 8, 0]),
            ("mlp.gate_proj".to_owned(), vec![1]),
            ("qkv".to_owned(), vec![]),
        ]);
        let error =
            LoraConfig { rank: 4, ranks, relax: Relax::Lora }.check(&tiny_llama(4), &map).unwrap_err().to_string();
        assert_eq!(
            error.lines().collect::<Vec<_>>(),
            [
                "the ranks of `recursion.lora` do not fit the model:",
                "  `mlp.gate_proj` has 1 ranks, expected 4",
                "  `mlp.up_proj` at depth 0 has rank 1, expected 0 at most",
                "  `mlp.up_proj` at depth 1 has rank 9, expected 8 at most",
                "  `qkv` is no linear of the model",
                "  `rank` is 4, expected the largest of the ranks, above 0",
            ]
        );
        LoraConfig::uniform(3).check(&tiny_llama(4), &map).unwrap();
    }
}
