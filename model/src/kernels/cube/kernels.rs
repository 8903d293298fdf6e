//! [`KernelSet`] of the backends of CubeCL: fused kernels through the backend extension. What is
//! not f32, or has a layout of its own, is plain burn.

use super::{
    adamw, embedding, few, head,
    launch::{int_on_device, int_tensor, on_device, tensor},
    memory::CubeMemory,
    operations::CubeOps,
    parts, top_k,
    write::{self, Targets},
};
use crate::kernels::{
    AdamWStep, FixedMemory, GPU_LOGITS_IN_FLIGHT, Head, HeadLoss, KernelSet, Layout, LinearPart, Merge, QkvAttention,
    Quota, Readout, RowCopy, RowSet, Scoring, Teacher,
    head_loss::{self, Chunks, KernelValues},
    plain, rows,
};
use burn::{
    backend::{CubeDevice, Dispatch, DispatchTensor},
    tensor::{DType, Int, Tensor},
};
use retie_config::Activation;
use std::sync::Arc;

/// Kernels of a device of CubeCL.
pub fn kernels_of(_: &CubeDevice) -> &'static dyn KernelSet {
    &CubeKernels
}

struct CubeKernels;

/// `x [M, in]` by several weights, whose results stand beside one another, `[M, Σ out]`; `None`
/// where some have LoRA and others not.
fn joined(x: &Tensor<2>, parts: &[LinearPart]) -> Option<DispatchTensor> {
    if !is_f32(x) || !parts.iter().all(|part| is_f32(&part.weight)) {
        return None;
    }
    let plain: Vec<_> = parts.iter().filter(|part| part.lora.is_none()).collect();
    let merged = parts.iter().filter_map(|part| {
        let [a, b] = part.lora.clone()?;
        Some([part.weight.clone(), a, b].map(Tensor::into_dispatch))
    });
    let merged: Vec<_> = merged.collect();
    let (x, weight) = (x.clone().into_dispatch(), |part: &LinearPart| part.weight.clone().into_dispatch());
    match (plain.as_slice(), merged.len()) {
        ([w0, w1], 0) => Some(Dispatch::cube_linear2(x, weight(w0), weight(w1))),
        ([w0, w1, w2], 0) => Some(Dispatch::cube_linear3(x, weight(w0), weight(w1), weight(w2))),
        ([], 2) => {
            let [[w0, a0, b0], [w1, a1, b1]] = <[_; 2]>::try_from(merged).ok()?;
            Some(Dispatch::cube_linear2_merged(x, w0, a0, b0, w1, a1, b1))
        }
        ([], 3) => {
            let [[w0, a0, b0], [w1, a1, b1], [w2, a2, b2]] = <[_; 3]>::try_from(merged).ok()?;
            Some(Dispatch::cube_linear3_merged(x, w0, a0, b0, w1, a1, b1, w2, a2, b2))
        }
        _ => None,
    }
}

fn is_f32<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32
}

fn has_no_graph(x: &Tensor<2>) -> bool {
    is_f32(x) && !x.device().is_autodiff()
}

/// Whether `x [M, in]` has few rows and no graph, as in decoding.
fn is_few(x: &Tensor<2>) -> bool {
    let [rows, _] = x.dims();
    rows <= few::MOST_ROWS && has_no_graph(x)
}

/// Attention of sequences of unequal lengths, as one over sequences of the longest length; `None`
/// where that is not worth it.
fn padded_attention(qkv: [&Tensor<3>; 3], layout: &Layout, scoring: Scoring) -> Option<Tensor<3>> {
    let padded = layout.padded_rows()?;
    let [q, k, _] = qkv;
    let ([rows, heads, head_dim], [keys, _, _]) = (q.dims(), k.dims());
    if keys != rows || !qkv.into_iter().all(is_f32) {
        return None;
    }
    let [to, from] = padded.indices(&q.device().inner()).map(Tensor::into_dispatch);
    let grid = padded.grid;
    let padded_rows = grid.batch * grid.tokens;
    let [q, k, v] = qkv.map(|x| {
        let [_, heads, _] = x.dims();
        let x = x.clone().reshape([rows, heads * head_dim]).into_dispatch();
        let x = Tensor::<2>::from_dispatch(Dispatch::cube_arrange(x, to.clone(), from.clone()));
        x.reshape([padded_rows, heads, head_dim]).into_dispatch()
    });
    let out = Tensor::<3>::from_dispatch(Dispatch::cube_attention(q, k, v, grid, scoring));
    let out = out.reshape([padded_rows, heads * head_dim]).into_dispatch();
    Some(Tensor::<2>::from_dispatch(Dispatch::cube_arrange(out, from, to)).reshape([rows, heads, head_dim]))
}

