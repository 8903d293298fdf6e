//! The operations in which a decoder spends its time.
//!
//! Each operation has two forms: fused host code with a hand-written backward pass for the CPU backend (flex), and plain burn
//! operations for every other device. The tests compare the two, value and gradient.
//!
//! Shape legend: `M` rows (batch × tokens), `B` batch, `T` query tokens, `S` key tokens, `N` heads, `K` kv heads, `H` head_dim,
//! `F` mlp width, `D` hidden, `V` vocabulary.

mod allocator;
mod head_loss;
mod host;
mod layout;
mod merge;
mod operations;
mod plain;
#[cfg(test)]
mod tests;
mod write;

pub use allocator::{Allocator, keep_freed_memory};
pub use head_loss::{
    CrossEntropyTerm, DistillTerm, Head, HeadInput, HeadLoss, HeadTerms, HeadValues, Readout, ReadoutLoss, Teacher,
    TopProbs, agreement, head_loss, token_log_probs, top_probs,
};
pub use layout::{Grid, Layout, Scoring, Segment};
pub use merge::{Merge, gather, merge};
pub use operations::{Operations, counted};
pub use write::{Run, write_rows};

use burn::{
    backend::{Dispatch, DispatchDevice},
    tensor::{Device, FloatDType, Int, Tensor, TensorData},
};
pub use host::ceiling::{Ceilings, ceilings};
use host::{DecoderOps, gated::Gate};
use retie_config::Activation;

/// The elements of tensor data that a float tensor of this project gave: it holds f32 throughout.
#[must_use]
pub fn f32_slice(data: &TensorData) -> &[f32] {
    match data.as_slice() {
        Ok(values) => values,
        Err(error) => unreachable!("a tensor that is not f32: {error:?}"),
    }
}

/// [`f32_slice`], to be changed in place.
pub fn f32_slice_mut(data: &mut TensorData) -> &mut [f32] {
    match data.as_mut_slice() {
        Ok(values) => values,
        Err(error) => unreachable!("a tensor that is not f32: {error:?}"),
    }
}

/// Whether `device` is the CPU backend, with or without autodiff.
#[must_use]
pub fn is_cpu(device: &Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// Whether `device` is a CUDA device, with or without autodiff.
#[must_use]
pub fn is_cuda(device: &Device) -> bool {
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "cuda")]
        DispatchDevice::Cube(burn::backend::CubeDevice::Cuda(_)) => true,
        _ => false,
    }
}

/// Runs `f` on one of the threads that the CPU's kernels share their work with. From outside each kernel would hand its work over
/// and wait; a decoding step has hundreds of them, of a few microseconds each.
pub fn on_worker<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

fn count_products<const N: usize>(x: &Tensor<2>, weights: [&Tensor<2>; N]) {
    let [rows, _] = x.dims();
    weights.iter().for_each(|weight| operations::product(rows, weight.dims()));
}

/// `x + y`, `[M, D]` each: the residual connection.
pub fn add(x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
    if is_cpu(&x.device()) {
        Tensor::from_dispatch(Dispatch::decoder_add(x.into_dispatch(), y.into_dispatch()))
    } else {
        x + y
    }
}

/// Rows of `table [V, D]` by `ids [M]` → `[M, D]`.
pub fn embedding(table: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
    if is_cpu(&table.device()) {
        Tensor::from_dispatch(Dispatch::decoder_embedding(table.into_dispatch(), ids.into_dispatch()))
    } else {
        plain::embedding(table, ids)
    }
}

/// `y = x·Wᵀ`: `x [M, in]`, `weight [out, in]` (the layout of a Hugging Face checkpoint) → `[M, out]`.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    count_products(&x, [&weight]);
    if is_cpu(&x.device()) {
        Tensor::from_dispatch(Dispatch::decoder_linear(x.into_dispatch(), weight.into_dispatch()))
    } else {
        plain::linear(x, weight)
    }
}

/// A linear and its LoRA: `y = x·Wᵀ + (x·Aᵀ)·Bᵀ`: `x [M, in]`, `weight [out, in]`, `a [rank, in]`, `b [out, rank]` → `[M, out]`.
pub fn linear_lora(x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    count_products(&x, [&weight, &a, &b]);
    if is_cpu(&x.device()) {
        let (x, weight, a, b) = (x.into_dispatch(), weight.into_dispatch(), a.into_dispatch(), b.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_linear_lora(x, weight, a, b))
    } else {
        plain::linear_lora(x, weight, a, b)
    }
}

/// [`linear`] whose factors and result are rounded to bf16, and so are the gradients that come and go. On the CPU it is the rounding
/// alone that is done, and the product is that of f32; elsewhere it is the device's product of bf16.
pub fn linear_in_bf16(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    if is_cpu(&x.device()) {
        rounded(linear(rounded(x), rounded(weight)))
    } else {
        count_products(&x, [&weight]);
        plain::linear(x.cast(FloatDType::BF16), weight.cast(FloatDType::BF16)).cast(FloatDType::F32)
    }
}

