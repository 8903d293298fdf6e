//! Gemma: norms by `1 + w`, GeGLU, scaled embeddings.

use super::{Anatomy, Architecture, TensorNames};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma",
    class_name: "GemmaForCausalLM",
    models: "Gemma 1",
    tensor_names: TensorNames::Llama,
    head_dim: Some(256),
    depth_keys: &[],
    read: |keys, sizes| {
        let activation = if keys.present("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
        Anatomy::gemma(keys, sizes, activation)
    },
};
