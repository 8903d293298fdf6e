//! [`KernelSet`] of the CPU: fused kernels through the backend extension, and slices where no
//! autodiff graph is involved.

use super::{FlexOps, ceiling, gated::Gate, linear, optimizer, rescale};
use crate::kernels::{
    Ceilings, ElementwiseUpdate, Head, HeadInput, HeadLoss, KernelSet, Layout, Merge, Quota, Readout, RowCopy, RowSet,
    RowsLora, Scoring, Teacher, Wave, f32_slice, f32_vec,
    head_loss::{self, Chunks, KernelValues},
    plain,
    rows::Taps,
    top_k,
};
use burn::{
    backend::Dispatch,
    tensor::{Device, FloatDType, Int, Tensor},
};
use retie_config::Activation;
use std::sync::Arc;

/// Kernels of the flex backend, with and without autodiff.
pub struct CpuKernels;

/// Rounding to bf16 and back; the gradient is rounded too.
fn rounded(x: Tensor<2>) -> Tensor<2> {
    x.cast(FloatDType::BF16).cast(FloatDType::F32)
}

impl KernelSet for CpuKernels {
    fn add(&self, x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::decoder_add(x.into_dispatch(), y.into_dispatch()))
    }

    fn embedding(&self, table: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::decoder_embedding(table.into_dispatch(), ids.into_dispatch()))
    }

    fn linear(&self, x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::decoder_linear(x.into_dispatch(), weight.into_dispatch()))
    }

    fn linear_lora(&self, x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        let (x, weight, a, b) = (x.into_dispatch(), weight.into_dispatch(), a.into_dispatch(), b.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_linear_lora(x, weight, a, b))
    }

    fn linear_loras(&self, x: Tensor<2>, weight: Tensor<2>, loras: &[RowsLora]) -> Tensor<2> {
        linear::forward_loras(x, weight, loras)
    }

    /// The sum `W + B·A` is computed again in the backward pass instead of kept.
    fn linear_merged(&self, x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        let (x, weight, a, b) = (x.into_dispatch(), weight.into_dispatch(), a.into_dispatch(), b.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_linear_merged(x, weight, a, b))
    }

    /// Rounds to bf16, but multiplies in f32.
    fn linear_in_bf16(&self, x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        rounded(self.linear(rounded(x), rounded(weight)))
    }

    fn rescale(&self, y: Tensor<2>, magnitudes: Tensor<1>, norms: Tensor<1>) -> Tensor<2> {
        let (y, magnitudes, norms) = (y.into_dispatch(), magnitudes.into_dispatch(), norms.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_rescale(y, magnitudes, norms))
    }

    fn row_norms(&self, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
        rescale::row_norms(weight, a, b)
    }

    fn activation(&self, x: Tensor<2>, kind: Activation) -> Tensor<2> {
        match kind {
            Activation::Gelu => Tensor::from_dispatch(Dispatch::decoder_gelu(x.into_dispatch())),
            kind => plain::activation(x, kind),
        }
    }

    fn gated(&self, gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
        match Gate::for_activation(activation) {
            Some(kind) => {
                Tensor::from_dispatch(Dispatch::decoder_gated(gate.into_dispatch(), up.into_dispatch(), kind))
            }
            None => self.activation(gate, activation) * up,
        }
    }

    fn waved(&self, gate: Tensor<2>, up: Tensor<2>, scalars: Tensor<1>, wave: Wave) -> Tensor<2> {
        let (gate, up, scalars) = (gate.into_dispatch(), up.into_dispatch(), scalars.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_waved(gate, up, scalars, wave))
    }

    fn add_bias(&self, x: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::decoder_add_bias(x.into_dispatch(), bias.into_dispatch()))
    }

    fn mix(&self, [x, y]: [Tensor<2>; 2], [f, g]: [Tensor<1>; 2]) -> Tensor<2> {
        let (x, y, f, g) = (x.into_dispatch(), y.into_dispatch(), f.into_dispatch(), g.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_mix(x, y, f, g))
    }

    fn depthwise(&self, x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>, taps: &[RowSet]) -> Tensor<2> {
        let taps = taps.iter().map(|rows| rows.host().clone()).collect();
        let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_depthwise(x, weight, bias, Taps::new(taps)))
    }

    /// The gated activation is recomputed in the backward pass instead of kept.
    fn gated_linear(&self, gate: Tensor<2>, up: Tensor<2>, activation: Activation, weight: Tensor<2>) -> Tensor<2> {
        match Gate::for_activation(activation) {
            Some(kind) => {
                let (gate, up, weight) = (gate.into_dispatch(), up.into_dispatch(), weight.into_dispatch());
                Tensor::from_dispatch(Dispatch::decoder_gated_linear(gate, up, kind, weight))
            }
            None => self.linear(self.gated(gate, up, activation), weight),
        }
    }

    fn gated_linear_lora(
        &self,
        gate: Tensor<2>,
        up: Tensor<2>,
        activation: Activation,
        weight: Tensor<2>,
        [a, b]: [Tensor<2>; 2],
    ) -> Tensor<2> {
        match Gate::for_activation(activation) {
            Some(kind) => {
                let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
                let (weight, a, b) = (weight.into_dispatch(), a.into_dispatch(), b.into_dispatch());
                Tensor::from_dispatch(Dispatch::decoder_gated_linear_lora(gate, up, kind, weight, a, b))
            }
            None => self.linear_lora(self.gated(gate, up, activation), weight, a, b),
        }
    }

    fn gated_linear_merged(
        &self,
        gate: Tensor<2>,
        up: Tensor<2>,
        activation: Activation,
        weight: Tensor<2>,
        [a, b]: [Tensor<2>; 2],
    ) -> Tensor<2> {
        match Gate::for_activation(activation) {
            Some(kind) => {
                let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
                let (weight, a, b) = (weight.into_dispatch(), a.into_dispatch(), b.into_dispatch());
                Tensor::from_dispatch(Dispatch::decoder_gated_linear_merged(gate, up, kind, weight, a, b))
            }
            None => self.linear_merged(self.gated(gate, up, activation), weight, a, b),
        }
    }

    fn rms_norm(&self, x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::decoder_rms_norm(x.into_dispatch(), weight.into_dispatch(), eps))
    }

    fn layer_norm(&self, x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f32) -> Tensor<2> {
        let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_layer_norm(x, weight, bias, eps))
    }

    fn rope(&self, x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
        Tensor::from_dispatch(Dispatch::decoder_rope(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()))
    }

    fn attention(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, layout: &Layout, scoring: Scoring) -> Tensor<3> {
        let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_attention(q, k, v, layout.clone(), scoring))
    }

    fn merge(&self, x: Tensor<2>, y: Tensor<2>, gate: Tensor<2>, merge: Merge) -> Tensor<2> {
        let (x, y, gate) = (x.into_dispatch(), y.into_dispatch(), gate.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_merge(x, y, gate, merge))
    }

    /// Works in place, if nothing else holds the buffer.
    fn write_rows(&self, buffer: Tensor<2>, values: Tensor<2>, copies: &Arc<[RowCopy]>) -> Tensor<2> {
        let (buffer, values) = (buffer.into_dispatch(), values.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_write(buffer, values, copies.clone()))
    }

    fn head_loss(
        &self,
        head: &Head,
        readouts: &[Readout],
        teacher: Option<&Teacher>,
        targets: &[u32],
        chunks: Chunks,
    ) -> HeadLoss<KernelValues> {
        head_loss::cpu::head_loss(head, readouts, teacher, targets, chunks)
    }

    fn token_log_probs(&self, input: &HeadInput, targets: &[u32], chunks: Chunks) -> (Vec<f32>, Vec<bool>) {
        head_loss::cpu::token_log_probs(input, targets, chunks)
    }

    fn agreement(&self, input: &HeadInput, teacher: &HeadInput, chunks: Chunks) -> (Vec<f32>, Vec<bool>) {
        head_loss::cpu::agreement(input, teacher, chunks)
    }

    fn for_each_logits(&self, input: &HeadInput, chunks: Chunks, see: &mut dyn FnMut(&[f32])) {
        head_loss::cpu::logits_of(input, chunks, see);
    }

    fn top_k(&self, active: &RowSet, logits: &Tensor<1>, quotas: &[Quota]) -> RowSet {
        top_k::on_host(active.host(), f32_slice(&logits.clone().into_data()), quotas).into()
    }

    /// The host's memory is the device's: nothing is transferred.
    fn read(&self, vectors: Vec<Tensor<1>>) -> Vec<Vec<f32>> {
        vectors.into_iter().map(|vector| f32_vec(vector.into_data())).collect()
    }

    fn accumulate(&self, sum: Tensor<1>, grad: Tensor<1>) -> Tensor<1> {
        optimizer::accumulate(sum, grad)
    }

    fn add_rows(&self, table: Tensor<2>, ids: &[u32], rows: Tensor<2>) -> Tensor<2> {
        optimizer::add_rows(table, ids, rows)
    }

    fn squared_norms(&self, vectors: &mut [&mut Tensor<1>]) -> Vec<f64> {
        vectors.iter_mut().map(|vector| optimizer::squared_norm(vector)).collect()
    }

    fn update(&self, updated: Vec<Tensor<1>>, read: Tensor<1>, step: &dyn ElementwiseUpdate) -> Vec<Tensor<1>> {
        optimizer::update(updated, read, step)
    }

    fn keeps_bf16_weights(&self) -> bool {
        true
    }

    fn has_bf16(&self, _: &Device) -> bool {
        true
    }

    fn ceilings(&self) -> Option<Ceilings> {
        Some(ceiling::ceilings())
    }
}
