//! The decoder: embeddings, an unrolled stack over stored layers, final norm, head.
//!
//! One forward pass serves training, prefill and decode. Stored layers live once in a `Vec`; the [`ShareMap`] says which of
//! them each depth runs, so a tied weight is one parameter and its gradient is the sum over its uses.
//!
//! The names of the fields spell the names of a Hugging Face checkpoint: the parameter path `model.layers.3.mlp.up_proj.weight`
//! is the tensor of that name.

use crate::{
    attention::{Attention, AttentionAtDepth},
    cache::KvCache,
    kernels,
    mlp::{Mlp, MlpAtDepth},
    norm::RmsNorm,
    rope::{RopeAngles, RopeFrequencies},
};
use burn::{
    module::{Module, Param},
    tensor::{Device, Int, Tensor},
};
use retie_config::{ModelConfig, ShareMap};
use std::sync::Arc;

/// A decoder with its language-model head.
#[derive(Module, Debug)]
pub struct CausalLm {
    pub model: Decoder,
    /// `None` when the embeddings are tied.
    pub lm_head: Option<Table>,
    #[module(skip)]
    pub(crate) plan: Arc<Plan>,
}

/// What does not change in training.
#[derive(Debug)]
pub(crate) struct Plan {
    pub config: ModelConfig,
    pub share_map: ShareMap,
    pub rope: RopeFrequencies,
}

/// Everything under `model.`.
#[derive(Module, Debug)]
pub struct Decoder {
    pub embed_tokens: Table,
    pub layers: Vec<Layer>,
    pub depths: Vec<DepthWeights>,
    pub norm: RmsNorm,
}

/// A vector per token id: `weight [V, D]`.
#[derive(Module, Debug)]
pub struct Table {
    pub weight: Param<Tensor<2>>,
}

/// Stored weights, run by one depth or by several. Norms are absent where each depth has its own.
#[derive(Module, Debug)]
pub struct Layer {
    pub input_layernorm: Option<RmsNorm>,
    pub self_attn: Attention,
    pub post_attention_layernorm: Option<RmsNorm>,
    pub mlp: Mlp,
}

/// What belongs to one depth alone.
#[derive(Module, Debug)]
pub struct DepthWeights {
    pub input_layernorm: Option<RmsNorm>,
    pub self_attn: AttentionAtDepth,
    pub post_attention_layernorm: Option<RmsNorm>,
    pub mlp: MlpAtDepth,
}

impl CausalLm {
    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.plan.config
    }

    /// Which layer each depth runs.
    #[must_use]
    pub fn share_map(&self) -> &ShareMap {
        &self.plan.share_map
    }

    /// Where the weights are.
    #[must_use]
    pub fn device(&self) -> Device {
        self.model.norm.weight.val().device()
    }

    /// Hidden states after the final norm, `[B·T, D]`, of token ids `[B, T]`.
    ///
    /// With a cache, `ids` continue what it holds, and join it. Rows of a batch that are shorter than others are padded on the
    /// right: attention is causal, so padding changes no hidden state before it.
    pub fn forward(&self, ids: Tensor<2, Int>, mut cache: Option<&mut KvCache>) -> Tensor<2> {
        let [batch, tokens] = ids.dims();
        let start = cache.as_ref().map_or(0, |c| c.len());
        let device = ids.device();
        let angles = self.plan.rope.angles(start, tokens, &device.inner());
        let rows = ids.reshape([batch * tokens]);
        let mut x = kernels::embedding(self.model.embed_tokens.weight.val(), rows); // [B·T, D]
        for step in self.plan.share_map.depths() {
            let cache = cache.as_deref_mut();
            x = self.run(x, step.layer.0, step.depth.0, batch, &angles, cache);
        }
        if let Some(cache) = cache {
            cache.advance(tokens);
        }
        self.model.norm.forward(x, self.plan.config.rms_norm_eps)
    }

    fn run(
        &self,
        x: Tensor<2>,
        layer: usize,
        depth: usize,
        batch: usize,
        angles: &RopeAngles,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let config = &self.plan.config;
        let (stored, own) = (&self.model.layers[layer], &self.model.depths[depth]);
        let normed = norm(&stored.input_layernorm, &own.input_layernorm).forward(x.clone(), config.rms_norm_eps);
        let slot = cache.map(|c| c.slot(depth));
        let attended = stored.self_attn.forward(normed, &own.self_attn, config, batch, angles, slot);
        let x = kernels::add(x, attended);
        let normed = norm(&stored.post_attention_layernorm, &own.post_attention_layernorm)
            .forward(x.clone(), config.rms_norm_eps);
        kernels::add(x, stored.mlp.forward(normed, &own.mlp))
    }

    /// The table that turns hidden states into logits, `[V, D]`.
    #[must_use]
    pub fn head(&self) -> Tensor<2> {
        self.head_param().val()
    }

    /// The parameter behind [`CausalLm::head`]: `lm_head.weight`, or the embeddings if they are tied.
    #[must_use]
    pub fn head_param(&self) -> &Param<Tensor<2>> {
        &self.lm_head.as_ref().unwrap_or(&self.model.embed_tokens).weight
    }

    /// Logits `[M, V]` of hidden states `[M, D]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        kernels::linear(hidden, self.head())
    }
}

pub(crate) fn norm<'a>(stored: &'a Option<RmsNorm>, own: &'a Option<RmsNorm>) -> &'a RmsNorm {
    match own.as_ref().or(stored.as_ref()) {
        Some(norm) => norm,
        None => unreachable!("loading checks that a norm is in the layer or in the depth"),
    }
}
