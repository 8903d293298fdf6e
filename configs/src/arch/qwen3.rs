//! Qwen3: a Llama with a norm over each head of queries and keys.

use super::{Anatomy, Architecture, LAYER_TYPES, QkNorm, TensorNames, qwen2};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen3",
    class_name: "Qwen3ForCausalLM",
    models: "Qwen3 without experts",
    tensor_names: TensorNames::Llama,
    head_dim: Some(128),
    depth_keys: &[LAYER_TYPES],
    read: |keys, sizes| {
        let anatomy = Anatomy { qk_norm: Some(QkNorm::Head), ..qwen2::windowed(keys, sizes)? };
        Ok(anatomy.with_attention_bias(keys.flag("attention_bias", false)?))
    },
};
