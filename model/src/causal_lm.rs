//! The decoder: embeddings, an unrolled stack over stored layers, final norm, head.
//!
//! One forward pass serves training, prefill and decode. Stored layers live once in a `Vec`; the [`ShareMap`] says which of
//! them each depth runs, so a tied weight is one parameter and its gradient is the sum over its uses.
//!
//! The names of the fields spell the names of a Hugging Face checkpoint: the parameter path `model.layers.3.mlp.up_proj.weight`
//! is the tensor of that name.

use crate::{
    attention::{Attention, AttentionAtDepth},
    cache::{KvCache, KvSlot},
    kernels::{self, Layout},
    mlp::{Mlp, MlpAtDepth},
    norm::RmsNorm,
    rope::{RopeAngles, RopeFrequencies},
    router::{Router, Routing},
};
use burn::{
    module::{Module, Param},
    tensor::{Device, Int, Tensor},
};
use retie_config::{ModelConfig, ShareMap};
use std::{ops::Range, sync::Arc};

/// A decoder with its language-model head.
#[derive(Module, Debug)]
pub struct CausalLm {
    pub model: Decoder,
    /// `None` when the embeddings are tied.
    pub lm_head: Option<Table>,
    #[module(skip)]
    pub(crate) plan: Arc<Plan>,
}

/// What does not change in training, but for a router's thresholds.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub config: ModelConfig,
    pub share_map: ShareMap,
    /// Depths that a forward pass runs: all of them, or fewer for an early exit.
    pub num_depths: usize,
    pub rope: RopeFrequencies,
}

/// What all depths of a forward pass know of its rows.
#[derive(Debug)]
pub struct Rows {
    pub(crate) layout: Layout,
    /// How often the positions of `angles` repeat.
    pub(crate) batch: usize,
    pub(crate) angles: RopeAngles,
}

/// Everything under `model.`.
#[derive(Module, Debug)]
pub struct Decoder {
    pub embed_tokens: Table,
    pub layers: Vec<Layer>,
    pub depths: Vec<DepthWeights>,
    /// One a recursion; none without routers, or with routers that have no weights.
    pub routers: Vec<Router>,
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

    /// The model that leaves the stack after `num_depths` depths, for the same final norm and head. The weights are the same.
    ///
    /// # Panics
    /// When the stack is not that deep.
    #[must_use]
    pub fn until(&self, num_depths: usize) -> Self {
        assert!(num_depths <= self.plan.share_map.num_depths(), "a stack of {}", self.plan.share_map.num_depths());
        let plan = Arc::new(Plan { num_depths, ..(*self.plan).clone() });
        Self { plan, ..self.clone() }
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
    pub fn forward(&self, ids: Tensor<2, Int>, cache: Option<&mut KvCache>) -> Tensor<2> {
        self.forward_with(ids, cache, &mut Routing::default())
    }

    /// As [`CausalLm::forward`], with what the routers do in `routing`; it is one forward pass's.
    pub fn forward_with(
        &self,
        ids: Tensor<2, Int>,
        mut cache: Option<&mut KvCache>,
        routing: &mut Routing,
    ) -> Tensor<2> {
        let [batch, tokens] = ids.dims();
        let layout = match &cache {
            Some(cache) => cache.layout(batch, tokens),
            None => Layout::batch(batch, tokens),
        };
        let hidden = self.run(ids.reshape([batch * tokens]), layout, routing, cache.as_deref_mut());
        if let Some(cache) = cache {
            cache.advance(tokens);
        }
        hidden
    }

    /// Hidden states after the final norm, `[M, D]`, of sequences that lie behind one another in `ids [M]`, as `layout` says.
    pub fn forward_packed(&self, ids: Tensor<1, Int>, layout: Layout) -> Tensor<2> {
        self.run(ids, layout, &mut Routing::default(), None)
    }

    pub(crate) fn run(
        &self,
        ids: Tensor<1, Int>,
        layout: Layout,
        routing: &mut Routing,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let rows = self.rows(layout);
        self.draw_lots(&ids, &rows, routing);
        let x = self.run_passes(self.embed(ids), 0..self.plan.num_depths, &rows, routing, cache);
        self.norm(x)
    }

    /// What the depths of a forward pass over `layout` need to know.
    #[must_use]
    pub fn rows(&self, layout: Layout) -> Rows {
        let (batch, positions) = layout.positions();
        let angles = self.plan.rope.angles(&positions, &self.device().inner());
        Rows { layout, batch, angles }
    }

    /// What the first depth reads: a row for each token id, `[M]` → `[M, D]`.
    #[must_use]
    pub fn embed(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        kernels::embedding(self.model.embed_tokens.weight.val(), ids)
    }

    /// Runs some depths of the stack over hidden states `[M, D]`.
    #[must_use]
    pub fn run_depths(
        &self,
        mut x: Tensor<2>,
        depths: Range<usize>,
        rows: &Rows,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        for step in &self.plan.share_map.depths()[depths] {
            let slot = cache.as_deref_mut().map(|cache| cache.slot(step.depth.0));
            x = self.run_depth(x, step.layer.0, step.depth.0, rows, slot);
        }
        x
    }

    /// The final norm over what the last depth left, `[M, D]`.
    #[must_use]
    pub fn norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.model.norm.forward(x, self.plan.config.rms_norm_eps)
    }

    pub(crate) fn run_depth(
        &self,
        x: Tensor<2>,
        layer: usize,
        depth: usize,
        rows: &Rows,
        slot: Option<KvSlot<'_>>,
    ) -> Tensor<2> {
        let config = &self.plan.config;
        let (stored, own) = (&self.model.layers[layer], &self.model.depths[depth]);
        let normed = norm(&stored.input_layernorm, &own.input_layernorm).forward(x.clone(), config.rms_norm_eps);
        let attended = stored.self_attn.forward(normed, &own.self_attn, config, rows, slot);
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