/// [`linear_lora`] of products [in bf16](linear_in_bf16); their sum is of f32.
pub fn linear_lora_in_bf16(x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let correction = linear_in_bf16(linear_in_bf16(x.clone(), a), b);
    add(linear_in_bf16(x, weight), correction)
}

/// To bf16 and back, the gradient likewise.
fn rounded(x: Tensor<2>) -> Tensor<2> {
    x.cast(FloatDType::BF16).cast(FloatDType::F32)
}

/// `y · m / n`, column by column: `y [M, out]`; magnitudes `m` and norms `n` `[out]`, the latter without gradient (DoRA).
pub fn rescale(y: Tensor<2>, magnitudes: Tensor<1>, norms: Tensor<1>) -> Tensor<2> {
    if is_cpu(&y.device()) {
        let (y, magnitudes, norms) = (y.into_dispatch(), magnitudes.into_dispatch(), norms.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_rescale(y, magnitudes, norms))
    } else {
        plain::rescale(y, magnitudes, norms)
    }
}

/// `‖W + B A‖` by row: `weight [out, in]`, `a [rank, in]`, `b [out, rank]`, none of them tracked → `[out]`. The norm of a row of zeros,
/// by which nothing can be divided, counts as 1.
pub fn row_norms(weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    if is_cpu(&weight.device()) { host::rescale::row_norms(weight, a, b) } else { plain::row_norms(weight, a, b) }
}

/// `act(gate) · up`, elementwise: `[M, F]` each.
pub fn gated(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    match Gate::of(activation).filter(|_| is_cpu(&gate.device())) {
        Some(kind) => Tensor::from_dispatch(Dispatch::decoder_gated(gate.into_dispatch(), up.into_dispatch(), kind)),
        None => plain::gated(gate, up, activation),
    }
}

/// `act(x)`, elementwise.
pub fn activation(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    plain::activation(x, activation)
}

/// `gated(gate, up)·Wᵀ`: [`linear`] of a product that is not kept for the backward pass but computed again there.
pub fn gated_linear(gate: Tensor<2>, up: Tensor<2>, activation: Activation, weight: Tensor<2>) -> Tensor<2> {
    match Gate::of(activation).filter(|_| is_cpu(&gate.device())) {
        Some(kind) => {
            count_products(&gate, [&weight]);
            let (gate, up, weight) = (gate.into_dispatch(), up.into_dispatch(), weight.into_dispatch());
            Tensor::from_dispatch(Dispatch::decoder_gated_linear(gate, up, kind, weight))
        }
        None => linear(plain::gated(gate, up, activation), weight),
    }
}

/// [`linear_lora`] of `gated(gate, up)`, as [`gated_linear`].
pub fn gated_linear_lora(
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
    weight: Tensor<2>,
    a: Tensor<2>,
    b: Tensor<2>,
) -> Tensor<2> {
    match Gate::of(activation).filter(|_| is_cpu(&gate.device())) {
        Some(kind) => {
            count_products(&gate, [&weight, &a, &b]);
            let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
            let (weight, a, b) = (weight.into_dispatch(), a.into_dispatch(), b.into_dispatch());
            Tensor::from_dispatch(Dispatch::decoder_gated_linear_lora(gate, up, kind, weight, a, b))
        }
        None => linear_lora(plain::gated(gate, up, activation), weight, a, b),
    }
}

/// RMSNorm over the last dimension: `x [M, D]`, `weight [D]`.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
    if is_cpu(&x.device()) {
        Tensor::from_dispatch(Dispatch::decoder_rms_norm(x.into_dispatch(), weight.into_dispatch(), eps))
    } else {
        plain::rms_norm(x, weight, eps)
    }
}

/// LayerNorm over the last dimension: `x [M, D]`; `weight`, `bias` `[D]`.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f32) -> Tensor<2> {
    if is_cpu(&x.device()) {
        let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_layer_norm(x, weight, bias, eps))
    } else {
        plain::layer_norm(x, weight, bias, eps)
    }
}

/// Rotates the first `R` numbers of each head of `x [B, T, N, H]`; `cos`, `sin` are `[T, R/2]`, without gradient.
pub fn rope(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    if is_cpu(&x.device()) {
        Tensor::from_dispatch(Dispatch::decoder_rope(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()))
    } else {
        plain::rope(x, cos, sin)
    }
}

/// Causal grouped-query attention: `q [M, N, H]`; `k`, `v` `[S, K, H]`; `layout` says which keys each query sees → `[M, N, H]`.
/// `scoring` says what the scores are.
///
/// # Panics
/// When `layout` names other rows than there are.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, layout: &Layout, scoring: Scoring) -> Tensor<3> {
    let [_, heads, head_dim] = q.dims();
    let pairs = layout.segments().iter().map(|segment| segment.num_pairs(scoring.window)).sum();
    operations::pairs(pairs, heads, head_dim);
    if is_cpu(&q.device()) {
        let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
        Tensor::from_dispatch(Dispatch::decoder_attention(q, k, v, layout.clone(), scoring))
    } else {
        plain::attention(q, k, v, layout, scoring)
    }
}
