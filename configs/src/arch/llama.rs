//! Llama and models built like it: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU.

use super::{Anatomy, Architecture, TensorNames};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "llama",
    class_name: "LlamaForCausalLM",
    models: "Llama 1 to 3, SmolLM, SmolLM2, TinyLlama",
    tensor_names: TensorNames::Llama,
    head_dim: None,
    depth_keys: &[],
    read: |keys, sizes| {
        let anatomy = Anatomy { mlp_bias: keys.flag("mlp_bias", false)?, ..Anatomy::llama(keys, sizes)? };
        Ok(anatomy.with_attention_bias(keys.flag("attention_bias", false)?))
    },
};
