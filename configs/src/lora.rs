//! Per-depth LoRA: the ranks of a checkpoint, LoRA or DoRA as its relaxation, and pairs of factors
//! in place of matrices.

use crate::{ConfigError, Depth, LayerIndex, ModelConfig, Projection, ShareMap, named::named};
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

named! {
    /// What the factors of a linear are added to.
    #[derive(Default)]
    LoraBase, "base" {
        /// The weight of the shared layer: `h = W'x + B A x`.
        #[default]
        Shared = "shared",
        /// Nothing: `h = B A x`. Where a linear of an unshared layer has a rank, its factors stand
        /// in place of its matrix (`method: svd`).
        None = "none",
    }
}

impl LoraBase {
    fn is_shared(&self) -> bool {
        *self == Self::Shared
    }
}

/// Per-depth LoRA on shared linears: `h = W'x + B A x`, scaling 1 (RRT Eq. 3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank `r` of every linear at every depth that may have it, clamped to the smaller side of the
    /// matrix. With `ranks`, their maximum.
    pub rank: usize,
    /// Ranks by linear, e.g. `self_attn.q_proj`, one per depth, 0 for none. Empty where `rank`
    /// holds everywhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ranks: BTreeMap<String, Vec<usize>>,
    /// LoRA, or DoRA with a magnitude per output row.
    #[serde(default, skip_serializing_if = "Relax::is_lora")]
    pub relax: Relax,
    /// What the factors are added to.
    #[serde(default, skip_serializing_if = "LoraBase::is_shared")]
    pub base: LoraBase,
}

impl LoraConfig {
    /// LoRA with one rank at every linear and depth.
    #[must_use]
    pub fn uniform(rank: usize) -> Self {
        Self { rank, ranks: BTreeMap::new(), relax: Relax::Lora, base: LoraBase::Shared }
    }

    /// Ranks by linear and depth; `None` if all of them are 0.
    #[must_use]
    pub fn table(ranks: BTreeMap<String, Vec<usize>>) -> Option<Self> {
        let rank = ranks.values().flatten().copied().max().filter(|rank| *rank > 0)?;
        Some(Self { rank, ranks, relax: Relax::Lora, base: LoraBase::Shared })
    }

    /// Name of the factors in reports.
    #[must_use]
    pub fn title(&self) -> &'static str {
        match self.base {
            LoraBase::Shared => self.relax.title(),
            LoraBase::None => "factors",
        }
    }

    /// Copy with another relaxation.
    #[must_use]
    pub fn with(self, relax: Relax) -> Self {
        Self { relax, ..self }
    }

    /// Copy whose factors stand in place of matrices.
    #[must_use]
    pub fn without_base(self) -> Self {
        Self { base: LoraBase::None, ..self }
    }

    /// True if depths that run `layer` may have factors: where they are added to a weight the
    /// layer is shared, where they replace it one depth alone runs it.
    #[must_use]
    pub fn is_on(&self, map: &ShareMap, layer: LayerIndex) -> bool {
        map.is_shared(layer) == self.base.is_shared()
    }

    /// Rank of a linear of shape `[out, in]` at a depth that may have factors; 0 for none.
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
                let largest = if self.is_on(map, step.layer) { *out.min(inp) } else { 0 };
                if *rank > largest {
                    problems.push(format!(
                        "`{projection}` at depth {} has rank {rank}, expected {largest} at most",
                        step.depth
                    ));
                }
            }
        }
        if self.base == LoraBase::None && self.relax == Relax::Dora {
            problems.push("`base` is `none`, but `dora` scales the rows of a weight".to_owned());
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
        let lora = LoraConfig { rank: 4, ranks, relax: Relax::Lora, base: LoraBase::Shared };
        let error = lora.check(&tiny_llama(4), &map).unwrap_err().to_string();
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

    #[test]
    fn factors_without_a_base_stand_where_no_layer_is_shared() {
        let ranks = |at: [usize; 4]| BTreeMap::from([("mlp.up_proj".to_owned(), at.to_vec())]);
        let alone = |at| LoraConfig::table(ranks(at)).unwrap().without_base();
        let (plain, looped) = (ShareMap::identity(4), ShareMap::new(4, 2, Sharing::MiddleCycle).unwrap());
        alone([0, 8, 2, 1]).check(&tiny_llama(4), &plain).unwrap();
        alone([3, 0, 0, 3]).check(&tiny_llama(4), &looped).unwrap();
        let error = alone([0, 1, 0, 0]).check(&tiny_llama(4), &looped).unwrap_err().to_string();
        assert!(error.contains("at depth 1 has rank 1, expected 0 at most"), "{error}");
        let error = alone([0, 1, 0, 0]).with(Relax::Dora).check(&tiny_llama(4), &plain).unwrap_err().to_string();
        assert!(error.contains("`base` is `none`, but `dora`"), "{error}");
        let json = json!({ "rank": 2, "ranks": { "mlp.up_proj": [0, 2, 0, 0] }, "base": "none" });
        assert_eq!(serde_json::to_value(alone([0, 2, 0, 0])).unwrap(), json);
        assert_eq!(serde_json::from_value::<LoraConfig>(json).unwrap(), alone([0, 2, 0, 0]));
    }
}
