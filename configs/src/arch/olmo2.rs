//! OLMo 2: a Llama with norms after each part instead of before it, and norms over all heads of
//! queries and keys together.

use super::{
    Anatomy, Architecture, QkNorm, Residual, TensorNames,
    defaults::{flag, null, number, size, text},
};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "olmo2",
    class_name: "Olmo2ForCausalLM",
    models: "OLMo 2",
    tensor_names: TensorNames::Llama,
    defaults: &[
        null("num_key_value_heads"),
        text("hidden_act", "silu"),
        size("max_position_embeddings", 2048),
        number("rms_norm_eps", 1e-5),
        null("bos_token_id"),
        size("eos_token_id", 50_279).or_null(),
        flag("tie_word_embeddings", false),
        number("rope_theta", 10_000.0),
        flag("attention_bias", false),
    ],
    depth_keys: &[],
    read: |keys, sizes| {
        let anatomy =
            Anatomy { residual: Residual::PostNorm, qk_norm: Some(QkNorm::Full), ..Anatomy::llama(keys, sizes)? };
        Ok(anatomy.with_attention_bias(keys.flag("attention_bias")?))
    },
};
