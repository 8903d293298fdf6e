//! SmolLM3: a Llama in which every fourth layer does not rotate queries and keys (NoPE,
//! <https://arxiv.org/abs/2501.18795>).

use super::{
    Anatomy, Architecture, LAYER_TYPES, NO_ROPE_LAYERS, TensorNames,
    defaults::{flag, null, number, size, text},
};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "smollm3",
    class_name: "SmolLM3ForCausalLM",
    models: "SmolLM3",
    tensor_names: TensorNames::Llama,
    defaults: &[
        size("num_key_value_heads", 4).or_null(),
        text("hidden_act", "silu"),
        size("max_position_embeddings", 32_768),
        number("rms_norm_eps", 1e-6),
        size("bos_token_id", 128_000).or_null(),
        size("eos_token_id", 128_001).or_null(),
        flag("tie_word_embeddings", true),
        number("rope_theta", 2_000_000.0),
        flag("attention_bias", false),
        flag("mlp_bias", false),
        flag("use_sliding_window", false),
        null("sliding_window"),
        null(NO_ROPE_LAYERS),
        size("no_rope_layer_interval", 4),
        null(LAYER_TYPES),
    ],
    depth_keys: &[NO_ROPE_LAYERS, LAYER_TYPES],
    read: |keys, sizes| {
        let anatomy = Anatomy { mlp_bias: keys.flag("mlp_bias")?, ..Anatomy::llama(keys, sizes)? };
        let mut anatomy = anatomy.with_attention_bias(keys.flag("attention_bias")?);
        let interval = keys.size("no_rope_layer_interval")?;
        // Despite its name the key holds 1 where a layer rotates.
        let rotated = keys.per_depth(NO_ROPE_LAYERS, sizes.num_hidden_layers, |value| match value.as_u64() {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(keys.bad(NO_ROPE_LAYERS, value, "0 (not rotated) or 1 (rotated)")),
        })?;
        for (index, depth) in anatomy.depths.iter_mut().enumerate() {
            let rotates = rotated.as_ref().map_or((index + 1) % interval != 0, |list| list[index]);
            depth.rope = rotates.then_some(0);
        }
        let window = keys.optional_size("sliding_window")?;
        let slides = keys.flag("use_sliding_window")? && window.is_some();
        let rotates: Vec<bool> = anatomy.depths.iter().map(|depth| depth.rope.is_some()).collect();
        anatomy.with_windows(keys, window, |depth| slides && !rotates[depth])
    },
};
