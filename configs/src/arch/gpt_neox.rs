//! GPT-NeoX: LayerNorm, attention and feed-forward network in parallel, partial rotary embedding,
//! biases on every linear.
//!
//! Its checkpoints have other tensor names and one fused matrix for q, k and v. They are read under
//! the names of a Llama (`retie_checkpoint`), and so are the sizes.

use super::{Activation, Anatomy, Architecture, DepthKind, MlpKind, NormKind, Residual, TensorNames, rope};

/// `rotary_pct` of the configuration class where the key is absent.
const DEFAULT_ROTARY: f64 = 0.25;

pub(super) static ARCHITECTURE: Architecture = Architecture {
    model_type: "gpt_neox",
    class_name: "GPTNeoXForCausalLM",
    models: "GPT-NeoX, Pythia",
    tensor_names: TensorNames::GptNeox,
    head_dim: None,
    depth_keys: &[],
    read: |keys, sizes| {
        keys.only("hidden_act", &["gelu"])?;
        let theta = keys.optional_number("rotary_emb_base")?.unwrap_or(rope::DEFAULT_THETA);
        let parameters = match keys.object("rope_parameters")? {
            Some(parameters) => Some(parameters),
            None => keys.object("rope_scaling")?,
        };
        let (key, factor) = match parameters.map(|keys| keys.optional_number("partial_rotary_factor")).transpose()? {
            Some(Some(factor)) => ("partial_rotary_factor", factor),
            _ => ("rotary_pct", keys.optional_number("rotary_pct")?.unwrap_or(DEFAULT_ROTARY)),
        };
        let rotary_dim = rope::partial(keys, key, factor, sizes.head_dim)?;
        let parallel = keys.flag("use_parallel_residual", true)?;
        let bias = keys.flag("attention_bias", true)?;
        Ok(Anatomy {
            norm: NormKind::Layer,
            norm_eps: keys.number("layer_norm_eps")?,
            residual: if parallel { Residual::Parallel } else { Residual::PreNorm },
            qk_norm: None,
            mlp: MlpKind::Plain(Activation::Gelu),
            qkv_bias: bias,
            output_bias: bias,
            mlp_bias: true,
            ropes: vec![rope::of_parameters(parameters, theta, rotary_dim)?],
            depths: vec![DepthKind { rope: Some(0), window: None }; sizes.num_hidden_layers],
            query_pre_attn_scalar: sizes.head_dim as f64,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            embedding_scale: None,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
        })
    },
};
