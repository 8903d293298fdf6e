//! Device interface: the operations in which a decoder spends its time, as one trait.
//!
//! The default body of each method is plain burn and runs on every device. A backend with fused
//! kernels overrides methods; [`kernels_of`](super::kernels_of) alone asks for the backend of a
//! device.
//!
//! Shape legend: `M` rows (batch × tokens), `B` batch, `T` query tokens, `S` key tokens, `N` heads,
//! `K` kv heads, `H` head_dim, `F` mlp width, `D` hidden, `V` vocabulary.

use super::{
    capture::FixedMemory,
    head_loss::{self, Chunks, Head, HeadInput, HeadLoss, KernelValues, Readout, Teacher},
    layout::{Layout, Scoring},
    plain, reads,
    rows::{Merge, RowCopy, RowSet, RowsLora},
    top_k::{self, Quota},
    wave::{self, Wave},
};
use burn::tensor::{Device, FloatDType, IndexingUpdateOp, Int, Tensor};
use retie_config::Activation;
use std::sync::Arc;

/// Logits in memory at once, in elements: 64 MB of f32 each for student, teacher and early exit.
pub const LOGITS_IN_FLIGHT: usize = 1 << 24;

/// [`LOGITS_IN_FLIGHT`] of a GPU, most of which few rows leave idle.
pub const GPU_LOGITS_IN_FLIGHT: usize = 4 * LOGITS_IN_FLIGHT;

/// Operations of a decoder on one kind of device.
pub trait KernelSet: Sync {
    /// Residual connection `x + y`, `[M, D]` each.
    fn add(&self, x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        x + y
    }

    /// Rows of `table [V, D]` by `ids [M]` → `[M, D]`.
    fn embedding(&self, table: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
        plain::embedding(table, ids)
    }

    /// Linear `y = x·Wᵀ`: `x [M, in]`, `weight [out, in]` → `[M, out]`.
    fn linear(&self, x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        plain::linear(x, weight)
    }

    /// [`KernelSet::linear`] of the same rows with each of several weights.
    fn linears(&self, x: Tensor<2>, weights: Vec<Tensor<2>>) -> Vec<Tensor<2>> {
        weights.into_iter().map(|weight| self.linear(x.clone(), weight)).collect()
    }

    /// [`KernelSet::linear`] added to `residual [M, out]`.
    fn linear_onto(&self, x: Tensor<2>, weight: Tensor<2>, residual: Tensor<2>) -> Tensor<2> {
        self.add(residual, self.linear(x, weight))
    }

    /// [`KernelSet::gated_linear`] added to `residual [M, out]`.
    fn gated_linear_onto(
        &self,
        [gate, up]: [Tensor<2>; 2],
        activation: Activation,
        weight: Tensor<2>,
        residual: Tensor<2>,
    ) -> Tensor<2> {
        self.add(residual, self.gated_linear(gate, up, activation, weight))
    }

    /// Linear with LoRA, `y = x·Wᵀ + (x·Aᵀ)·Bᵀ`: `a [rank, in]`, `b [out, rank]`.
    fn linear_lora(&self, x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        plain::linear_lora(x, weight, a, b)
    }

    /// [`KernelSet::linear`] of all rows, with a LoRA for some of them.
    fn linear_loras(&self, x: Tensor<2>, weight: Tensor<2>, loras: &[RowsLora]) -> Tensor<2> {
        let mut y = self.linear(x.clone(), weight);
        for RowsLora { rows, a, b } in loras {
            let part = x.clone().narrow(0, rows.start, rows.len());
            let correction = self.linear(self.linear(part, a.clone()), b.clone());
            let corrected = y.clone().narrow(0, rows.start, rows.len()) + correction;
            let [_, width] = y.dims();
            y = y.slice_assign([rows.clone(), 0..width], corrected);
        }
        y
    }

    /// [`KernelSet::linear_lora`] with merged LoRA, `y = x·(W + B·A)ᵀ`.
    fn linear_merged(&self, x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        self.linear(x, weight + b.matmul(a))
    }

