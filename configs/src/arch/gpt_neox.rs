//! GPT-NeoX: LayerNorm, attention and feed-forward network in parallel, partial rotary embedding,
//! biases on every linear.
//!
//! Its checkpoints have other tensor names and one fused matrix for q, k and v. They are read under
//! the names of a Llama (`retie_checkpoint`), and so are the sizes.

use super::{
    Activation, Anatomy, Architecture, DepthKind, MlpKind, NormKind, Residual, TensorNames,
    defaults::{flag, number, size, text},
    rope,
};

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "gpt_neox",
    class_name: "GPTNeoXForCausalLM",
    models: "GPT-NeoX, Pythia",
    tensor_names: TensorNames::GptNeox,
    defaults: &[
        text("hidden_act", "gelu"),
        size("max_position_embeddings", 2048),
        number("layer_norm_eps", 1e-5),
        size("bos_token_id", 0).or_null(),
        size("eos_token_id", 2).or_null(),
        flag("tie_word_embeddings", false),
        flag("use_parallel_residual", true),
        flag("attention_bias", true),
        number("rotary_emb_base", 10_000.0),
        number("rotary_pct", 0.25),
    ],
    depth_keys: &[],
    read: |keys, sizes| {
        keys.one_of("hidden_act", &["gelu"])?;
        let head_dim = sizes.hidden_size / keys.size("num_attention_heads")?;
        if sizes.head_dim != head_dim {
            let hint = format!("a head of this family has `hidden_size / num_attention_heads` = {head_dim}");
            return Err(keys.unsupported("head_dim", &sizes.head_dim.into(), &hint));
        }
        let parameters = rope::parameters(keys)?;
        let (key, factor) = match parameters.map(|keys| keys.optional_number("partial_rotary_factor")).transpose()? {
            Some(Some(factor)) => ("partial_rotary_factor", factor),
            _ => ("rotary_pct", keys.number("rotary_pct")?),
        };
        let rotary_dim = rope::partial(keys, key, factor, sizes.head_dim)?;
        let parallel = keys.flag("use_parallel_residual")?;
        let bias = keys.flag("attention_bias")?;
        Ok(Anatomy {
            norm: NormKind::Layer,
            norm_eps: keys.number("layer_norm_eps")?,
            residual: if parallel { Residual::Parallel } else { Residual::PreNorm },
            qk_norm: None,
            mlp: MlpKind::Plain(Activation::Gelu),
            qkv_bias: bias,
            output_bias: bias,
            mlp_bias: true,
            ropes: vec![rope::of_parameters(keys, parameters, keys.number("rotary_emb_base")?, rotary_dim)?],
            depths: vec![DepthKind { rope: Some(0), window: None }; sizes.num_hidden_layers],
            query_pre_attn_scalar: sizes.head_dim as f64,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            embedding_scale: None,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?,
        })
    },
};
