//! Gemma 2: norms before and after each part, a sliding window on every other layer, soft caps on
//! attention scores and logits.

use super::{Anatomy, Architecture, LAYER_TYPES, Residual, TensorNames};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma2",
    class_name: "Gemma2ForCausalLM",
    models: "Gemma 2",
    tensor_names: TensorNames::Llama,
    head_dim: Some(256),
    depth_keys: &[LAYER_TYPES],
    read: |keys, sizes| {
        let anatomy = Anatomy {
            residual: Residual::Sandwich,
            attn_logit_softcapping: keys.optional_number("attn_logit_softcapping")?,
            final_logit_softcapping: keys.optional_number("final_logit_softcapping")?,
            query_pre_attn_scalar: keys.number("query_pre_attn_scalar")?,
            ..Anatomy::gemma(keys, sizes, "hidden_activation")?
        };
        anatomy.with_windows(keys, keys.optional_size("sliding_window")?, |depth| depth % 2 == 0)
    },
};
