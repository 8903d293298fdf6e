//! Qwen2 and Qwen2.5: a Llama with biases on q, k and v.

use super::{
    Anatomy, Architecture, LAYER_TYPES, Sizes, TensorNames,
    defaults::{flag, null, number, size, text},
};
use crate::{ConfigError, keys::Keys};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen2",
    class_name: "Qwen2ForCausalLM",
    models: "Qwen2, Qwen2.5",
    tensor_names: TensorNames::Llama,
    defaults: &[
        size("num_key_value_heads", 32).or_null(),
        text("hidden_act", "silu"),
        size("max_position_embeddings", 32_768),
        number("rms_norm_eps", 1e-6),
        null("bos_token_id"),
        null("eos_token_id"),
        flag("tie_word_embeddings", false),
        number("rope_theta", 10_000.0),
        flag("use_sliding_window", false),
        size("sliding_window", 4096).or_null(),
        size("max_window_layers", 28),
        null(LAYER_TYPES),
    ],
    depth_keys: &[LAYER_TYPES],
    read: |keys, sizes| Ok(Anatomy { qkv_bias: true, ..windowed(keys, sizes)? }),
};

/// A Llama with an optional sliding window on the depths from `max_window_layers` on.
pub(super) fn windowed(keys: &Keys<'_>, sizes: Sizes) -> Result<Anatomy, ConfigError> {
    let anatomy = Anatomy::llama(keys, sizes)?;
    let window = match keys.flag("use_sliding_window")? {
        true => keys.optional_size("sliding_window")?,
        false => None,
    };
    let full = keys.count("max_window_layers")?;
    if window.is_none()
        && let Some(list) = keys.present(LAYER_TYPES)
        && list.as_array().is_some_and(|list| list.iter().any(|kind| kind == "sliding_attention"))
    {
        let hint = "`use_sliding_window` is `false`, or `sliding_window` is null: set both, or take `layer_types` out";
        return Err(keys.unsupported(LAYER_TYPES, list, hint));
    }
    anatomy.with_windows(keys, window, |depth| window.is_some() && depth >= full)
}
