//! Operations as functions: each counts its work and calls the [`KernelSet`](super::KernelSet) of
//! its device.

use super::{
    AdamWStep, LinearPart, QkvAttention,
    head_loss::{Chunks, Head, HeadInput, HeadLoss, Readout, Teacher, TopProbs, top_of_row},
    kernels_of,
    layout::{Layout, Scoring},
    operations,
    reads::{self, Late},
    rows::{Merge, RowCopy, RowSet, RowsLora},
    top_k::{self, Quota},
    wave::Wave,
};
use burn::tensor::{Device, Int, Tensor};
use rayon::prelude::*;
use retie_config::Activation;
use std::sync::Arc;

fn count_products<const N: usize>(x: &Tensor<2>, weights: [&Tensor<2>; N]) {
    let [rows, _] = x.dims();
    weights.iter().for_each(|weight| operations::product(rows, weight.dims()));
}

/// Residual connection `x + y`, `[M, D]` each.
pub fn add(x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
    kernels_of(&x.device()).add(x, y)
}

/// Rows of `table [V, D]` by `ids [M]` → `[M, D]`.
pub fn embedding(table: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
    kernels_of(&table.device()).embedding(table, ids)
}

/// Rows of `x [M, D]` by index → `[k, D]`.
pub fn gather(x: Tensor<2>, rows: &RowSet) -> Tensor<2> {
    kernels_of(&x.device()).gather(x, rows)
}

/// Linear `y = x·Wᵀ`: `x [M, in]`, `weight [out, in]` (the layout of a Hugging Face checkpoint) →
/// `[M, out]`.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    count_products(&x, [&weight]);
    kernels_of(&x.device()).linear(x, weight)
}

/// [`linear`] of the same rows with each of several weights.
pub fn linears(x: Tensor<2>, weights: Vec<Tensor<2>>) -> Vec<Tensor<2>> {
    weights.iter().for_each(|weight| count_products(&x, [weight]));
    kernels_of(&x.device()).linears(x, weights)
}

/// [`linear`] added to `residual [M, out]`.
pub fn linear_onto(x: Tensor<2>, weight: Tensor<2>, residual: Tensor<2>) -> Tensor<2> {
    count_products(&x, [&weight]);
    kernels_of(&x.device()).linear_onto(x, weight, residual)
}

/// [`gated_linear`] added to `residual [M, out]`.
pub fn gated_linear_onto(
    gated: [Tensor<2>; 2],
    activation: Activation,
    weight: Tensor<2>,
    residual: Tensor<2>,
) -> Tensor<2> {
    count_products(&gated[0], [&weight]);
    kernels_of(&weight.device()).gated_linear_onto(gated, activation, weight, residual)
}

/// Linear with LoRA, `y = x·Wᵀ + (x·Aᵀ)·Bᵀ`: `x [M, in]`, `weight [out, in]`, `a [rank, in]`,
/// `b [out, rank]` → `[M, out]`.
pub fn linear_lora(x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    count_products(&x, [&weight, &a, &b]);
    kernels_of(&x.device()).linear_lora(x, weight, a, b)
}

/// [`linear`] of all rows, with a LoRA for some of them.
pub fn linear_loras(x: Tensor<2>, weight: Tensor<2>, loras: &[RowsLora]) -> Tensor<2> {
    if loras.is_empty() {
        return linear(x, weight);
    }
    count_products(&x, [&weight]);
    for RowsLora { rows, a, b } in loras {
        operations::product(rows.len(), a.dims());
        operations::product(rows.len(), b.dims());
    }
    kernels_of(&x.device()).linear_loras(x, weight, loras)
}

/// [`linear_lora`] with merged LoRA, `y = x·(W + B·A)ᵀ`.
pub fn linear_merged(x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    count_products(&b, [&a.clone().transpose()]);
    count_products(&x, [&weight]);
    kernels_of(&x.device()).linear_merged(x, weight, a, b)
}

