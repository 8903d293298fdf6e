//! Fused kernels of the CPU backend (flex): a burn backend extension with hand-written backward
//! passes.

mod add;
mod attention;
mod bias;
mod ceiling;
mod depthwise;
mod embedding;
mod few;
mod gated;
mod gelu;
mod graph;
mod kernels;
mod layer_norm;
mod linear;
pub(super) mod matmul;
mod merge;
mod mix;
mod optimizer;
mod readers;
mod rescale;
mod rms_norm;
mod rope;
pub(super) mod simd;
pub(super) mod tensor;
mod wave;
pub(super) mod weight;
mod write;

use super::{
    layout::{Layout, Scoring},
    rows::{Merge, RowCopy, Taps},
    wave::Wave,
};
pub(super) use kernels::CpuKernels;
pub use optimizer::sum_of_squares;

use attention::{Heads, Saved};
use burn::backend::{
    Backend, Flex, TensorMetadata, backend_extension,
    flex::FlexTensor,
    tensor::{FloatTensor, IntTensor},
};
use gated::Gate;
use linear::Mergeable;
use rope::Turn;
use std::sync::Arc;
use tensor::{dense, from_values, values, zeros_like};

#[backend_extension(Flex, Autodiff)]
pub trait FlexOps: Backend {
    fn decoder_add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self>;
    fn decoder_embedding(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self>;
    fn decoder_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    fn decoder_linear_lora(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn decoder_linear_merged(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn decoder_rescale(
        y: FloatTensor<Self>,
        magnitudes: FloatTensor<Self>,
        norms: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn decoder_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;
    fn decoder_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;
    fn decoder_gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, kind: Gate) -> FloatTensor<Self>;
    fn decoder_gated_linear(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        kind: Gate,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn decoder_gated_linear_lora(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        kind: Gate,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn decoder_gated_linear_merged(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        kind: Gate,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn decoder_waved(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        scalars: FloatTensor<Self>,
        wave: Wave,
    ) -> FloatTensor<Self>;
    fn decoder_add_bias(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    fn decoder_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn decoder_mix(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        f: FloatTensor<Self>,
        g: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn decoder_depthwise(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        taps: Taps,
    ) -> FloatTensor<Self>;
    fn decoder_rope(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
    fn decoder_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        layout: Layout,
        scoring: Scoring,
    ) -> FloatTensor<Self>;
    fn decoder_merge(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        merge: Merge,
    ) -> FloatTensor<Self>;
    fn decoder_write(buffer: FloatTensor<Self>, values: FloatTensor<Self>, runs: Arc<[RowCopy]>) -> FloatTensor<Self>;
}

fn heads(q: &FlexTensor, k: &FlexTensor, scoring: Scoring) -> Heads {
    let [_, heads, head_dim] = q.shape().dims();
    let [_, kv_heads, _] = k.shape().dims();
    Heads { heads, kv_heads, head_dim, scoring }
}

fn attention_forward(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    layout: Layout,
    scoring: Scoring,
) -> (FlexTensor, AttentionState) {
    let (q, k, v) = (dense(q), dense(k), dense(v));
    let heads = heads(&q, &k, scoring);
    let (out, log_sums) = attention::forward(values(&q), values(&k), values(&v), heads, &layout);
    let out = from_values(out, q.shape());
    let log_sums = from_values(log_sums, [layout.num_rows(), heads.heads]);
    (out.clone(), AttentionState { q, k, v, out, log_sums, layout, scoring })
}

#[derive(Clone, Debug)]
struct AttentionState {
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    out: FlexTensor,
    log_sums: FlexTensor,
    layout: Layout,
    scoring: Scoring,
}

fn rotate(x: FlexTensor, cos: &FlexTensor, sin: &FlexTensor, turn: Turn) -> FlexTensor {
    let x = dense(x);
    let [_, tokens, heads, head_dim] = x.shape().dims();
    let mut out = zeros_like(&x);
    rope::rotate(values(&x), [tokens, heads, head_dim], values(cos), values(sin), turn, &mut out);
    from_values(out, x.shape())
}

impl FlexOps for Flex {
    fn decoder_add(x: FlexTensor, y: FlexTensor) -> FlexTensor {
        let (x, y) = (dense(x), dense(y));
        from_values(add::add(values(&x), values(&y)), x.shape())
    }

    fn decoder_embedding(table: FlexTensor, ids: FlexTensor) -> FlexTensor {
        embedding::forward(table, &ids).0
    }

    fn decoder_linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        linear::forward(x, weight)
    }

    fn decoder_linear_lora(x: FlexTensor, weight: FlexTensor, a: FlexTensor, b: FlexTensor) -> FlexTensor {
        linear::forward_lora([x, weight, a, b]).0
    }

    fn decoder_linear_merged(x: FlexTensor, weight: FlexTensor, a: FlexTensor, b: FlexTensor) -> FlexTensor {
        linear::forward_merged(x, &Mergeable::new([weight, a, b]))
    }

    fn decoder_rescale(y: FlexTensor, magnitudes: FlexTensor, norms: FlexTensor) -> FlexTensor {
        rescale::forward(&dense(y), &dense(magnitudes), &dense(norms))
    }

    fn decoder_rms_norm(x: FlexTensor, weight: FlexTensor, eps: f32) -> FlexTensor {
        let (x, weight) = (dense(x), dense(weight));
        let mut out = zeros_like(&x);
        rms_norm::forward(values(&x), values(&weight), eps, &mut out);
        from_values(out, x.shape())
    }

    fn decoder_layer_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, eps: f32) -> FlexTensor {
        let (x, weight, bias) = (dense(x), dense(weight), dense(bias));
        let mut out = zeros_like(&x);
        layer_norm::forward(values(&x), values(&weight), values(&bias), eps, &mut out);
        from_values(out, x.shape())
    }

    fn decoder_gated(gate: FlexTensor, up: FlexTensor, kind: Gate) -> FlexTensor {
        gated::forward(&dense(gate), &dense(up), kind)
    }

    fn decoder_waved(gate: FlexTensor, up: FlexTensor, scalars: FlexTensor, wave: Wave) -> FlexTensor {
        wave::forward(&dense(gate), &dense(up), &dense(scalars), wave)
    }

    fn decoder_add_bias(x: FlexTensor, bias: FlexTensor) -> FlexTensor {
        bias::forward(&dense(x), &dense(bias))
    }

    fn decoder_gelu(x: FlexTensor) -> FlexTensor {
        gelu::forward(&dense(x))
    }

    fn decoder_mix(x: FlexTensor, y: FlexTensor, f: FlexTensor, g: FlexTensor) -> FlexTensor {
        mix::forward(&dense(x), &dense(y), &dense(f), &dense(g))
    }

    fn decoder_depthwise(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, taps: Taps) -> FlexTensor {
        depthwise::forward(&dense(x), &dense(weight), &dense(bias), &taps)
    }

    fn decoder_gated_linear(gate: FlexTensor, up: FlexTensor, kind: Gate, weight: FlexTensor) -> FlexTensor {
        linear::forward(gated::forward(&dense(gate), &dense(up), kind), weight)
    }

    fn decoder_gated_linear_lora(
        gate: FlexTensor,
        up: FlexTensor,
        kind: Gate,
        weight: FlexTensor,
        a: FlexTensor,
        b: FlexTensor,
    ) -> FlexTensor {
        linear::forward_lora([gated::forward(&dense(gate), &dense(up), kind), weight, a, b]).0
    }

    fn decoder_gated_linear_merged(
        gate: FlexTensor,
        up: FlexTensor,
        kind: Gate,
        weight: FlexTensor,
        a: FlexTensor,
        b: FlexTensor,
    ) -> FlexTensor {
        let x = gated::forward(&dense(gate), &dense(up), kind);
        linear::forward_merged(x, &Mergeable::new([weight, a, b]))
    }

    fn decoder_rope(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        rotate(x, &dense(cos), &dense(sin), Turn::Forward)
    }

    fn decoder_attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, layout: Layout, scoring: Scoring) -> FlexTensor {
        attention_forward(q, k, v, layout, scoring).0
    }

    fn decoder_merge(x: FlexTensor, y: FlexTensor, gate: FlexTensor, merge: Merge) -> FlexTensor {
        merge::forward(x, y, gate, merge).0
    }

    fn decoder_write(buffer: FlexTensor, values: FlexTensor, runs: Arc<[RowCopy]>) -> FlexTensor {
        write::forward(buffer, values, &runs)
    }
}

#[cfg(test)]
mod tests {
    /// Small integers: exact in bf16, and their sums exact in f32.
    pub fn counted(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7) % 11) as f32 - 5.0).collect()
    }
}
