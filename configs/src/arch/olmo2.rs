//! OLMo 2: a Llama with norms after each part instead of before it, and norms over all heads of
//! queries and keys together.

use super::{Anatomy, Architecture, QkNorm, Residual, TensorNames};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "olmo2",
    class_name: "Olmo2ForCausalLM",
    models: "OLMo 2",
    tensor_names: TensorNames::Llama,
    head_dim: None,
    depth_keys: &[],
    read: |keys, sizes| {
        let anatomy =
            Anatomy { residual: Residual::PostNorm, qk_norm: Some(QkNorm::Full), ..Anatomy::llama(keys, sizes)? };
        Ok(anatomy.with_attention_bias(keys.flag("attention_bias", false)?))
    },
};
