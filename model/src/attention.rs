//! Self-attention of one depth: projections, QK norms, rotary embedding, KV cache and causal
//! grouped-query attention.

use crate::{
    kernels::{self, Scoring},
    kv::KvSource,
    linear::{Linear, LinearAtDepth},
    norm::{Norm, chosen},
    rope::RopeFrequencies,
    row_context::RowContext,
    steps::{Descriptors, Projected, StepAttention, attend_sliced},
};
use burn::{module::Module, tensor::Tensor};
use retie_config::{DepthKind, ModelConfig, QkNorm};

/// Attention weights of a stored layer. QK norms are `None` where each depth has its own and in
/// families without them.
#[derive(Module, Debug)]
pub struct Attention {
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Linear,
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
}

/// Attention weights that one depth adds to those of its layer: LoRA or DoRA, biases, QK norms.
#[derive(Module, Debug)]
pub struct AttentionAtDepth {
    pub q_proj: LinearAtDepth,
    pub k_proj: LinearAtDepth,
    pub v_proj: LinearAtDepth,
    pub o_proj: LinearAtDepth,
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
}

/// Sizes, kind of depth and rows of one attention, and the keys that it is restricted to.
#[derive(Clone, Copy)]
pub(crate) struct AttentionContext<'a> {
    pub config: &'a ModelConfig,
    pub kind: DepthKind,
    pub rows: &'a RowContext,
    /// Keys to attend to in place of all, if any.
    pub own: Option<&'a StepAttention>,
}

impl Attention {
    /// Attention output before `o_proj`: `x [M, D]` → `[M, N·H]`. `kv` is the source of keys and
    /// values.
    pub(crate) fn mix(
        &self,
        x: Tensor<2>,
        depth: &AttentionAtDepth,
        context: AttentionContext<'_>,
        kv: KvSource<'_>,
    ) -> Tensor<2> {
        let AttentionContext { config, kind, rows, own } = context;
        let [num_rows, _] = x.dims();
        let [batch, tokens] = [rows.batch, num_rows / rows.batch];
        let anatomy = &config.anatomy;
        let split = |x: Tensor<2>, heads: usize| x.reshape([batch, tokens, heads, config.head_dim]);
        // QK norm and rotary embedding: [M, heads·H] → [B, T, heads, H].
        let prepare = |x: Tensor<2>, heads: usize, stored: &Option<Norm>, own: &Option<Norm>| {
            let x = match anatomy.qk_norm {
                None => split(x, heads),
                Some(QkNorm::Full) => split(chosen(stored, own).forward(x, anatomy), heads),
                Some(QkNorm::Head) => chosen(stored, own).forward_heads(split(x, heads), anatomy),
            };
            match kind.rope.map(|rope| &rows.angles[rope]) {
                Some(angles) => kernels::rope(x, angles.cos.clone(), angles.sin.clone()),
                None => x,
            }
        };
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let q = self.q_proj.forward(x.clone(), &depth.q_proj);
        let q = prepare(q, heads, &self.q_norm, &depth.q_norm); // [B, T, N, H]
        let make = || {
            let k = self.k_proj.forward(x.clone(), &depth.k_proj);
            let k = prepare(k, kv_heads, &self.k_norm, &depth.k_norm); // [B, T, K, H]
            let v = self.v_proj.forward(x, &depth.v_proj); // [M, K·H]
            [k.reshape([num_rows, config.key_value_size()]), v]
        };
        let keys = |x: Tensor<2>| {
            let [rows, _] = x.dims();
            x.reshape([rows, kv_heads, config.head_dim]) // [S, K, H]
        };
        let q = q.reshape([num_rows, heads, config.head_dim]);
        let scoring = Scoring {
            scale: (1.0 / anatomy.query_pre_attn_scalar.sqrt()) as f32,
            softcap: anatomy.attn_logit_softcapping.map(|cap| cap as f32),
            window: kind.window,
        };
        let out = match own {
            Some(StepAttention::Descriptor(descriptor)) => {
                let rope = kind.rope.map(|rope| RopeFrequencies::new(&anatomy.ropes[rope]));
                let descriptors = Descriptors { config: descriptor, rope, scoring };
                let [k, v] = make().map(keys);
                match kv.into_cache() {
                    Some(cache) => descriptors.attend_cached(Projected { q, k, v }, &rows.layout, cache),
                    None => descriptors.attend(Projected { q, k, v }, &rows.layout),
                }
            }
            Some(StepAttention::None) => unreachable!("a block without attention does not run it"),
            Some(StepAttention::Sliced(slices)) => {
                let [k, v] = kv.keys_values(make).map(keys);
                attend_sliced(q, k, v, (&rows.layout, *slices), scoring)
            }
            None => {
                let [k, v] = kv.keys_values(make).map(keys);
                kernels::attention(q, k, v, &rows.layout, scoring)
            }
        }; // [M, N, H]
        out.reshape([num_rows, config.query_size()])
    }
}
