//! The decoder: embeddings, an unrolled stack over stored layers, final norm, head.
//!
//! One forward pass serves training, prefill and decode. Stored layers live once in a `Vec`; the
//! [`ShareMap`] gives the layer of each depth, so a tied weight is one parameter and its gradient
//! is the sum over its uses.
//!
//! Field names follow a Hugging Face checkpoint: the parameter path
//! `model.layers.3.mlp.up_proj.weight` is the tensor of that name.

use crate::{
    at_depths::AtDepths,
    block::{Block, DepthWeights, Layer, Stream},
    cache::{KvCache, NewTokens},
    exit::RowExits,
    kernels::{self, Head, Layout},
    kv::{KeysValues, KvSource},
    norm::Norm,
    rope::RopeFrequencies,
    router::{Router, RoutingTrace, SelectionRule},
    row_context::RowContext,
    steps::{Slices, StepAttention},
    token_ids::TokenIds,
};
use burn::{
    module::{Module, Param},
    tensor::{Device, Int, Tensor},
};
use retie_config::{DepthExtra, Mechanism, ModelConfig, Precision, ShareMap, SlicedConfig, StepConfig};
use std::{ops::Range, sync::Arc};

/// A decoder with its language-model head.
#[derive(Module, Debug)]
pub struct CausalLm {
    pub model: Decoder,
    /// `None` when the embeddings are tied.
    pub lm_head: Option<Table>,
    #[module(skip)]
    pub(crate) spec: Arc<DecoderSpec>,
}

/// Configuration of a decoder. Constant in training, except for a router's thresholds and biases.
#[derive(Clone, Debug)]
pub(crate) struct DecoderSpec {
    pub config: ModelConfig,
    pub share_map: ShareMap,
    /// One per rotary embedding of the configuration.
    pub ropes: Vec<RopeFrequencies>,
}

/// Modules under the `model.` prefix of a checkpoint.
#[derive(Module, Debug)]
pub struct Decoder {
    pub embed_tokens: Table,
    pub layers: Vec<Layer>,
    pub depths: Vec<DepthWeights>,
    /// One per recursion for expert choice, one in all for token choice; empty without routers and
    /// for routers that have no weights.
    pub routers: Vec<Router>,
    /// One per recursion, if inference selects by auxiliary routers; else empty.
    pub auxiliary_routers: Vec<Router>,
    pub norm: Norm,
}

/// Weight matrix without a bias, such as the embeddings: `weight [V, D]`.
#[derive(Module, Debug)]
pub struct Table {
    pub weight: Param<Tensor<2>>,
}

