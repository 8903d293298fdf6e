//! Self-attention of one depth: projections, rotary embedding, cache, causal attention.

use crate::{
    cache::KvSlot,
    kernels,
    linear::{Linear, LinearAtDepth},
    rope::RopeAngles,
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
    /// `x [B·T, D]` → `[B·T, D]`; with a cache, the keys and values of `x` join it and all of it is attended to.
    pub fn forward(
        &self,
        x: Tensor<2>,
        depth: &AttentionAtDepth,
        config: &ModelConfig,
        batch: usize,
        angles: &RopeAngles,
        cache: Option<KvSlot<'_>>,
    ) -> Tensor<2> {
        self.o_proj.forward(self.mix(x, depth, config, batch, angles, cache), &depth.o_proj)
    }

    /// What `o_proj` reads: `x [B·T, D]` → `[B·T, N·H]`.
    pub fn mix(
        &self,
        x: Tensor<2>,
        depth: &AttentionAtDepth,
        config: &ModelConfig,
        batch: usize,
        angles: &RopeAngles,
        cache: Option<KvSlot<'_>>,
    ) -> Tensor<2> {
        let [rows, _] = x.dims();
        let tokens = rows / batch;
        let heads = |x: Tensor<2>, count: usize| x.reshape([batch, tokens, count, config.head_dim]);
        let q = heads(self.q_proj.forward(x.clone(), &depth.q_proj), config.num_attention_heads); // [B, T, N, H]
        let k = heads(self.k_proj.forward(x.clone(), &depth.k_proj), config.num_key_value_heads); // [B, T, K, H]
        let v = heads(self.v_proj.forward(x, &depth.v_proj), config.num_key_value_heads); // [B, T, K, H]
        let q = kernels::rope(q, angles.cos.clone(), angles.sin.clone());
        let k = kernels::rope(k, angles.cos.clone(), angles.sin.clone());
        let out = match cache {
            Some(slot) => {
                let (k, v, kv_len) = slot.append(k, v);
                kernels::attention(q, k, v, kv_len)
            }
            None => kernels::attention(q, k, v, tokens),
        };
        out.reshape([rows, config.query_size()])
    }
}
