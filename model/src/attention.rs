//! Self-attention of one depth: projections, QK norms, rotary embedding, KV cache and causal
//! grouped-query attention.

use crate::{
    kernels::{self, Scoring},
    kv::{KeysValues, KvSource},
    linear::{Linear, LinearAtDepth},
    norm::{Norm, chosen},
    row_context::RowContext,
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

/// Sizes, kind of depth and rows of one attention.
#[derive(Clone, Copy)]
pub(crate) struct AttentionContext<'a> {
    pub config: &'a ModelConfig,
    pub kind: DepthKind,
    pub rows: &'a RowContext,
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
        let AttentionContext { config, kind, rows } = context;
        let [num_rows, _] = x.dims();
        let anatomy = &config.anatomy;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let q = self.q_proj.forward(x.clone(), &depth.q_proj);
        let q = context.prepare(q, heads, [&self.q_norm, &depth.q_norm]); // [B, T, N, H]
        let [k, v] = kv.keys_values(|| self.keys_values(x, depth, context));
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
        let out = kernels::attention(q, keys(k), keys(v), &rows.layout, scoring); // [M, N, H]
        out.reshape([num_rows, config.query_size()])
    }

    /// Keys and values of `x [M, D]`, `[M, K·H]` each.
    pub(crate) fn keys_values(
        &self,
        x: Tensor<2>,
        depth: &AttentionAtDepth,
        context: AttentionContext<'_>,
    ) -> KeysValues {
        let ([num_rows, _], config) = (x.dims(), context.config);
        let k = self.k_proj.forward(x.clone(), &depth.k_proj);
        let k = context.prepare(k, config.num_key_value_heads, [&self.k_norm, &depth.k_norm]); // [B, T, K, H]
        let v = self.v_proj.forward(x, &depth.v_proj);
        [k.reshape([num_rows, config.key_value_size()]), v]
    }
}

impl AttentionContext<'_> {
    /// QK norm (stored, or the depth's own) and rotary embedding: `[M, heads·H]` → `[B, T, heads,
    /// H]`.
    fn prepare(self, x: Tensor<2>, heads: usize, [stored, own]: [&Option<Norm>; 2]) -> Tensor<4> {
        let Self { config, kind, rows } = self;
        let ([num_rows, _], anatomy) = (x.dims(), &config.anatomy);
        let [batch, tokens] = [rows.batch, num_rows / rows.batch];
        let split = |x: Tensor<2>| x.reshape([batch, tokens, heads, config.head_dim]);
        let x = match anatomy.qk_norm {
            None => split(x),
            Some(QkNorm::Full) => split(chosen(stored, own).forward(x, anatomy)),
            Some(QkNorm::Head) => chosen(stored, own).forward_heads(split(x), anatomy),
        };
        match kind.rope.map(|rope| &rows.angles[rope]) {
            Some(angles) => kernels::rope(x, angles.cos.clone(), angles.sin.clone()),
            None => x,
        }
    }
}
