//! Qwen3: a Llama with a norm over each head of queries and keys.

use super::{
    Anatomy, Architecture, LAYER_TYPES, QkNorm, TensorNames,
    defaults::{flag, null, number, size, text},
    qwen2,
};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen3",
    class_name: "Qwen3ForCausalLM",
    models: "Qwen3 without experts",
    tensor_names: TensorNames::Llama,
    defaults: &[
        size("num_key_value_heads", 32).or_null(),
        size("head_dim", 128),
        text("hidden_act", "silu"),
        size("max_position_embeddings", 32_768),
        number("rms_norm_eps", 1e-6),
        null("bos_token_id"),
        null("eos_token_id"),
        flag("tie_word_embeddings", false),
        number("rope_theta", 10_000.0),
        flag("attention_bias", false),
        flag("use_sliding_window", false),
        size("sliding_window", 4096).or_null(),
        size("max_window_layers", 28),
        null(LAYER_TYPES),
    ],
    depth_keys: &[LAYER_TYPES],
    read: |keys, sizes| {
        let anatomy = Anatomy { qk_norm: Some(QkNorm::Head), ..qwen2::windowed(keys, sizes)? };
        Ok(anatomy.with_attention_bias(keys.flag("attention_bias")?))
    },
};