    /// [`KernelSet::linear`] with factors, result and their gradients in bf16.
    fn linear_in_bf16(&self, x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        plain::linear(x.cast(FloatDType::BF16), weight.cast(FloatDType::BF16)).cast(FloatDType::F32)
    }

    /// DoRA scaling `y · m / n`, column by column: `y [M, out]`; magnitudes `m`, norms `n` `[out]`.
    fn rescale(&self, y: Tensor<2>, magnitudes: Tensor<1>, norms: Tensor<1>) -> Tensor<2> {
        plain::rescale(y, magnitudes, norms)
    }

    /// DoRA norms `‖W + B A‖` by row → `[out]`; 1 for a zero row.
    fn row_norms(&self, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
        plain::row_norms(weight, a, b)
    }

    /// Activation `act(x)`, elementwise.
    fn activation(&self, x: Tensor<2>, activation: Activation) -> Tensor<2> {
        plain::activation(x, activation)
    }

    /// Gated activation `act(gate) · up`, elementwise: `[M, F]` each.
    fn gated(&self, gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
        self.activation(gate, activation) * up
    }

    /// Activation with periodic terms, `act(gate)·up`: `[M, F]` each; `scalars` as [`Wave`] says.
    fn waved(&self, gate: Tensor<2>, up: Tensor<2>, scalars: Tensor<1>, wave: Wave) -> Tensor<2> {
        wave::plain(gate, up, scalars, wave)
    }

    /// Bias of a linear, `x + b`: `x [M, D]`, `bias [D]`.
    fn add_bias(&self, x: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
        x + bias.unsqueeze()
    }

    /// Sum by factors, `f ⊙ x + g ⊙ y`: `[M, D]` each; `f`, `g` `[D]` or `[1]` each.
    fn mix(&self, [x, y]: [Tensor<2>; 2], [f, g]: [Tensor<1>; 2]) -> Tensor<2> {
        self.add(x * f.unsqueeze(), y * g.unsqueeze())
    }

    /// Depthwise convolution `b + Σ_t w_t ⊙ x[rows_t]`: `x [R, D]`, `weight [D, taps]` a filter for
    /// each channel, `bias [D]`; `taps` has for each tap the `k` rows of `x` that it reads →
    /// `[k, D]`.
    fn depthwise(&self, x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>, taps: &[RowSet]) -> Tensor<2> {
        let term = |(tap, rows): (usize, &RowSet)| {
            let filter: Tensor<2> = weight.clone().narrow(1, tap, 1).swap_dims(0, 1);
            self.gather(x.clone(), rows) * filter
        };
        taps.iter().enumerate().map(term).fold(bias.unsqueeze(), |sum, term| term + sum)
    }

    /// [`KernelSet::linear`] of a gated activation, `gated(gate, up)·Wᵀ`.
    fn gated_linear(&self, gate: Tensor<2>, up: Tensor<2>, activation: Activation, weight: Tensor<2>) -> Tensor<2> {
        self.linear(self.gated(gate, up, activation), weight)
    }

    /// [`KernelSet::linear_lora`] of a gated activation, with the factors `[A, B]`.
    fn gated_linear_lora(
        &self,
        gate: Tensor<2>,
        up: Tensor<2>,
        activation: Activation,
        weight: Tensor<2>,
        [a, b]: [Tensor<2>; 2],
    ) -> Tensor<2> {
        self.linear_lora(self.gated(gate, up, activation), weight, a, b)
    }

    /// [`KernelSet::linear_merged`] of a gated activation, with the factors `[A, B]`.
    fn gated_linear_merged(
        &self,
        gate: Tensor<2>,
        up: Tensor<2>,
        activation: Activation,
        weight: Tensor<2>,
        [a, b]: [Tensor<2>; 2],
    ) -> Tensor<2> {
        self.linear_merged(self.gated(gate, up, activation), weight, a, b)
    }

