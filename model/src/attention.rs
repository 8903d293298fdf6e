//! Self-attention of one depth: projections, rotary embedding, cache, causal attention.

use crate::{
    cache::KvSlot,
    causal_lm::Rows,
    kernels,
    linear::{Linear, LinearAtDepth},
};
use burn::{module::Module, tensor::Tensor};
use retie_config::ModelConfig;

/// Linears of a stored layer.
#[derive(Module, Debug)]
pub struct Attention {
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Linear,
}

/// What one depth adds to them.
#[derive(Module, Debug)]
pub struct AttentionAtDepth {
    pub q_proj: LinearAtDepth,
    pub k_proj: LinearAtDepth,
    pub v_proj: LinearAtDepth,
    pub o_proj: LinearAtDepth,
}

impl Attention {
    /// `x [M, D]` → `[M, D]`; with a cache, the keys and values of `x` join it and all of it is attended to.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        depth: &AttentionAtDepth,
        config: &ModelConfig,
        rows: &Rows,
        cache: Option<KvSlot<'_>>,
    ) -> Tensor<2> {
        self.o_proj.forward(self.mix(x, depth, config, rows, cache), &depth.o_proj)
    }

    /// What `o_proj` reads: `x [M, D]` → `[M, N·H]`.
    pub(crate) fn mix(
        &self,
        x: Tensor<2>,
        depth: &AttentionAtDepth,
        config: &ModelConfig,
        rows: &Rows,
        cache: Option<KvSlot<'_>>,
    ) -> Tensor<2> {
        let [num_rows, _] = x.dims();
        let [batch, tokens] = [rows.batch, num_rows / rows.batch];
        let (heads, kv_heads, head_dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let split = |x: Tensor<2>, heads: usize| x.reshape([batch, tokens, heads, head_dim]);
        let rotate = |x: Tensor<4>| kernels::rope(x, rows.angles.cos.clone(), rows.angles.sin.clone());
        let q = rotate(split(self.q_proj.forward(x.clone(), &depth.q_proj), heads)); // [B, T, N, H]
        let k = rotate(split(self.k_proj.forward(x.clone(), &depth.k_proj), kv_heads)); // [B, T, K, H]
        let v = split(self.v_proj.forward(x, &depth.v_proj), kv_heads); // [B, T, K, H]
        let [k, v] = match cache {
            Some(slot) => slot.append(k, v),
            None => [k, v],
        };
        let flat = |x: Tensor<4>| {
            let [batch, rows, heads, head_dim] = x.dims();
            x.reshape([batch * rows, heads, head_dim])
        };
        let out = kernels::attention(flat(q), flat(k), flat(v), &rows.layout); // [M, N, H]
        out.reshape([num_rows, config.query_size()])
    }
}
