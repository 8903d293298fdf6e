//! What a conversion is asked to do.

use crate::{ConvertError, SearchReport};
use retie_checkpoint::{DEFAULT_MAX_SHARD_BYTES, Dtype, Provenance};
use retie_config::{ConvertConfig, DepthExtra, DepthPlan, Fit, Init, Pattern, Relax, ShareMap, Sharing, StoredDtype};
use std::collections::{BTreeMap, BTreeSet};

/// Choices of a conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Passes over the shared block, `R`; 1 copies the model.
    pub recursions: usize,
    /// Which depths share a layer.
    pub pattern: Pattern,
    /// What becomes of layers that the recursions do not divide.
    pub fit: Option<Fit>,
    /// Where the shared layers come from.
    pub init: Init,
    /// Whether a LoRA, where there is one, has magnitudes.
    pub relax: Relax,
    /// Rank of the per-depth LoRA; none if absent.
    pub lora_rank: Option<usize>,
    /// Ranks of some linears, by their name or its last part; the others have `lora_rank`.
    pub lora_ranks: BTreeMap<String, usize>,
    /// Parameters of the LoRA, to be spread by where the residuals' energy is; in place of ranks.
    pub lora_budget: Option<usize>,
    /// First recursion that has LoRA.
    pub lora_from: usize,
    /// Vectors that depths get beside the source's.
    pub extras: BTreeSet<DepthExtra>,
    /// Whether norms and biases are shared too, or each depth keeps its own.
    pub share_norms: bool,
    /// Whether depths that differ in kind may share a layer.
    pub tie_across_kinds: bool,
    /// Element type to write; `None` keeps each tensor's (F32 for a mean over tensors of different types).
    pub dtype: Option<Dtype>,
    /// Seed of `init: random` and of the `A` of a LoRA whose residual is zero.
    pub seed: u64,
    /// Largest weight file in bytes.
    pub max_shard_bytes: u64,
}

impl ConvertOptions {
    /// Shared norms, no LoRA, no extras, element types as they are, and no choice for a rest.
    #[must_use]
    pub fn new(recursions: usize, pattern: Pattern, init: Init) -> Self {
        Self {
            recursions,
            pattern,
            fit: None,
            init,
            relax: Relax::Lora,
            lora_rank: None,
            lora_ranks: BTreeMap::new(),
            lora_budget: None,
            lora_from: 0,
            extras: BTreeSet::new(),
            share_norms: true,
            tie_across_kinds: false,
            dtype: None,
            seed: 0,
            max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
        }
    }

    /// Whether ranks are asked for.
    pub(crate) fn has_ranks(&self) -> bool {
        self.lora_rank.is_some() || !self.lora_ranks.is_empty()
    }

    /// Whether a depth may have LoRA, if there is any.
    pub(crate) fn may_have_lora(&self, map: &ShareMap, step: &DepthPlan) -> bool {
        map.is_shared(step.layer) && step.recursion.is_some_and(|recursion| recursion >= self.lora_from)
    }

    /// What `config` asks for.
    ///
    /// # Errors
    /// When its keys do not say which depths share a layer.
    pub fn of(config: &ConvertConfig) -> Result<Self, ConvertError> {
        // A search puts the pattern of each candidate in the place of this one.
        let pattern = match config.chooses_pattern() {
            true => Pattern::new(Sharing::Cycle, None, None, None)?,
            false => config.pattern()?,
        };
        Ok(Self {
            fit: config.fit,
            relax: config.relax,
            lora_rank: config.lora_rank,
            lora_ranks: config.lora_ranks.clone(),
            lora_budget: config.lora_budget,
            lora_from: config.lora_from,
            extras: config.extras.clone(),
            share_norms: config.share_norms,
            tie_across_kinds: config.tie_across_kinds,
            dtype: match config.dtype {
                StoredDtype::Keep => None,
                StoredDtype::F32 => Some(Dtype::F32),
                StoredDtype::Bf16 => Some(Dtype::BF16),
                StoredDtype::F16 => Some(Dtype::F16),
            },
            seed: config.seed,
            ..Self::new(config.num_recursions(), pattern, config.init)
        })
    }
}

/// What goes into the folder beside the weights and `config.json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extras {
    /// File name and content, e.g. of `tokenizer.json`.
    pub files: Vec<(String, Vec<u8>)>,
    /// Becomes `retie.json`.
    pub provenance: Option<Provenance>,
    /// The search that chose the options, for the report.
    pub search: Option<SearchReport>,
}