impl KernelSet for CubeKernels {
    fn linear(&self, x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        if !(is_f32(&x) && is_f32(&weight)) {
            return plain::linear(x, weight);
        }
        if is_few(&x) && has_no_graph(&weight) {
            return tensor(few::products(on_device(x), vec![on_device(weight)]).remove(0));
        }
        Tensor::from_dispatch(Dispatch::cube_linear(x.into_dispatch(), weight.into_dispatch()))
    }

    fn linears(&self, x: Tensor<2>, weights: Vec<Tensor<2>>) -> Vec<Tensor<2>> {
        if !is_few(&x) || !weights.iter().all(has_no_graph) {
            return weights.into_iter().map(|weight| self.linear(x.clone(), weight)).collect();
        }
        few::products(on_device(x), weights.into_iter().map(on_device).collect()).into_iter().map(tensor).collect()
    }

    fn linear_onto(&self, x: Tensor<2>, weight: Tensor<2>, residual: Tensor<2>) -> Tensor<2> {
        if !is_few(&x) || !has_no_graph(&weight) || !has_no_graph(&residual) {
            return residual + self.linear(x, weight);
        }
        tensor(few::onto(on_device(x), on_device(weight), on_device(residual)))
    }

    fn gated_linear_onto(
        &self,
        [gate, up]: [Tensor<2>; 2],
        activation: Activation,
        weight: Tensor<2>,
        residual: Tensor<2>,
    ) -> Tensor<2> {
        if !is_few(&gate) || ![&up, &weight, &residual].into_iter().all(has_no_graph) {
            return residual + self.gated_linear(gate, up, activation, weight);
        }
        let gated = [on_device(gate), on_device(up)];
        tensor(few::gated_onto(gated, activation, on_device(weight), on_device(residual)))
    }

    fn linear_lora(&self, x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        self.linear(x.clone(), weight) + self.linear(self.linear(x, a), b)
    }

    fn linear_merged(&self, x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        let (x, weight, a, b) = (x.into_dispatch(), weight.into_dispatch(), a.into_dispatch(), b.into_dispatch());
        Tensor::from_dispatch(Dispatch::cube_linear_merged(x, weight, a, b))
    }

