//! Families of decoders: what their layers compute, and which keys of `config.json` say so.
//!
//! A family is one file here and one entry in [`ARCHITECTURES`]. Its `read` turns the keys of the file into an [`Anatomy`]; the
//! model is built from that alone, so no other code asks for a family by name. Reference: the classes of `transformers`
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

/// Which depths have a window.
const LAYER_TYPES: &str = "layer_types";
/// Which depths rotate queries and keys.
const NO_ROPE_LAYERS: &str = "no_rope_layers";

/// A family of decoders.
pub struct Architecture {
    /// `model_type` of its `config.json`.
    pub model_type: &'static str,
    /// Its class in `transformers`.
    pub class_name: &'static str,
    /// Well-known models of the family.
    pub models: &'static str,
    /// How the tensors of its checkpoints are called.
    pub tensor_names: TensorNames,
    /// `head_dim` of its configuration class where the key is absent; else `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    /// Keys of its file with an entry for each depth: [`LAYER_TYPES`], [`NO_ROPE_LAYERS`].
    depth_keys: &'static [&'static str],
    read: fn(&Keys<'_>, Sizes) -> Result<Anatomy, ConfigError>,
}

/// How the tensors of a family's checkpoints are called. What `retie convert` writes has the names of a Llama.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorNames {
    /// As in a Llama.
    Llama,
    /// Names of its own, with q, k and v in one matrix.
    GptNeox,
}

/// What every family's `read` needs to know of the sizes.
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
    /// The family of a `model_type`.
    #[must_use]
    pub fn of(model_type: &str) -> Option<&'static Self> {
        ARCHITECTURES.into_iter().find(|architecture| architecture.model_type == model_type)
    }

    pub(crate) fn default_head_dim(&self) -> Option<usize> {
        self.head_dim
    }

    /// The keys of a file that describe each depth, as this family spells them.
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
