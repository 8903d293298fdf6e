//! Qwen2 and Qwen2.5: a Llama with biases on q, k and v.

use super::{Anatomy, Architecture, LAYER_TYPES, Sizes, TensorNames};
use crate::{ConfigError, keys::Keys};

/// `max_window_layers` of the configuration class where the key is absent.
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen2",
    class_name: "Qwen2ForCausalLM",
    models: "Qwen2, Qwen2.5",
    tensor_names: TensorNames::Llama,
    head_dim: None,
    depth_keys: &[LAYER_TYPES],
    read: |keys, sizes| Ok(Anatomy { qkv_bias: true, ..windowed(keys, sizes)? }),
};

/// A Llama with an optional sliding window on the depths from `max_window_layers` on.
pub(super) fn windowed(keys: &Keys<'_>, sizes: Sizes) -> Result<Anatomy, ConfigError> {
    let anatomy = Anatomy::llama(keys, sizes)?;
    let window = match keys.flag("use_sliding_window", false)? {
        true => Some(keys.size("sliding_window")?),
        false => None,
    };
    let full = keys.optional_size("max_window_layers")?.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS);
    anatomy.with_windows(keys, window, |depth| window.is_some() && depth >= full)
}
