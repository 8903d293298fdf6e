//! Self-attention of one depth: projections, QK norms, rotary embedding, KV cache and causal
//! grouped-query attention.

use crate::{
    at_depths::AtDepths,
    kernels::{self, Layout, QkvAttention, RowSet, Scoring},
    kv::{KeysValues, KvSource},
    linear::{Linear, LinearAtDepth, forward_together},
    norm::{Norm, normalised},
    rope::RopeFrequencies,
    row_context::RowContext,
    steps::{Descriptors, Generalised, Projected, Rg, StepAttention, attend_sliced},
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
    /// Filters of the latents, if it attends to such.
    pub filters: Option<&'a Rg>,
}

impl Attention {
    /// Attention output before `o_proj`: `x [M, D]` → `[M, N·H]`. `kv` is the source of keys and
    /// values.
    pub(crate) fn mix(
        &self,
        x: Tensor<2>,
        depth: &AtDepths<'_, AttentionAtDepth>,
        context: AttentionContext<'_>,
        kv: KvSource<'_>,
    ) -> Tensor<2> {
        let AttentionContext { config, kind, rows, own, filters } = context;
        let [num_rows, _] = x.dims();
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        if let Some(out) = self.fused(&x, depth, context, &kv) {
            return out;
        }
        let q_proj = (&self.q_proj, depth.part(|depth| &depth.q_proj));
        let bounded = matches!(own, Some(StepAttention::Descriptor(_) | StepAttention::Rg(_)));
        let needs_all = bounded || kv.is_made_of(num_rows);
        let (q, made) = if needs_all {
            let [k_proj, v_proj] = self.kv_proj(depth);
            let [q, k, v] = forward_together(x.clone(), [q_proj, k_proj, v_proj]);
            (q, Some([k, v]))
        } else {
            let [q] = forward_together(x.clone(), [q_proj]);
            (q, None)
        };
        let q = context.prepare(q, heads, &self.q_norm, &depth.part(|depth| &depth.q_norm)); // [B, T, N, H]
        let make = || match made {
            Some(kv) => self.prepared(kv, depth, context),
            None => unreachable!("keys and values are made where their source asks for those of all rows"),
        };
        let keys = |x: Tensor<2>| {
            let [rows, _] = x.dims();
            x.reshape([rows, kv_heads, config.head_dim]) // [S, K, H]
        };
        let q = q.reshape([num_rows, heads, config.head_dim]);
        let scoring = context.scoring();
        let attend = |q: Tensor<3>, [k, v]: KeysValues, layout: &Layout| {
            kernels::attention(q, keys(k), keys(v), layout, scoring) // [M, N, H]
        };
        let rope = || kind.rope.map(|rope| RopeFrequencies::new(&config.anatomy.ropes[rope]));
        let out = match (own, kv) {
            (Some(StepAttention::Descriptor(descriptor)), kv) => {
                let descriptors = Descriptors { config: descriptor, rope: rope(), scoring };
                let [k, v] = make().map(keys);
                match kv.into_cache() {
                    Some(cache) => descriptors.attend_cached(Projected { q, k, v }, &rows.layout, cache),
                    None => descriptors.attend(Projected { q, k, v }, &rows.layout),
                }
            }
            (Some(StepAttention::Rg(rg)), kv) => {
                let Some(filters) = filters else { unreachable!("latents have filters, which are loaded with them") };
                let generalised = Generalised { config: rg, filters, rope: rope(), scoring };
                let [k, v] = make().map(keys);
                match kv.into_cache() {
                    Some(cache) => generalised.attend_cached(Projected { q, k, v }, &rows.layout, cache),
                    None => generalised.attend(Projected { q, k, v }, &rows.layout),
                }
            }
            (Some(StepAttention::None), _) => unreachable!("a block without attention does not run it"),
            (Some(StepAttention::Sliced(slices)), kv) => {
                let [k, v] = kv.keys_values(make).map(keys);
                attend_sliced(q, k, v, (&rows.layout, *slices), scoring)
            }
            (None, KvSource::OfDepths(caches)) => {
                let made = match caches.num_computed() {
                    0 => None,
                    all if all == num_rows => Some(make()),
                    some => Some(self.first_keys_values(x, some, depth, context)),
                };
                caches.attend(q, made, attend)
            }
            (None, kv) => attend(q, kv.keys_values(make), &rows.layout),
        }; // [M, N, H]
        out.reshape([num_rows, config.query_size()])
    }

