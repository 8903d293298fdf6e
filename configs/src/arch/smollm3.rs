//! SmolLM3: a Llama in which every fourth layer does not rotate queries and keys (NoPE,
//! <https://arxiv.org/abs/2501.18795>).

use super::{Anatomy, Architecture, LAYER_TYPES, NO_ROPE_LAYERS, TensorNames};

/// `no_rope_layer_interval` of the configuration class where the key is absent.
const DEFAULT_INTERVAL: usize = 4;

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "smollm3",
    class_name: "SmolLM3ForCausalLM",
    models: "SmolLM3",
    tensor_names: TensorNames::Llama,
    head_dim: None,
    depth_keys: &[NO_ROPE_LAYERS, LAYER_TYPES],
    read: |keys, sizes| {
        let anatomy = Anatomy {
            mlp_bias: keys.flag("mlp_bias", false)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", true)?,
            ..Anatomy::llama(keys, sizes)?
        };
        let mut anatomy = anatomy.with_attention_bias(keys.flag("attention_bias", false)?);
        let interval = keys.optional_size("no_rope_layer_interval")?.unwrap_or(DEFAULT_INTERVAL);
        // Despite its name the key holds 1 where a layer rotates.
        let rotated = keys.per_depth(NO_ROPE_LAYERS, sizes.num_hidden_layers, |value| match value.as_u64() {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(keys.bad(NO_ROPE_LAYERS, value, "0 (not rotated) or 1 (rotated)")),
        })?;
        for (index, depth) in anatomy.depths.iter_mut().enumerate() {
            let rotates = rotated.as_ref().map_or((index + 1) % interval != 0, |list| list[index]);
            depth.rope = rotates.then_some(0);
        }
        let window = match keys.flag("use_sliding_window", false)? {
            true => keys.optional_size("sliding_window")?,
            false => None,
        };
        let Some(_) = window else { return Ok(anatomy) };
        let rotates: Vec<bool> = anatomy.depths.iter().map(|depth| depth.rope.is_some()).collect();
        anatomy.with_windows(keys, window, |depth| !rotates[depth])
    },
};