    fn gated(&self, gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::cube_gated(gate.into_dispatch(), up.into_dispatch(), activation))
    }

    /// The gated activation is computed again in the backward pass instead of kept.
    fn gated_linear(&self, gate: Tensor<2>, up: Tensor<2>, activation: Activation, weight: Tensor<2>) -> Tensor<2> {
        if !is_f32(&weight) {
            return plain::linear(self.gated(gate, up, activation), weight);
        }
        let (gate, up, weight) = (gate.into_dispatch(), up.into_dispatch(), weight.into_dispatch());
        Tensor::from_dispatch(Dispatch::cube_gated_linear(gate, up, activation, weight))
    }

    fn gated_linear_merged(
        &self,
        gate: Tensor<2>,
        up: Tensor<2>,
        activation: Activation,
        weight: Tensor<2>,
        [a, b]: [Tensor<2>; 2],
    ) -> Tensor<2> {
        let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
        let (weight, a, b) = (weight.into_dispatch(), a.into_dispatch(), b.into_dispatch());
        Tensor::from_dispatch(Dispatch::cube_gated_linear_merged(gate, up, activation, weight, a, b))
    }

    fn rms_norm(&self, x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::cube_rms_norm(x.into_dispatch(), weight.into_dispatch(), eps))
    }

    fn joins_norms(&self, x: &Tensor<2>) -> bool {
        is_f32(x) && !is_few(x)
    }

    fn add_rms_norm(&self, x: Tensor<2>, y: Tensor<2>, weight: Tensor<1>, eps: f32) -> [Tensor<2>; 2] {
        let (x, y, weight) = (x.into_dispatch(), y.into_dispatch(), weight.into_dispatch());
        let (sum, normed) = Dispatch::cube_add_rms_norm(x, y, weight, eps);
        [sum, normed].map(Tensor::from_dispatch)
    }

    fn rms_norm_beside(&self, x: Tensor<2>, weight: Tensor<1>, eps: f32) -> [Tensor<2>; 2] {
        let (x, normed) = Dispatch::cube_rms_norm_beside(x.into_dispatch(), weight.into_dispatch(), eps);
        [x, normed].map(Tensor::from_dispatch)
    }

    fn rope(&self, x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
        Tensor::from_dispatch(Dispatch::cube_rope(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()))
    }

    fn attention(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, layout: &Layout, scoring: Scoring) -> Tensor<3> {
        let packed = layout.packed_rows();
        let Some(grid) = layout.grid().or(packed.map(|packed| packed.grid)) else {
            return padded_attention([&q, &k, &v], layout, scoring)
                .unwrap_or_else(|| plain::attention(q, k, v, layout, scoring));
        };
        let [num_keys, _, _] = k.dims();
        // Keys of a cache have no gradient here.
        if q.device().is_autodiff() && num_keys != grid.batch * grid.tokens {
            return plain::attention(q, k, v, layout, scoring);
        }
        let device = q.device().inner();
        let bounds = match packed {
            Some(packed) => Some(packed.first(&device)),
            None => layout.own_keys().map(|own| own.indices(&device)),
        };
        let bounds = bounds.map(|bounds| bounds.reshape([grid.batch, grid.tokens]));
        let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
        Tensor::from_dispatch(match bounds {
            Some(bounds) => {
                Dispatch::cube_attention_within(q, k, v, bounds.into_dispatch(), packed.is_none(), grid, scoring)
            }
            None => Dispatch::cube_attention(q, k, v, grid, scoring),
        })
    }

    fn joins_linears(&self) -> bool {
        true
    }

    fn adjoined(&self, weights: Vec<Tensor<2>>) -> Vec<Tensor<2>> {
        if !weights.iter().all(has_no_graph) {
            return weights;
        }
        parts::adjoined(weights.into_iter().map(on_device).collect()).into_iter().map(tensor).collect()
    }

    fn qkv_attention(&self, x: &Tensor<2>, qkv: &[LinearPart; 3], how: QkvAttention<'_>) -> Option<Tensor<2>> {
        let QkvAttention { heads, angles: [cos, sin], layout, scoring } = how;
        let packed = layout.packed_rows();
        let grid = layout.grid().or(packed.map(|packed| packed.grid))?;
        let [rows, _] = x.dims();
        if is_few(x)
            || layout.own_keys().is_some()
            || grid.batch * grid.capacity != rows
            || grid.tokens != grid.capacity
        {
            return None;
        }
        let first = packed.map(|packed| packed.first(&x.device().inner()).reshape([grid.batch, grid.tokens]));
        let qkv = joined(x, qkv)?;
        let (cos, sin) = (cos.clone().into_dispatch(), sin.clone().into_dispatch());
        Some(Tensor::from_dispatch(match first {
            Some(first) => {
                Dispatch::cube_attention_of_packed_qkv(qkv, cos, sin, first.into_dispatch(), heads, grid, scoring)
            }
            None => Dispatch::cube_attention_of_qkv(qkv, cos, sin, heads, grid, scoring),
        }))
    }

    fn gated_mlp(
        &self,
        x: &Tensor<2>,
        gate_up: &[LinearPart; 2],
        activation: Activation,
        down: &LinearPart,
    ) -> Option<Tensor<2>> {
        let LinearPart { weight, lora } = down;
        if is_few(x) || !is_f32(weight) {
            return None;
        }
        let gate_up = joined(x, gate_up)?;
        let weight = weight.clone().into_dispatch();
        Some(Tensor::from_dispatch(match lora.clone().map(|lora| lora.map(Tensor::into_dispatch)) {
            Some([a, b]) => Dispatch::cube_gated_halves_merged(gate_up, activation, weight, a, b),
            None => Dispatch::cube_gated_halves(gate_up, activation, weight),
        }))
    }

    /// The sum is not computed.
    fn inject(&self, x: Tensor<2>, grad: Tensor<2>) -> Tensor<1> {
        Tensor::from_dispatch(Dispatch::cube_inject(x.into_dispatch(), Tensor::from_inner(grad).into_dispatch()))
    }

    fn gather(&self, x: Tensor<2>, rows: &RowSet) -> Tensor<2> {
        let device = x.device();
        if !is_f32(&x) || !rows.is_ascending() {
            return self.embedding(x, rows.indices(&device));
        }
        let rows = rows.indices(&device.inner()).into_dispatch();
        Tensor::from_dispatch(Dispatch::cube_gather(x.into_dispatch(), rows))
    }

    fn top_k(&self, active: &RowSet, logits: &Tensor<1>, quotas: &[Quota]) -> RowSet {
        let device = logits.device();
        let (numbers, selected) = top_k::quotas(quotas);
        let numbers = Tensor::<1, Int>::from_ints(numbers.as_slice(), &device);
        let active = int_on_device(active.indices(&device));
        let logits = on_device(logits.clone());
        let [rows, among_active] = top_k::top_k(logits, active, int_on_device(numbers), selected).map(int_tensor);
        RowSet::on_device(rows, among_active, quotas.iter().map(|quota| quota.selected).collect())
    }

    fn merge(&self, x: Tensor<2>, y: Tensor<2>, gate: Tensor<2>, merge: Merge) -> Tensor<2> {
        if ![&x, &y, &gate].into_iter().all(is_f32) {
            return plain::merge(x, y, gate, &merge);
        }
        let (device, [num_rows, _]) = (x.device().inner(), x.dims());
        let rows = match merge.rows.len() == num_rows {
            // They are not read.
            true => rows::upload(&[0], &device),
            false => merge.rows.indices(&device),
        };
        let (x, y, gate) = (x.into_dispatch(), y.into_dispatch(), gate.into_dispatch());
        Tensor::from_dispatch(Dispatch::cube_merge(x, y, gate, rows.into_dispatch(), merge.gating))
    }

    fn write_keys_values(
        &self,
        buffers: [Tensor<2>; 2],
        rows: [Tensor<2>; 2],
        copies: &Arc<[RowCopy]>,
    ) -> [Tensor<2>; 2] {
        let [num_rows, _] = rows[0].dims();
        if !buffers.iter().chain(&rows).all(has_no_graph) {
            let ([keys, values], [k, v]) = (buffers, rows);
            return [plain::write_rows(keys, &k, copies), plain::write_rows(values, &v, copies)];
        }
        let targets = match &**copies {
            [] => return buffers,
            [RowCopy { rows, at }] => Targets::Run { from: rows.start, rows: rows.len(), to: *at },
            copies => {
                let mut targets = vec![-1; num_rows];
                for RowCopy { rows, at } in copies {
                    rows.clone().zip(*at..).for_each(|(row, at)| targets[row] = at as i32);
                }
                Targets::Rows(int_on_device(Tensor::<1, Int>::from_ints(targets.as_slice(), &rows[0].device())))
            }
        };
        write::write(buffers.map(on_device), rows.map(on_device), targets).map(tensor)
    }

    fn write_keys_values_at(&self, buffers: [Tensor<2>; 2], rows: [Tensor<2>; 2], at: &RowSet) -> [Tensor<2>; 2] {
        let targets = Targets::Rows(int_on_device(at.indices(&buffers[0].device())));
        write::write(buffers.map(on_device), rows.map(on_device), targets).map(tensor)
    }

    fn fixed_memory(&self) -> Option<&'static dyn FixedMemory> {
        Some(&CubeMemory)
    }

    fn head_loss(
        &self,
        head: &Head,
        readouts: &[Readout],
        teacher: Option<&Teacher>,
        targets: &[u32],
        chunks: Chunks,
    ) -> HeadLoss<KernelValues> {
        if !is_f32(&head.weight) {
            return head_loss::plain::head_loss(head, readouts, teacher, targets, chunks);
        }
        head::head_loss(head, readouts, teacher, targets, chunks)
    }

    fn logits_in_flight(&self) -> usize {
        GPU_LOGITS_IN_FLIGHT
    }

    fn add_rows(&self, table: Tensor<2>, ids: &[u32], rows: Tensor<2>) -> Tensor<2> {
        if ids.is_empty() {
            return table;
        }
        let (order, count) = embedding::order(ids);
        let order = int_on_device(Tensor::<1, Int>::from_ints(order.as_slice(), &table.device()));
        tensor(embedding::add_rows(on_device(table), on_device(rows), order, count))
    }

    fn squared_norms(&self, vectors: &mut [&mut Tensor<1>]) -> Vec<f64> {
        let all = vectors.iter().map(|x| on_device((**x).clone())).collect();
        let Some((sums, parts)) = adamw::squares(all) else { return Vec::new() };
        let sums = self.read(vec![tensor(sums)]).remove(0);
        let mut rest = sums.as_slice();
        let mut sum = |parts: &usize| rest.split_off(..*parts).unwrap_or_default().iter().map(|x| f64::from(*x)).sum();
        parts.iter().map(&mut sum).collect()
    }

    fn adamw(&self, value: Tensor<1>, grad: Tensor<1>, means: [Tensor<1>; 2], step: AdamWStep) -> [Tensor<1>; 3] {
        let [mean, square] = means;
        adamw::adamw([value, grad, mean, square].map(on_device), step).map(tensor)
    }

    fn updates_together(&self, f: &mut dyn FnMut()) {
        adamw::together(f);
    }
}
