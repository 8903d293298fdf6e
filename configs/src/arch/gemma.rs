//! Gemma: norms by `1 + w`, GeGLU, scaled embeddings.

use super::{
    Activation, Anatomy, Architecture, TensorNames,
    defaults::{flag, null, number, size, text},
    rope,
};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma",
    class_name: "GemmaForCausalLM",
    models: "Gemma 1",
    tensor_names: TensorNames::Llama,
    defaults: &[
        size("num_key_value_heads", 16),
        size("head_dim", 256),
        text("hidden_act", "gelu_pytorch_tanh"),
        size("max_position_embeddings", 8192),
        number("rms_norm_eps", 1e-6),
        size("bos_token_id", 2).or_null(),
        size("eos_token_id", 1).or_null(),
        flag("tie_word_embeddings", true),
        number("rope_theta", 10_000.0),
        flag("attention_bias", false),
        null("use_bidirectional_attention"),
        // Of versions before 5.
        null("hidden_activation"),
    ],
    depth_keys: &[],
    read: |keys, sizes| {
        let activation = if keys.present("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
        // Early files say `gelu` and mean the tanh form, as `GemmaConfig` has it.
        keys.one_of(activation, &["gelu_pytorch_tanh", "gelu"])?;
        Anatomy::gemma(keys, sizes, Activation::GeluTanh, vec![rope::read(keys, sizes.head_dim)?])
    },
};