    /// [`Attention::mix`] in the kernels of the device from projections to attention, where it has
    /// such and nothing comes between.
    fn fused(
        &self,
        x: &Tensor<2>,
        depth: &AtDepths<'_, AttentionAtDepth>,
        context: AttentionContext<'_>,
        kv: &KvSource<'_>,
    ) -> Option<Tensor<2>> {
        let AttentionContext { config, kind, rows, own, .. } = context;
        let joins = kernels::joins_linears(&x.device());
        if !joins || own.is_some() || !kv.is_own() || config.anatomy.qk_norm.is_some() {
            return None;
        }
        let angles = &rows.angles[kind.rope?];
        let [num_rows, _] = x.dims();
        let qkv = [
            self.q_proj.part(&depth.part(|depth| &depth.q_proj), num_rows)?,
            self.k_proj.part(&depth.part(|depth| &depth.k_proj), num_rows)?,
            self.v_proj.part(&depth.part(|depth| &depth.v_proj), num_rows)?,
        ];
        let how = QkvAttention {
            heads: [config.num_attention_heads, config.num_key_value_heads],
            angles: [&angles.cos, &angles.sin],
            layout: &rows.layout,
            scoring: context.scoring(),
        };
        kernels::qkv_attention(x, &qkv, how)
    }

    /// Keys and values of `x [M, D]`, `[M, K·H]` each.
    pub(crate) fn keys_values(
        &self,
        x: Tensor<2>,
        depth: &AtDepths<'_, AttentionAtDepth>,
        context: AttentionContext<'_>,
    ) -> KeysValues {
        let kv = forward_together(x, self.kv_proj(depth));
        self.prepared(kv, depth, context)
    }

    fn kv_proj<'a>(&'a self, depth: &AtDepths<'a, AttentionAtDepth>) -> [(&'a Linear, AtDepths<'a, LinearAtDepth>); 2] {
        let (k, v) = (depth.part(|depth| &depth.k_proj), depth.part(|depth| &depth.v_proj));
        [(&self.k_proj, k), (&self.v_proj, v)]
    }

    /// Keys with QK norm and rotary embedding, and values, from the projections of both.
    fn prepared(
        &self,
        [k, v]: KeysValues,
        depth: &AtDepths<'_, AttentionAtDepth>,
        context: AttentionContext<'_>,
    ) -> KeysValues {
        let ([num_rows, _], config) = (k.dims(), context.config);
        let own = depth.part(|depth| &depth.k_norm);
        let k = context.prepare(k, config.num_key_value_heads, &self.k_norm, &own); // [B, T, K, H]
        [k.reshape([num_rows, config.key_value_size()]), v]
    }

    /// Keys and values of the first `rows` of `x [M, D]`, which are those of the first depth.
    fn first_keys_values(
        &self,
        x: Tensor<2>,
        rows: usize,
        depth: &AtDepths<'_, AttentionAtDepth>,
        context: AttentionContext<'_>,
    ) -> KeysValues {
        let first: RowSet = (0..rows).collect();
        // The layout is not read: keys and values depend on positions alone.
        let of_first = context.rows.only(&first, Layout::batch(1, rows));
        let context = AttentionContext { rows: &of_first, ..context };
        self.keys_values(x.narrow(0, 0, rows), &depth.first(), context)
    }
}

impl AttentionContext<'_> {
    fn scoring(self) -> Scoring {
        let anatomy = &self.config.anatomy;
        Scoring {
            scale: (1.0 / anatomy.query_pre_attn_scalar.sqrt()) as f32,
            softcap: anatomy.attn_logit_softcapping.map(|cap| cap as f32),
            window: self.kind.window,
        }
    }

    /// QK norm (stored, or the depth's own) and rotary embedding: `[M, heads·H]` → `[B, T, heads,
    /// H]`.
    fn prepare(self, x: Tensor<2>, heads: usize, stored: &Option<Norm>, own: &AtDepths<'_, Option<Norm>>) -> Tensor<4> {
        let Self { config, kind, rows, .. } = self;
        let ([num_rows, _], anatomy) = (x.dims(), &config.anatomy);
        let x = match anatomy.qk_norm {
            None => x,
            Some(QkNorm::Full) => normalised(x, stored, own, |norm, x| norm.forward(x, anatomy)),
            Some(QkNorm::Head) => normalised(x, stored, own, |norm, x| norm.forward_heads(x, config.head_dim, anatomy)),
        };
        let x = x.reshape([rows.batch, num_rows / rows.batch, heads, config.head_dim]);
        match kind.rope.map(|rope| &rows.angles[rope]) {
            Some(angles) => kernels::rope(x, angles.cos.clone(), angles.sin.clone()),
            None => x,
        }
    }
}
