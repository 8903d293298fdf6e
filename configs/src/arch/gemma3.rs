//! Gemma 3, text only: Gemma 2 without soft caps, with a norm over each head of queries and keys.
//! Five of six layers have a sliding window and a rotary embedding of their own.

use super::{
    Anatomy, Architecture, LAYER_TYPES, QkNorm, Residual, TensorNames,
    defaults::{flag, null, number, size, text},
    rope,
};
use crate::keys::Keys;
use serde_json::Map;

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma3_text",
    class_name: "Gemma3ForCausalLM",
    models: "Gemma 3 270M and 1B",
    tensor_names: TensorNames::Llama,
    defaults: &[
        size("num_key_value_heads", 4),
        size("head_dim", 256),
        text("hidden_activation", "gelu_pytorch_tanh"),
        // Of the first files, beside `hidden_activation`.
        null("hidden_act"),
        size("max_position_embeddings", 131_072),
        number("rms_norm_eps", 1e-6),
        size("bos_token_id", 2).or_null(),
        size("eos_token_id", 1).or_null(),
        flag("tie_word_embeddings", true),
        number("rope_theta", 1_000_000.0),
        number("rope_local_base_freq", 10_000.0),
        flag("attention_bias", false),
        size("query_pre_attn_scalar", 256),
        size("sliding_window", 4096).or_null(),
        size("sliding_window_pattern", 6),
        null("attn_logit_softcapping"),
        null("final_logit_softcapping"),
        null(LAYER_TYPES),
        flag("use_bidirectional_attention", false).or_null(),
    ],
    depth_keys: &[LAYER_TYPES],
    read: |keys, sizes| {
        if let Some(found) = keys.present("attn_logit_softcapping") {
            let hint = "no Gemma 3 has it, and `transformers` ignores it: take the key out, or set it to null";
            return Err(keys.unsupported("attn_logit_softcapping", found, hint));
        }
        let of_kind = |kind: &str| match keys.object("rope_parameters")? {
            Some(kinds) => kinds.object(kind),
            None => Ok(None),
        };
        // `rope_scaling` changes the rotation of full attention, and what it leaves out stays.
        let mut global = match of_kind("full_attention")? {
            Some(parameters) => parameters.map.clone(),
            None => Map::from_iter([("rope_type".to_owned(), "default".into())]),
        };
        global.extend(keys.object("rope_scaling")?.into_iter().flat_map(|scaling| scaling.map.clone()));
        let global = Keys { map: &global, defaults: &[], ..*keys };
        let local = of_kind("sliding_attention")?;
        rope::refuse_partial([Some(*keys), Some(global), local])?;
        let theta = [keys.number("rope_theta")?, keys.number("rope_local_base_freq")?];
        let rope = |parameters, theta| rope::of_parameters(keys, parameters, theta, sizes.head_dim);
        let ropes = vec![rope(Some(global), theta[0])?, rope(local, theta[1])?];
        let anatomy = Anatomy {
            residual: Residual::Sandwich,
            qk_norm: Some(QkNorm::Head),
            final_logit_softcapping: keys.optional_number("final_logit_softcapping")?,
            query_pre_attn_scalar: keys.number("query_pre_attn_scalar")?,
            ..Anatomy::gemma(keys, sizes, Anatomy::hidden_activation(keys)?, ropes)?
        };
        let pattern = keys.size("sliding_window_pattern")?;
        let window = keys.optional_size("sliding_window")?;
        let mut anatomy = anatomy.with_windows(keys, window, |depth| (depth + 1) % pattern != 0)?;
        anatomy.depths.iter_mut().for_each(|depth| depth.rope = Some(usize::from(depth.window.is_some())));
        Ok(anatomy)
    },
};