    /// RMSNorm over the last dimension: `x [M, D]`, `weight [D]`.
    fn rms_norm(&self, x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
        plain::rms_norm(x, weight, eps)
    }

    /// Whether the device has kernels for the norm of `x [M, D]` and what stands beside it in the
    /// residual stream: [`KernelSet::add_rms_norm`] and [`KernelSet::rms_norm_beside`].
    fn joins_norms(&self, _x: &Tensor<2>) -> bool {
        false
    }

    /// Residual connection `x + y`, `[M, D]` each, and its RMSNorm.
    fn add_rms_norm(&self, x: Tensor<2>, y: Tensor<2>, weight: Tensor<1>, eps: f32) -> [Tensor<2>; 2] {
        let sum = self.add(x, y);
        [sum.clone(), self.rms_norm(sum, weight, eps)]
    }

    /// `x [M, D]` itself and its RMSNorm, for a residual stream that goes on with `x`.
    fn rms_norm_beside(&self, x: Tensor<2>, weight: Tensor<1>, eps: f32) -> [Tensor<2>; 2] {
        [x.clone(), self.rms_norm(x, weight, eps)]
    }

    /// LayerNorm over the last dimension: `x [M, D]`; `weight`, `bias` `[D]`.
    fn layer_norm(&self, x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f32) -> Tensor<2> {
        plain::layer_norm(x, weight, bias, eps)
    }

    /// Rotary embedding of the first `R` channels of each head of `x [B, T, N, H]`; `cos`, `sin`
    /// are `[T, R/2]`.
    fn rope(&self, x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
        plain::rope(x, cos, sin)
    }

    /// Causal grouped-query attention: `q [M, N, H]`; `k`, `v` `[S, K, H]` → `[M, N, H]`.
    fn attention(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, layout: &Layout, scoring: Scoring) -> Tensor<3> {
        plain::attention(q, k, v, layout, scoring)
    }

    /// Whether the device has kernels for several linears as one: [`KernelSet::qkv_attention`] and
    /// [`KernelSet::gated_mlp`].
    fn joins_linears(&self) -> bool {
        false
    }

    /// The same weights `[out, in]`, where those of [joined linears](KernelSet::joins_linears) are
    /// found as one if they do not change.
    fn adjoined(&self, weights: Vec<Tensor<2>>) -> Vec<Tensor<2>> {
        weights
    }

    /// Rotary embedding and attention of the projections of `x [M, D]` → `[M, N·H]`, where the
    /// device has kernels that go from one to the other.
    fn qkv_attention(&self, _x: &Tensor<2>, _qkv: &[LinearPart; 3], _how: QkvAttention<'_>) -> Option<Tensor<2>> {
        None
    }

    /// Gated MLP of `x [M, D]` → `[M, D]`, where the device has kernels for gate and up as one.
    fn gated_mlp(
        &self,
        _x: &Tensor<2>,
        _gate_up: &[LinearPart; 2],
        _activation: Activation,
        _down: &LinearPart,
    ) -> Option<Tensor<2>> {
        None
    }

    /// Rows of `x [M, D]` by index → `[k, D]`.
    fn gather(&self, x: Tensor<2>, rows: &RowSet) -> Tensor<2> {
        let rows = rows.indices(&x.device());
        self.embedding(x, rows)
    }

    /// Top-k of each sequence: the `active` rows with the highest `logits [n]`; see
    /// [`top_k`](super::top_k).
    fn top_k(&self, active: &RowSet, logits: &Tensor<1>, quotas: &[Quota]) -> RowSet {
        top_k::on_device(active, logits, quotas)
    }

    /// Values of vectors, in one transfer: a read waits for the device.
    fn read(&self, vectors: Vec<Tensor<1>>) -> Vec<Vec<f32>> {
        reads::transfer(vectors)
    }

