//! Gemma 2: norms before and after each part, a sliding window on every other layer, soft caps on
//! attention scores and logits.

use super::{
    Anatomy, Architecture, LAYER_TYPES, Residual, TensorNames,
    defaults::{flag, null, number, size, text},
    rope,
};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma2",
    class_name: "Gemma2ForCausalLM",
    models: "Gemma 2",
    tensor_names: TensorNames::Llama,
    defaults: &[
        size("num_key_value_heads", 4),
        size("head_dim", 256),
        text("hidden_activation", "gelu_pytorch_tanh"),
        // Of the first files, beside `hidden_activation`.
        null("hidden_act"),
        size("max_position_embeddings", 8192),
        number("rms_norm_eps", 1e-6),
        size("bos_token_id", 2).or_null(),
        size("eos_token_id", 1).or_null(),
        flag("tie_word_embeddings", true),
        number("rope_theta", 10_000.0),
        flag("attention_bias", false),
        size("query_pre_attn_scalar", 256),
        size("sliding_window", 4096).or_null(),
        number("attn_logit_softcapping", 50.0).or_null(),
        number("final_logit_softcapping", 30.0).or_null(),
        null(LAYER_TYPES),
        null("use_bidirectional_attention"),
    ],
    depth_keys: &[LAYER_TYPES],
    read: |keys, sizes| {
        let anatomy = Anatomy {
            residual: Residual::Sandwich,
            attn_logit_softcapping: keys.optional_number("attn_logit_softcapping")?,
            final_logit_softcapping: keys.optional_number("final_logit_softcapping")?,
            query_pre_attn_scalar: keys.number("query_pre_attn_scalar")?,
            ..Anatomy::gemma(keys, sizes, Anatomy::hidden_activation(keys)?, vec![rope::read(keys, sizes.head_dim)?])?
        };
        anatomy.with_windows(keys, keys.optional_size("sliding_window")?, |depth| depth % 2 == 0)
    },
};
