//! Gemma 3, text only: Gemma 2 without soft caps, with a norm over each head of queries and keys.
//! Five of six layers have a sliding window and a rotary embedding of their own.

use super::{Anatomy, Architecture, LAYER_TYPES, QkNorm, Residual, TensorNames, rope};

/// `sliding_window_pattern` of `Gemma3TextConfig` where the key is absent.
const DEFAULT_PATTERN: usize = 6;
const GLOBAL_THETA: f64 = 1_000_000.0;
const LOCAL_THETA: f64 = 10_000.0;

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma3_text",
    class_name: "Gemma3ForCausalLM",
    models: "Gemma 3 270M and 1B",
    tensor_names: TensorNames::Llama,
    head_dim: Some(256),
    depth_keys: &[LAYER_TYPES],
    read: |keys, sizes| {
        if keys.flag("use_bidirectional_attention", false)? {
            let hint = "only causal language models are supported";
            return Err(keys.unsupported("use_bidirectional_attention", &true.into(), hint));
        }
        let head_dim = sizes.head_dim;
        let of_kind = |kind: &str| match keys.object("rope_parameters")? {
            Some(kinds) => kinds.object(kind),
            None => Ok(None),
        };
        let global = match of_kind("full_attention")? {
            Some(parameters) => Some(parameters),
            None => keys.object("rope_scaling")?,
        };
        let global_theta = keys.optional_number("rope_theta")?.unwrap_or(GLOBAL_THETA);
        let local_theta = keys.optional_number("rope_local_base_freq")?.unwrap_or(LOCAL_THETA);
        let anatomy = Anatomy {
            residual: Residual::Sandwich,
            qk_norm: Some(QkNorm::Head),
            final_logit_softcapping: keys.optional_number("final_logit_softcapping")?,
            query_pre_attn_scalar: keys.number("query_pre_attn_scalar")?,
            ropes: vec![
                rope::of_parameters(global, global_theta, head_dim)?,
                rope::of_parameters(of_kind("sliding_attention")?, local_theta, head_dim)?,
            ],
            ..Anatomy::gemma(keys, sizes, "hidden_activation")?
        };
        let pattern = keys.optional_size("sliding_window_pattern")?.unwrap_or(DEFAULT_PATTERN);
        let window = keys.optional_size("sliding_window")?;
        let mut anatomy = anatomy.with_windows(keys, window, |depth| (depth + 1) % pattern != 0)?;
        anatomy.depths.iter_mut().for_each(|depth| depth.rope = Some(usize::from(depth.window.is_some())));
        Ok(anatomy)
    },
};