    /// Merge: `x [M, D]` with the rows of `merge` combined with `y [k, D]` by `gate [k, 1]`.
    fn merge(&self, x: Tensor<2>, y: Tensor<2>, gate: Tensor<2>, merge: Merge) -> Tensor<2> {
        plain::merge(x, y, gate, &merge)
    }

    /// `buffer [S, D]` with rows of `values [M, D]` copied as `copies` says.
    fn write_rows(&self, buffer: Tensor<2>, values: Tensor<2>, copies: &Arc<[RowCopy]>) -> Tensor<2> {
        plain::write_rows(buffer, &values, copies)
    }

    /// [`KernelSet::write_rows`] of keys and of values, `[S, D]` and `[M, D]` each. Devices that
    /// capture work write in place, whoever else holds the buffers.
    fn write_keys_values(
        &self,
        [keys, values]: [Tensor<2>; 2],
        [k, v]: [Tensor<2>; 2],
        copies: &Arc<[RowCopy]>,
    ) -> [Tensor<2>; 2] {
        [self.write_rows(keys, k, copies), self.write_rows(values, v, copies)]
    }

    /// [`KernelSet::write_keys_values`] of row `m` to row `at[m]`, which the device may have alone.
    fn write_keys_values_at(&self, buffers: [Tensor<2>; 2], rows: [Tensor<2>; 2], at: &RowSet) -> [Tensor<2>; 2] {
        let copies = at.host().iter().enumerate().map(|(row, at)| RowCopy { rows: row..row + 1, at: *at });
        self.write_keys_values(buffers, rows, &copies.collect())
    }

    /// Memory of the device, if it captures work.
    fn fixed_memory(&self) -> Option<&'static dyn FixedMemory> {
        None
    }

    /// Values and gradients of the losses at the head.
    fn head_loss(
        &self,
        head: &Head,
        readouts: &[Readout],
        teacher: Option<&Teacher>,
        targets: &[u32],
        chunks: Chunks,
    ) -> HeadLoss<KernelValues> {
        head_loss::plain::head_loss(head, readouts, teacher, targets, chunks)
    }

    /// Log-probability of each target, and whether it is the most probable token.
    fn token_log_probs(&self, input: &HeadInput, targets: &[u32], chunks: Chunks) -> (Vec<f32>, Vec<bool>) {
        head_loss::plain::token_log_probs(input, targets, chunks)
    }

    /// Forward KL from the teacher and top-1 agreement, row by row.
    fn agreement(&self, input: &HeadInput, teacher: &HeadInput, chunks: Chunks) -> (Vec<f32>, Vec<bool>) {
        head_loss::plain::agreement(input, teacher, chunks)
    }

    /// Calls `see` with the logits of each chunk in turn.
    fn for_each_logits(&self, input: &HeadInput, chunks: Chunks, see: &mut dyn FnMut(&[f32])) {
        head_loss::plain::logits_of(input, chunks, see);
    }

    /// Logits in memory at once, in elements.
    fn logits_in_flight(&self) -> usize {
        LOGITS_IN_FLIGHT
    }

    /// Start of a backward pass at `x [M, D]` with a given gradient: a number whose gradient for
    /// `x` is `grad`, as that of `Σ x·grad`. The number itself means nothing.
    fn inject(&self, x: Tensor<2>, grad: Tensor<2>) -> Tensor<1> {
        (x * Tensor::from_inner(grad)).sum()
    }

    /// Gradient accumulation `sum + grad`, `[n]` each.
    fn accumulate(&self, sum: Tensor<1>, grad: Tensor<1>) -> Tensor<1> {
        sum + grad
    }

    /// Gradient of an embedding table: `table[ids[m]] += rows[m]`, table `[V, D]`, ids `[M]`, rows
    /// `[M, D]`.
    fn add_rows(&self, table: Tensor<2>, ids: &[u32], rows: Tensor<2>) -> Tensor<2> {
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &table.device());
        table.select_assign(0, ids, rows, IndexingUpdateOp::Add)
    }

    /// `Σ x²` of each vector, with one read from the device for all.
    fn squared_norms(&self, vectors: &mut [&mut Tensor<1>]) -> Vec<f64> {
        let sums = vectors.iter().map(|x| (**x).clone().square().sum()).collect();
        self.read(sums).into_iter().flatten().map(f64::from).collect()
    }

    /// Optimizer step in one pass: updates the vectors `updated` and reads the vector `read`, `[n]`
    /// each.
    fn update(&self, updated: Vec<Tensor<1>>, read: Tensor<1>, step: &dyn ElementwiseUpdate) -> Vec<Tensor<1>> {
        step.tensors(updated, read)
    }

    /// Step of AdamW: `value`, `grad` and the running means of gradients and of their squares,
    /// `[n]` each → value and means.
    fn adamw(&self, value: Tensor<1>, grad: Tensor<1>, means: [Tensor<1>; 2], step: AdamWStep) -> [Tensor<1>; 3] {
        plain::adamw(value, grad, means, step)
    }

    /// Runs `f`, whose updates by [`KernelSet::adamw`] may be made when it ends: nothing may read
    /// their results before.
    fn updates_together(&self, f: &mut dyn FnMut()) {
        f();
    }

    /// True if matrices that are stored in bf16 stay bf16 in memory, with f32 sums.
    fn keeps_bf16_weights(&self) -> bool {
        false
    }

    /// True if `device` supports products in bf16.
    fn has_bf16(&self, device: &Device) -> bool {
        device.supports_dtype(FloatDType::BF16)
    }

    /// Measured limits of the machine, if the backend can measure them; takes about a second.
    fn ceilings(&self) -> Option<Ceilings> {
        None
    }
}

