//! Families of decoders: the computation of their layers, and the keys of `config.json` that state
//! it.
//!
//! A family is one file here and one entry in [`ARCHITECTURES`]. Its `read` turns the keys of the
//! file into an [`Anatomy`]; the model is built from that alone, so no other code asks for a family
//! by name. Reference: the classes of `transformers`
//! (<https://github.com/huggingface/transformers/tree/main/src/transformers/models>).

mod anatomy;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt_neox;
mod llama;
mod mistral;
mod olmo2;
mod qwen2;
mod qwen3;
mod rope;
mod smollm3;
#[cfg(test)]
mod tests;

pub use anatomy::{Activation, Anatomy, DepthKind, MlpKind, NormKind, QkNorm, Residual};
pub use rope::{Rope, RopeScaling};

use crate::{ConfigError, keys::Keys};
use serde_json::Value;
use std::fmt;

/// Key that lists the depths with a sliding window.
const LAYER_TYPES: &str = "layer_types";
/// Key that lists the depths that rotate queries and keys (1) or not (0).
const NO_ROPE_LAYERS: &str = "no_rope_layers";

/// A family of decoders.
pub struct Architecture {
    /// `model_type` of its `config.json`.
    pub model_type: &'static str,
    /// Its class in `transformers`.
    pub class_name: &'static str,
    /// Well-known models of the family, for the documentation.
    pub models: &'static str,
    /// Naming scheme of the tensors of its checkpoints.
    pub tensor_names: TensorNames,
    /// `head_dim` of its configuration class where the key is absent; `None` for
    /// `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    /// Keys of its `config.json` with an entry for each depth: [`LAYER_TYPES`], [`NO_ROPE_LAYERS`].
    depth_keys: &'static [&'static str],
    read: fn(&Keys<'_>, Sizes) -> Result<Anatomy, ConfigError>,
}

/// Naming scheme of a family's checkpoints. `retie convert` writes the names of a Llama.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorNames {
    /// Names of a Llama.
    Llama,
    /// Names of its own, with q, k and v in one matrix.
    GptNeox,
}

/// Sizes that every family's `read` needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub head_dim: usize,
}

/// Every family, in the order of the documentation.
pub static ARCHITECTURES: [&Architecture; 10] = [
    &llama::ARCHITECTURE,
    &mistral::ARCHITECTURE,
    &qwen2::ARCHITECTURE,
    &qwen3::ARCHITECTURE,
    &smollm3::ARCHITECTURE,
    &gemma::ARCHITECTURE,
    &gemma2::ARCHITECTURE,
    &gemma3::ARCHITECTURE,
    &gpt_neox::ARCHITECTURE,
    &olmo2::ARCHITECTURE,
];

impl Architecture {
    /// The family with this `model_type`, if there is one.
    #[must_use]
    pub fn for_model_type(model_type: &str) -> Option<&'static Self> {
        ARCHITECTURES.into_iter().find(|architecture| architecture.model_type == model_type)
    }

    pub(crate) fn default_head_dim(&self) -> Option<usize> {
        self.head_dim
    }

    /// Keys of `config.json` that describe each depth, with their values as this family spells
    /// them.
    pub(crate) fn depth_keys(&self, anatomy: &Anatomy) -> impl Iterator<Item = (&'static str, Value)> {
        self.depth_keys.iter().map(|key| (*key, anatomy.depth_key(key)))
    }

    pub(crate) fn anatomy(&self, keys: &Keys<'_>, sizes: Sizes) -> Result<Anatomy, ConfigError> {
        (self.read)(keys, sizes)
    }
}

impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type)
    }
}
