//! Mistral: a Llama with sliding-window attention in its first version.

use super::{Anatomy, Architecture, TensorNames};

/// `sliding_window` of `MistralConfig` where the key is absent; null means no window.
const DEFAULT_WINDOW: usize = 4096;

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "mistral",
    class_name: "MistralForCausalLM",
    models: "Mistral 7B, Ministral",
    tensor_names: TensorNames::Llama,
    head_dim: None,
    depth_keys: &[],
    read: |keys, sizes| {
        let window = match keys.map.contains_key("sliding_window") {
            true => keys.optional_size("sliding_window")?,
            false => Some(DEFAULT_WINDOW),
        };
        let mut anatomy = Anatomy::llama(keys, sizes)?;
        anatomy.depths.iter_mut().for_each(|depth| depth.window = window);
        Ok(anatomy)
    },
};