/// [`linear`] in bf16: factors, result and their gradients are rounded to bf16. The CPU rounds, but
/// multiplies in f32; a GPU multiplies in bf16.
pub fn linear_in_bf16(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    count_products(&x, [&weight]);
    kernels_of(&x.device()).linear_in_bf16(x, weight)
}

/// [`linear_lora`] with products [in bf16](linear_in_bf16), added in f32.
pub fn linear_lora_in_bf16(x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let correction = linear_in_bf16(linear_in_bf16(x.clone(), a), b);
    add(linear_in_bf16(x, weight), correction)
}

/// DoRA scaling `y · m / n`, column by column: `y [M, out]`; magnitudes `m` and norms `n` `[out]`.
/// The norms get no gradient.
pub fn rescale(y: Tensor<2>, magnitudes: Tensor<1>, norms: Tensor<1>) -> Tensor<2> {
    kernels_of(&y.device()).rescale(y, magnitudes, norms)
}

/// DoRA norms `‖W + B A‖` by row: `weight [out, in]`, `a [rank, in]`, `b [out, rank]`, all without
/// autodiff → `[out]`. The norm of a zero row is 1, so that it can be divided by.
pub fn row_norms(weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    kernels_of(&weight.device()).row_norms(weight, a, b)
}

/// Activation `act(x)`, elementwise.
pub fn activation(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    kernels_of(&x.device()).activation(x, activation)
}

/// Gated activation `act(gate) · up`, elementwise: `[M, F]` each.
pub fn gated(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    kernels_of(&gate.device()).gated(gate, up, activation)
}

/// Activation with periodic terms, `act(gate)·up`: `[M, F]` each; `scalars` as [`Wave`] says.
pub fn waved(gate: Tensor<2>, up: Tensor<2>, scalars: Tensor<1>, wave: Wave) -> Tensor<2> {
    kernels_of(&gate.device()).waved(gate, up, scalars, wave)
}

/// Bias of a linear, `x + b`: `x [M, D]`, `bias [D]`.
pub fn add_bias(x: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    kernels_of(&x.device()).add_bias(x, bias)
}

/// Sum by factors, `f ⊙ x + g ⊙ y`: `[M, D]` each; `f`, `g` `[D]` or `[1]` each.
pub fn mix(terms: [Tensor<2>; 2], factors: [Tensor<1>; 2]) -> Tensor<2> {
    kernels_of(&terms[0].device()).mix(terms, factors)
}

/// Depthwise convolution `b + Σ_t w_t ⊙ x[rows_t]`: `x [R, D]`, `weight [D, taps]` a filter for
/// each channel, `bias [D]`; `taps` has for each tap the `k` rows of `x` that it reads → `[k, D]`.
pub fn depthwise(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>, taps: &[RowSet]) -> Tensor<2> {
    kernels_of(&x.device()).depthwise(x, weight, bias, taps)
}

/// [`linear`] of a gated activation, `gated(gate, up)·Wᵀ`.
pub fn gated_linear(gate: Tensor<2>, up: Tensor<2>, activation: Activation, weight: Tensor<2>) -> Tensor<2> {
    count_products(&gate, [&weight]);
    kernels_of(&gate.device()).gated_linear(gate, up, activation, weight)
}

/// [`linear_lora`] of a gated activation.
pub fn gated_linear_lora(
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
    weight: Tensor<2>,
    a: Tensor<2>,
    b: Tensor<2>,
) -> Tensor<2> {
    count_products(&gate, [&weight, &a, &b]);
    kernels_of(&gate.device()).gated_linear_lora(gate, up, activation, weight, [a, b])
}

/// [`linear_merged`] of a gated activation.
pub fn gated_linear_merged(
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
    weight: Tensor<2>,
    a: Tensor<2>,
    b: Tensor<2>,
) -> Tensor<2> {
    count_products(&b, [&a.clone().transpose()]);
    count_products(&gate, [&weight]);
    kernels_of(&gate.device()).gated_linear_merged(gate, up, activation, weight, [a, b])
}

