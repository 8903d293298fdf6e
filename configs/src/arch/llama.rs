//! Llama and models built like it: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU.

use super::{
    Anatomy, Architecture, TensorNames,
    defaults::{flag, null, number, size, text},
};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "llama",
    class_name: "LlamaForCausalLM",
    models: "Llama 1 to 3, SmolLM, SmolLM2, TinyLlama",
    tensor_names: TensorNames::Llama,
    defaults: &[
        null("num_key_value_heads"),
        null("head_dim"),
        text("hidden_act", "silu"),
        size("max_position_embeddings", 2048),
        number("rms_norm_eps", 1e-6),
        size("bos_token_id", 1).or_null(),
        size("eos_token_id", 2).or_null(),
        flag("tie_word_embeddings", false),
        number("rope_theta", 10_000.0),
        flag("attention_bias", false),
        flag("mlp_bias", false),
    ],
    depth_keys: &[],
    read: |keys, sizes| {
        let anatomy = Anatomy { mlp_bias: keys.flag("mlp_bias")?, ..Anatomy::llama(keys, sizes)? };
        Ok(anatomy.with_attention_bias(keys.flag("attention_bias")?))
    },
};