/// A linear that is nothing but a product: its weight `[out, in]`, and the factors `[A, B]` of LoRA
/// that is merged into it.
#[derive(Clone, Debug)]
pub struct LinearPart {
    /// `W`.
    pub weight: Tensor<2>,
    /// `A [rank, in]` and `B [out, rank]`.
    pub lora: Option<[Tensor<2>; 2]>,
}

/// How queries, keys and values attend.
#[derive(Clone, Copy, Debug)]
pub struct QkvAttention<'a> {
    /// Heads of queries, and of keys and values.
    pub heads: [usize; 2],
    /// Cosines and sines of the rotary embedding, `[T, R/2]`.
    pub angles: [&'a Tensor<2>; 2],
    /// Sequences.
    pub layout: &'a Layout,
    /// Score of a query and a key.
    pub scoring: Scoring,
}

/// What the elements of a parameter have in common in a step of AdamW.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// Part of the mean of the gradients that is kept.
    pub beta1: f32,
    /// Part of the mean of their squares that is kept.
    pub beta2: f32,
    /// Addend of the root of the mean of the squares.
    pub eps: f32,
    /// `lr / (1 − β₁ᵗ)`.
    pub step_size: f32,
    /// `1 / √(1 − β₂ᵗ)`.
    pub inverse_root: f32,
    /// `1 − lr · weight_decay`, or 1.
    pub keep: f32,
    /// Clipping factor of the gradient.
    pub clip: f32,
}

/// Elementwise update of vectors, in two forms that give the same numbers.
pub trait ElementwiseUpdate: Sync {
    /// In-place form, on slices of equal length.
    fn slices(&self, updated: &mut [&mut [f32]], read: &[f32]);

    /// Form in plain burn; returns the updated vectors in the same order.
    fn tensors(&self, updated: Vec<Tensor<1>>, read: Tensor<1>) -> Vec<Tensor<1>>;
}

/// Hardware limits to compare the kernels' speed with.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Floating-point operations per second of f32 multiply-adds in registers.
    pub flops_per_second: f64,
    /// Bytes per second of reads from memory, beyond the caches.
    pub bytes_per_second: f64,
}

/// Plain burn, for devices without fused kernels.
pub(super) struct PlainKernels;

impl KernelSet for PlainKernels {}