/// RMSNorm over the last dimension: `x [M, D]`, `weight [D]`.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
    kernels_of(&x.device()).rms_norm(x, weight, eps)
}

/// Whether the device of `x [M, D]` has kernels for its norm and what stands beside it in the
/// residual stream: [`add_rms_norm`] and [`rms_norm_beside`].
#[must_use]
pub fn joins_norms(x: &Tensor<2>) -> bool {
    kernels_of(&x.device()).joins_norms(x)
}

/// Residual connection `x + y`, `[M, D]` each, and its [`rms_norm`].
#[must_use]
pub fn add_rms_norm(x: Tensor<2>, y: Tensor<2>, weight: Tensor<1>, eps: f32) -> [Tensor<2>; 2] {
    kernels_of(&x.device()).add_rms_norm(x, y, weight, eps)
}

/// `x [M, D]` itself and its [`rms_norm`], for a residual stream that goes on with `x`: where the
/// device has a kernel for it, both gradients of `x` are summed in that of the norm.
#[must_use]
pub fn rms_norm_beside(x: Tensor<2>, weight: Tensor<1>, eps: f32) -> [Tensor<2>; 2] {
    kernels_of(&x.device()).rms_norm_beside(x, weight, eps)
}

/// LayerNorm over the last dimension: `x [M, D]`; `weight`, `bias` `[D]`.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f32) -> Tensor<2> {
    kernels_of(&x.device()).layer_norm(x, weight, bias, eps)
}

/// Rotary embedding of the first `R` channels of each head of `x [B, T, N, H]`; `cos`, `sin` are
/// `[T, R/2]` and get no gradient.
pub fn rope(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    kernels_of(&x.device()).rope(x, cos, sin)
}

/// Causal grouped-query attention: `q [M, N, H]`; `k`, `v` `[S, K, H]` → `[M, N, H]`. `layout`
/// gives the keys that each query attends to, `scoring` the scale, soft cap and window.
///
/// # Panics
/// When `layout` names other rows than there are.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, layout: &Layout, scoring: Scoring) -> Tensor<3> {
    let [_, heads, head_dim] = q.dims();
    operations::pairs(|| layout.num_pairs(scoring.window), heads, head_dim);
    kernels_of(&q.device()).attention(q, k, v, layout, scoring)
}

/// Whether `device` has kernels for several linears as one: [`qkv_attention`] and [`gated_mlp`].
#[must_use]
pub fn joins_linears(device: &Device) -> bool {
    kernels_of(device).joins_linears()
}

/// Rotary embedding and causal attention of the projections `qkv` of `x [M, D]` → `[M, N·H]`, where
/// the device has kernels that go from one to the other.
#[must_use]
pub fn qkv_attention(x: &Tensor<2>, qkv: &[LinearPart; 3], how: QkvAttention<'_>) -> Option<Tensor<2>> {
    let out = kernels_of(&x.device()).qkv_attention(x, qkv, how)?;
    count_parts(x, qkv);
    let ([_, width], [heads, _]) = (out.dims(), how.heads);
    operations::pairs(|| how.layout.num_pairs(how.scoring.window), heads, width / heads);
    Some(out)
}

/// Gated MLP of `x [M, D]` → `[M, D]`, where the device has kernels for gate and up as one.
#[must_use]
pub fn gated_mlp(
    x: &Tensor<2>,
    gate_up: &[LinearPart; 2],
    activation: Activation,
    down: &LinearPart,
) -> Option<Tensor<2>> {
    let out = kernels_of(&x.device()).gated_mlp(x, gate_up, activation, down)?;
    count_parts(x, gate_up.iter().chain([down]));
    Some(out)
}

