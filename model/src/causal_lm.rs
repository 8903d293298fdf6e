//! The decoder: embeddings, an unrolled stack over stored layers, final norm, head.
//!
//! One forward pass serves training, prefill and decode. Stored layers live once in a `Vec`; the [`ShareMap`] says which of
//! them each depth runs, so a tied weight is one parameter and its gradient is the sum over its uses.
//!
//! The names of the fields spell the names of a Hugging Face checkpoint: the parameter path `model.layers.3.mlp.up_proj.weight`
//! is the tensor of that name.

use crate::{
    block::{Block, DepthWeights, Layer, Rows},
    cache::KvCache,
    kernels::{self, Head, Layout},
    kv::Kv,
    norm::Norm,
    rope::RopeFrequencies,
    router::{Router, Routing},
};
use burn::{
    module::{Module, Param},
    tensor::{Device, Int, Tensor},
};
use retie_config::{DepthExtra, ModelConfig, Precision, ShareMap};
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

/// What does not change in training, but for a router's thresholds and biases.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub config: ModelConfig,
    pub share_map: ShareMap,
    /// Depths that a forward pass runs: all of them, or fewer for an early exit.
    pub num_depths: usize,
    /// One for each rotation.
    pub ropes: Vec<RopeFrequencies>,
}

/// Everything under `model.`.
#[derive(Module, Debug)]
pub struct Decoder {
    pub embed_tokens: Table,
    pub layers: Vec<Layer>,
    pub depths: Vec<DepthWeights>,
    /// One a recursion, or one where each token chooses its depth; none without routers, or with routers that have no weights.
    pub routers: Vec<Router>,
    /// One a recursion, where inference goes by them.
    pub auxiliary_routers: Vec<Router>,
    pub norm: Norm,
}

/// A vector per token id: `weight [V, D]`.
#[derive(Module, Debug)]
pub struct Table {
    pub weight: Param<Tensor<2>>,
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

    /// The model without one kind of the vectors that its conversion added. The other weights are the same.
    #[must_use]
    pub fn without_extra(&self, kind: DepthExtra) -> Self {
        let mut model = self.clone();
        for depth in &mut model.model.depths {
            depth.extras = depth.extras.clone().without(kind);
        }
        model
    }

    /// The model with plain LoRA where it has DoRA: the same matrices without their magnitudes.
    #[must_use]
    pub fn without_magnitudes(&self) -> Self {
        let mut model = self.clone();
        model.model.depths.iter_mut().for_each(DepthWeights::drop_magnitudes);
        model
    }

    /// The model with the products of its layers in `precision`. The weights are the same.
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
        let device = self.device().inner();
        let angles = self.plan.ropes.iter().map(|rope| rope.angles(&positions, &device)).collect();
        Rows { layout, batch, angles }
    }

    /// What the first depth reads: a row for each token id, `[M]` → `[M, D]`.
    #[must_use]
    pub fn embed(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        self.scaled(kernels::embedding(self.model.embed_tokens.weight.val(), ids))
    }

    /// The gradient of the rows of the embeddings, given that of what [`CausalLm::embed`] makes of them, `[M, D]`.
    #[must_use]
    pub fn embed_backward(&self, grad: Tensor<2>) -> Tensor<2> {
        self.scaled(grad)
    }

    fn scaled(&self, rows: Tensor<2>) -> Tensor<2> {
        match self.plan.config.anatomy.embedding_scale {
            Some(scale) => rows * scale as f32,
            None => rows,
        }
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
        let [num_rows, _] = x.dims();
        for depth in depths {
            let slot = cache.as_deref_mut().map(|cache| cache.slot(depth, num_rows));
            x = self.run_depth(x, depth, rows, Kv::Own { slot, kept: None });
        }
        x
    }

    /// The final norm over what the last depth left, `[M, D]`.
    #[must_use]
    pub fn norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.model.norm.forward(x, &self.plan.config.anatomy)
    }

    pub(crate) fn run_depth(&self, x: Tensor<2>, depth: usize, rows: &Rows, kv: Kv<'_>) -> Tensor<2> {
        let config = &self.plan.config;
        let layer = self.plan.share_map.depths()[depth].layer.0;
        let (layer, own) = (&self.model.layers[layer], &self.model.depths[depth]);
        Block { layer, own, config, kind: config.anatomy.depths[depth] }.forward(x, rows, kv)
    }

    /// What turns hidden states into logits.
    #[must_use]
    pub fn head(&self) -> Head {
        let softcap = self.plan.config.anatomy.final_logit_softcapping.map(|cap| cap as f32);
        Head { weight: self.head_param().val(), softcap }
    }

    /// The parameter behind [`CausalLm::head`]: `lm_head.weight`, or the embeddings if they are tied.
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