impl CausalLm {
    /// Configuration of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.spec.config
    }

    /// Share map: the stored layer and the recursion of each depth.
    #[must_use]
    pub fn share_map(&self) -> &ShareMap {
        &self.spec.share_map
    }

    /// Model without one kind of extras. The other weights stay the same.
    #[must_use]
    pub fn without_extra(&self, kind: DepthExtra) -> Self {
        let mut model = self.clone();
        for depth in &mut model.model.depths {
            depth.extras = depth.extras.clone().without(kind);
        }
        model
    }

    /// Model without one mechanism of its steps. The other weights stay the same.
    #[must_use]
    pub fn without_mechanism(&self, name: &str) -> Self {
        let mut model = self.clone();
        for depth in &mut model.model.depths {
            depth.step = depth.step.clone().without(name);
        }
        model
    }

    /// Sets the number of slices of each depth with sliced attention, which `change` makes of that
    /// of its configuration.
    pub fn set_slices(&mut self, change: impl Fn(usize) -> usize) {
        let spec = &self.spec;
        let Some(recursion) = &spec.config.recursion else { return };
        for (own, depth) in self.model.depths.iter_mut().zip(spec.share_map.depths()) {
            let attention = recursion.step(depth).and_then(|step| step.attention.as_ref());
            if let Some(Mechanism::Sliced(config)) = attention {
                let groups = change(config.groups);
                let slices = Slices::new(&SlicedConfig { groups, ..config.clone() });
                own.step.attention = slices.map(StepAttention::Sliced);
            }
        }
    }

    /// Sets the tokens of a coarse token of each recursion that has such, which `change` makes of
    /// that of its configuration.
    pub fn set_resolutions(&mut self, change: impl Fn(usize) -> usize) {
        let spec = &self.spec;
        let Some(recursion) = &spec.config.recursion else { return };
        for (own, depth) in self.model.depths.iter_mut().zip(spec.share_map.depths()) {
            if let Some(factor) = recursion.step(depth).map(StepConfig::factor).filter(|factor| *factor > 1) {
                own.step.factor = change(factor);
            }
        }
    }

    /// Model with plain LoRA in place of DoRA: the same factors without their magnitudes.
    #[must_use]
    pub fn without_magnitudes(&self) -> Self {
        let mut model = self.clone();
        model.model.depths.iter_mut().for_each(DepthWeights::drop_magnitudes);
        model
    }

    /// Model whose layers compute their matrix products in `precision`. The weights stay the same.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        for Layer { self_attn, mlp, .. } in &mut self.model.layers {
            let attention =
                [&mut self_attn.q_proj, &mut self_attn.k_proj, &mut self_attn.v_proj, &mut self_attn.o_proj];
            let linears = attention.into_iter().chain([&mut mlp.up_proj, &mut mlp.down_proj]).chain(&mut mlp.gate_proj);
            linears.for_each(|linear| linear.precision = precision);
        }
        self
    }

    /// Device of the weights.
    #[must_use]
    pub fn device(&self) -> Device {
        self.model.norm.weight.val().device()
    }

    /// Hidden states after the final norm, `[B·T, D]`, of token ids `[B, T]`.
    ///
    /// With a cache, which must have `B` sequences, `ids` continue these sequences and are added
    /// to the cache. Shorter sequences are padded on the right: attention is causal, so padding
    /// changes no hidden state before it.
    #[must_use]
    pub fn forward(&self, ids: Tensor<2, Int>, cache: Option<&mut KvCache>) -> Tensor<2> {
        self.forward_traced(ids, cache).0
    }

    /// [`CausalLm::forward`] that also returns the routing trace.
    #[must_use]
    pub fn forward_traced(&self, ids: Tensor<2, Int>, cache: Option<&mut KvCache>) -> (Tensor<2>, RoutingTrace) {
        let [batch, tokens] = ids.dims();
        let ids = ids.reshape([batch * tokens]);
        let Some(cache) = cache else {
            return self.forward_routed(ids, Layout::batch(batch, tokens), SelectionRule::Causal);
        };
        let new = cache.continue_all(batch, tokens);
        self.forward_cached(ids, &new, cache)
    }

    /// Hidden states after the final norm, `[M, D]`, and the routing trace of the new tokens
    /// `ids [M]` of cached sequences, concatenated in the order of `batch`. The tokens are added to
    /// the cache. Hidden states of a sequence do not depend on the other sequences of the batch.
    ///
    /// # Panics
    /// When a slot is free, has too little room, or occurs twice.
    #[must_use]
    pub fn forward_cached(
        &self,
        ids: Tensor<1, Int>,
        batch: &[NewTokens],
        cache: &mut KvCache,
    ) -> (Tensor<2>, RoutingTrace) {
        let layout = cache.layout(batch);
        let found = self.begin(ids, layout, SelectionRule::Causal).with_cache(cache).finish();
        cache.advance(batch);
        found
    }

    /// [`CausalLm::forward_cached`] whose tokens leave the loop as `exits` says. The cache has to
    /// be one of [`KvCache::for_exits`] with the same policy.
    ///
    /// # Panics
    /// As [`CausalLm::forward_cached`], and when the model fails [`CausalLm::check_exits`].
    #[must_use]
    pub fn forward_exiting(
        &self,
        ids: Tensor<1, Int>,
        batch: &[NewTokens],
        exits: RowExits<'_>,
        cache: &mut KvCache,
    ) -> (Tensor<2>, RoutingTrace) {
        let layout = cache.layout(batch);
        let found = self.begin(ids, layout, SelectionRule::Causal).with_exits(exits).with_cache(cache).finish();
        cache.advance(batch);
        found
    }

    /// Hidden states after the final norm, `[M, D]`, of the packed sequences `ids [M]` that
    /// `layout` describes.
    #[must_use]
    pub fn forward_packed(&self, ids: impl Into<TokenIds>, layout: Layout) -> Tensor<2> {
        self.forward_routed(ids, layout, SelectionRule::Causal).0
    }

    /// [`CausalLm::forward_packed`] with tokens selected by `rule`; also returns the routing trace.
    #[must_use]
    pub fn forward_routed(
        &self,
        ids: impl Into<TokenIds>,
        layout: Layout,
        rule: SelectionRule,
    ) -> (Tensor<2>, RoutingTrace) {
        self.begin(ids, layout, rule).finish()
    }

    /// Positions and rotary embeddings of the rows of `layout`.
    #[must_use]
    pub fn row_context(&self, layout: Layout) -> RowContext {
        let (batch, positions) = layout.positions();
        let device = self.device().inner();
        let angles = self.spec.ropes.iter().map(|rope| rope.angles(&positions, &device)).collect();
        RowContext { layout, batch, angles }
    }

    /// Input of the first depth: scaled embeddings of token ids, `[M]` → `[M, D]`.
    #[must_use]
    pub fn embed(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        self.scaled(kernels::embedding(self.model.embed_tokens.weight.val(), ids))
    }

    /// Gradient of the selected rows of the embedding table, `[M, D]`, from the gradient of
    /// [`CausalLm::embed`]'s result.
    #[must_use]
    pub fn embed_backward(&self, grad: Tensor<2>) -> Tensor<2> {
        self.scaled(grad)
    }

    fn scaled(&self, rows: Tensor<2>) -> Tensor<2> {
        match self.spec.config.anatomy.embedding_scale {
            Some(scale) => rows * scale as f32,
            None => rows,
        }
    }

    /// Runs consecutive depths over hidden states `[M, D]`, each on the keys and values that it
    /// computes itself: no routers, no KV sharing, no cache. A full forward pass is
    /// [`CausalLm::begin`].
    #[must_use]
    pub fn run_depths(&self, x: Tensor<2>, depths: Range<usize>, rows: &RowContext) -> Tensor<2> {
        depths.fold(Stream::from(x), |stream, depth| self.block(depth).pass(stream, rows)).sum()
    }

    /// Final norm of hidden states `[M, D]`.
    #[must_use]
    pub fn norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.model.norm.forward(x, &self.spec.config.anatomy)
    }

    pub(crate) fn run_depth(&self, x: Tensor<2>, depth: usize, rows: &RowContext, kv: KvSource<'_>) -> Tensor<2> {
        self.block(depth).forward(x, rows, kv, None)
    }

    /// Keys and values `[M, K·H]` that `depth` makes of `x [M, D]`.
    pub(crate) fn keys_values(&self, x: Tensor<2>, depth: usize, rows: &RowContext) -> KeysValues {
        self.block(depth).keys_values(x, rows)
    }

    fn block(&self, depth: usize) -> Block<'_> {
        let config = &self.spec.config;
        let layer = self.spec.share_map.depths()[depth].layer.0;
        let (layer, own) = (&self.model.layers[layer], AtDepths::One(&self.model.depths[depth]));
        Block { layer, own, config, kind: config.anatomy.depths[depth] }
    }

    /// Head: the weight and logit soft cap that turn hidden states into logits.
    #[must_use]
    pub fn head(&self) -> Head {
        let softcap = self.spec.config.anatomy.final_logit_softcapping.map(|cap| cap as f32);
        Head { weight: self.head_param().val(), softcap }
    }

    /// Parameter of [`CausalLm::head`]: `lm_head.weight`, or the embeddings if they are tied.
    #[must_use]
    pub fn head_param(&self) -> &Param<Tensor<2>> {
        &self.lm_head.as_ref().unwrap_or(&self.model.embed_tokens).weight
    }

    /// Logits `[M, V]` of hidden states `[M, D]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let Head { weight, softcap } = self.head();
        let logits = kernels::linear(hidden, weight);
        match softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }
}