/// Counts the products of linears of the rows of `x`.
fn count_parts<'a>(x: &Tensor<2>, parts: impl IntoIterator<Item = &'a LinearPart>) {
    for LinearPart { weight, lora } in parts {
        count_products(x, [weight]);
        if let Some([a, b]) = lora {
            count_products(b, [&a.clone().transpose()]);
        }
    }
}

/// Merge of a block's output into its input (Mixture-of-Recursions, Eq. 2.1): `x [M, D]` with the
/// selected rows combined with `y [k, D]` by `gate [k, 1]`, the router's score. Other rows do not
/// change, bit for bit.
pub fn merge(x: Tensor<2>, y: Tensor<2>, gate: Tensor<2>, merge: Merge) -> Tensor<2> {
    kernels_of(&x.device()).merge(x, y, gate, merge)
}

/// Writes rows into a KV cache: `buffer [S, D]` with rows of `values [M, D]` copied as `copies`
/// says. On the CPU this happens in place, if nothing else holds the buffer.
pub fn write_rows(buffer: Tensor<2>, values: Tensor<2>, copies: &Arc<[RowCopy]>) -> Tensor<2> {
    kernels_of(&buffer.device()).write_rows(buffer, values, copies)
}

/// [`write_rows`] of keys and of values: `buffers [S, D]`, `rows [M, D]`.
pub fn write_keys_values(buffers: [Tensor<2>; 2], rows: [Tensor<2>; 2], copies: &Arc<[RowCopy]>) -> [Tensor<2>; 2] {
    kernels_of(&buffers[0].device()).write_keys_values(buffers, rows, copies)
}

/// [`write_keys_values`] of row `m` to row `at[m]` of the buffers, which the device may have alone.
pub fn write_keys_values_at(buffers: [Tensor<2>; 2], rows: [Tensor<2>; 2], at: &RowSet) -> [Tensor<2>; 2] {
    kernels_of(&buffers[0].device()).write_keys_values_at(buffers, rows, at)
}

/// Start of a backward pass at `x [M, D]` with a given gradient, `grad [M, D]` without autodiff: a
/// number whose gradient for `x` is `grad`. The number itself means nothing.
#[must_use]
pub fn inject(x: Tensor<2>, grad: Tensor<2>) -> Tensor<1> {
    kernels_of(&x.device()).inject(x, grad)
}

/// Step of AdamW on a device: `value`, `grad` and the running means of gradients and of their
/// squares, `[n]` each → value and means.
#[must_use]
pub fn adamw(value: Tensor<1>, grad: Tensor<1>, means: [Tensor<1>; 2], step: AdamWStep) -> [Tensor<1>; 3] {
    kernels_of(&value.device()).adamw(value, grad, means, step)
}

/// Runs `f`, whose updates by [`adamw`] on `device` may be made when it ends: nothing may read
/// their results before.
pub fn updates_together<R>(device: &Device, f: impl FnOnce() -> R) -> R {
    let (mut f, mut result) = (Some(f), None);
    kernels_of(device).updates_together(&mut || result = f.take().map(|f| f()));
    match result {
        Some(result) => result,
        None => unreachable!("kernels run what they are given"),
    }
}

/// Top-k of each sequence: the `active` rows with the highest `logits`, of equal ones the first.
/// `quotas` has, for each sequence in turn, how many rows are active and how many are selected.
/// What a device selects stays there.
#[must_use]
pub fn top_k(active: &RowSet, logits: &Late, quotas: &[Quota]) -> RowSet {
    match logits.tensor() {
        _ if quotas.iter().all(|quota| quota.selected == quota.active) => active.clone(),
        Some(tensor) if logits.if_known().is_none() => kernels_of(&tensor.device()).top_k(active, tensor, quotas),
        _ => top_k::on_host(active.host(), logits.values(), quotas).into(),
    }
}

