//! Families of decoders: the computation of their layers, and the keys of `config.json` that state
//! it.
//!
//! A family is one file here and one entry in [`ARCHITECTURES`]. Its `read` turns the keys of the
//! file into an [`Anatomy`]; the model is built from that alone, so no other code asks for a family
//! by name. Reference: the classes of `transformers`
//! (<https://github.com/huggingface/transformers/tree/main/src/transformers/models>).

mod anatomy;
mod defaults;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt_neox;
mod known;
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
pub(crate) use defaults::KeyDefault;
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
    /// Values of its keys where they are absent.
    defaults: &'static [KeyDefault],
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

    pub(crate) fn defaults(&self) -> &'static [KeyDefault] {
        self.defaults
    }

    /// True if its configuration class has `key`.
    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.defaults.iter().any(|default| default.key == key)
    }

    /// True if `key` of its `config.json` is read, or changes nothing.
    fn knows(&self, key: &str) -> bool {
        known::is_common(key) || self.has_key(key)
    }

    /// What a reader of this `config.json` should be told: keys that are ignored, and keys that
    /// contradict one another, with the one that was taken.
    pub(crate) fn remarks(&self, keys: &Keys<'_>) -> Vec<String> {
        let ignored = keys.map.iter().filter(|(key, value)| !value.is_null() && !self.knows(key));
        let ignored: Vec<String> = ignored.map(|(key, _)| format!("`{key}`")).collect();
        let mut remarks = rope::remarks(keys, self.has_key("rope_local_base_freq"));
        if !ignored.is_empty() {
            let (verb, noun) = if ignored.len() == 1 { ("is", "a key") } else { ("are", "keys") };
            let class = self.class_name;
            remarks.push(format!("{} {verb} not {noun} of `{class}` and {verb} ignored", ignored.join(", ")));
        }
        remarks
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
