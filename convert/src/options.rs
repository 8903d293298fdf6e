//! What a conversion is asked to do.

use retie_checkpoint::{DEFAULT_MAX_SHARD_BYTES, Dtype, Provenance};
use retie_config::{ConvertConfig, Init, Sharing, StoredDtype};

/// Choices of a conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Passes over the shared block, `R`; 1 copies the model.
    pub recursions: usize,
    /// Which depths share a layer.
    pub sharing: Sharing,
    /// Where the shared layers come from.
    pub init: Init,
    /// Rank of the per-depth LoRA; none if absent.
    pub lora_rank: Option<usize>,
    /// Whether norms and biases are shared too, or each depth keeps its own.
    pub share_norms: bool,
    /// Element type to write; `None` keeps each tensor's (F32 for a mean over tensors of different types).
    pub dtype: Option<Dtype>,
    /// Seed of `init: random` and of the `A` of a LoRA whose residual is zero.
    pub seed: u64,
    /// Largest weight file in bytes.
    pub max_shard_bytes: u64,
}

impl From<&ConvertConfig> for ConvertOptions {
    fn from(config: &ConvertConfig) -> Self {
        Self {
            recursions: config.recursions,
            sharing: config.sharing,
            init: config.init,
            lora_rank: config.lora_rank,
            share_norms: config.share_norms,
            dtype: match config.dtype {
                StoredDtype::Keep => None,
                StoredDtype::F32 => Some(Dtype::F32),
                StoredDtype::Bf16 => Some(Dtype::BF16),
                StoredDtype::F16 => Some(Dtype::F16),
            },
            seed: config.seed,
            max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
        }
    }
}

/// What goes into the folder beside the weights and `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// File name and content, e.g. of `tokenizer.json`.
    pub files: Vec<(String, Vec<u8>)>,
    /// Becomes `retie.json`.
    pub provenance: Option<Provenance>,
}