/// Values and gradients of the loss terms of `readouts`, which all go through the student's `head`;
/// `targets` has one id per row. The gradient of the head is that of its weight.
///
/// # Panics
/// When the number of targets is not the number of rows, vocabularies differ, there is no readout,
/// or a term has no reference. The caller has to check these.
#[must_use]
pub fn head_loss(head: Head, readouts: &[Readout], teacher: Option<&Teacher>, targets: &[u32]) -> HeadLoss {
    head_loss_beside(head, readouts, teacher, targets, &[])
}

/// [`head_loss`]. What the host does not have yet of `beside` is read from the device in the same
/// transfer as the values.
///
/// # Panics
/// As [`head_loss`].
#[must_use]
pub fn head_loss_beside(
    head: Head,
    readouts: &[Readout],
    teacher: Option<&Teacher>,
    targets: &[u32],
    beside: &[&Late],
) -> HeadLoss {
    let Some(last) = readouts.last() else { unreachable!("a loss without a readout") };
    assert!(last.terms.last.is_none(), "the last readout is not its own reference");
    let chunks = chunks(&last.hidden, &head);
    assert_eq!(targets.len(), chunks.tokens, "one target per row");
    let loss = kernels_of(&head.weight.device()).head_loss(&head, readouts, teacher, targets, chunks);
    reads::read_together(loss.late().chain(beside.iter().copied()));
    loss.read(readouts, chunks.tokens)
}

/// Log-probability of each target, and whether it is the most probable token; one per row of
/// `input.hidden`.
///
/// # Panics
/// When the number of targets is not the number of rows.
#[must_use]
pub fn token_log_probs(input: &HeadInput, targets: &[u32]) -> (Vec<f32>, Vec<bool>) {
    let chunks = chunks(&input.hidden, &input.head);
    assert_eq!(targets.len(), chunks.tokens, "one target per row");
    kernels_of(&input.hidden.device()).token_log_probs(input, targets, chunks)
}

/// Agreement with a teacher, row by row: the forward KL `Σ p (log p − log q)` in nats, with teacher
/// `p` and model `q`, and whether both have the same most probable token (the first of equal ones).
///
/// # Panics
/// When rows or vocabularies differ.
#[must_use]
pub fn agreement(input: &HeadInput, teacher: &HeadInput) -> (Vec<f32>, Vec<bool>) {
    let [tokens, _] = input.hidden.dims();
    let [vocab_size, _] = input.head.weight.dims();
    assert_eq!([teacher.hidden.dims()[0], teacher.head.weight.dims()[0]], [tokens, vocab_size], "rows and vocabulary");
    kernels_of(&input.hidden.device()).agreement(input, teacher, chunks(&input.hidden, &input.head))
}

/// Top-k of each row of `input.hidden` under softmax(logits / temperature): the `k` most probable
/// tokens, or the fewest of them with a total probability of at least `top_p`, if that is less.
///
/// # Panics
/// When `k` is 0 or larger than the vocabulary.
#[must_use]
pub fn top_probs(input: &HeadInput, k: usize, top_p: Option<f64>, temperature: f32) -> TopProbs {
    let [vocab_size, _] = input.head.weight.dims();
    assert!((1..=vocab_size).contains(&k), "{k} of {vocab_size} tokens");
    let mut top = TopProbs::default();
    let mut see = |logits: &[f32]| {
        let rows = logits.par_chunks_exact(vocab_size).map(|row| top_of_row(row, k, top_p, temperature));
        rows.collect::<Vec<_>>().iter().for_each(|(ids, log_probs)| top.push(ids, log_probs));
    };
    kernels_of(&input.hidden.device()).for_each_logits(input, chunks(&input.hidden, &input.head), &mut see);
    top
}

/// Chunks of rows of `hidden` whose logits are in memory at the same time.
fn chunks(hidden: &Tensor<2>, head: &Head) -> Chunks {
    let [tokens, _] = hidden.dims();
    let [vocab_size, _] = head.weight.dims();
    Chunks::new(tokens, vocab_size, kernels_of(&hidden.device()).logits_in_flight())
}
