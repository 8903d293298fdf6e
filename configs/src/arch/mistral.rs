//! Mistral: a Llama with sliding-window attention in its first version.

use super::{
    Anatomy, Architecture, LAYER_TYPES, TensorNames,
    defaults::{flag, null, number, size, text},
};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "mistral",
    class_name: "MistralForCausalLM",
    models: "Mistral 7B, Ministral",
    tensor_names: TensorNames::Llama,
    defaults: &[
        size("num_key_value_heads", 8),
        null("head_dim"),
        text("hidden_act", "silu"),
        size("max_position_embeddings", 131_072),
        number("rms_norm_eps", 1e-6),
        size("bos_token_id", 1).or_null(),
        size("eos_token_id", 2).or_null(),
        flag("tie_word_embeddings", false),
        number("rope_theta", 10_000.0),
        size("sliding_window", 4096).or_null(),
    ],
    depth_keys: &[],
    read: |keys, sizes| {
        let window = keys.optional_size("sliding_window")?;
        if let (Some(_), Some(list)) = (window, keys.present(LAYER_TYPES))
            && list.as_array().is_none_or(|list| list.iter().any(|kind| kind != "sliding_attention"))
        {
            let hint = "windows that not all layers have are those of Ministral (`ministral`), which is not supported";
            return Err(keys.unsupported(LAYER_TYPES, list, hint));
        }
        let mut anatomy = Anatomy::llama(keys, sizes)?;
        anatomy.depths.iter_mut().for_each(|depth| depth.window = window);
        Ok(anatomy)
    },
};
