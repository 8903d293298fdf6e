//! Plain burn operations: the default body of every kernel, and the reference of the tests for
//! fused kernels. Shapes and meanings are those of the methods of [`KernelSet`](super::KernelSet).
//!
//! Sums over all rows are split. A GPU gives one sum to few of its threads, and the gradient of a
//! weight is a sum over all rows. So `[M, D]` is reshaped to `[S, M/S, D]` before it meets a
//! weight: backpropagation then sums within the `S` pieces, and over them.

use super::{
    AdamWStep,
    layout::{Grid, Layout, Scoring},
    rows::{Merge, RowCopy, upload},
};
use burn::tensor::{DType, Device, FloatDType, IndexingUpdateOp, Int, Tensor, activation};
use retie_config::{Activation, Gating};
use std::{
    f32::consts::FRAC_1_SQRT_2,
    ops::{Add, Mul, Range, RangeInclusive},
};

/// Linear. With a bf16 weight, `x` and the result are rounded to bf16; sums are f32.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    if weight.dtype() == DType::BF16 && x.dtype() == DType::F32 {
        return linear(x.cast(FloatDType::BF16), weight).cast(FloatDType::F32);
    }
    let [rows, _] = x.dims();
    let [out, _] = weight.dims();
    match pieces(&x) {
        1 => x.matmul(weight.transpose()),
        pieces => in_pieces(x, pieces).matmul(weight.transpose().unsqueeze()).reshape([rows, out]),
    }
}

/// Minimum and maximum rows of a piece: enough for a product to be worth its launch, few enough for
/// many pieces at a time.
const ROWS_OF_A_PIECE: RangeInclusive<usize> = 128..=512;

/// Number of equal pieces that the rows of `x` are split into; 1 if no gradient sums over rows.
fn pieces(x: &Tensor<2>) -> usize {
    let [rows, _] = x.dims();
    if !x.device().is_autodiff() {
        return 1;
    }
    ROWS_OF_A_PIECE.rev().find(|size| rows.is_multiple_of(*size)).map_or(1, |size| rows / size)
}

fn in_pieces(x: Tensor<2>, pieces: usize) -> Tensor<3> {
    let [rows, width] = x.dims();
    x.reshape([pieces, rows / pieces, width])
}

/// `f` of `x`, split into pieces, and a vector with one number per column.
fn by_column(x: Tensor<2>, w: Tensor<1>, f: impl FnOnce(Tensor<3>, Tensor<3>) -> Tensor<3>) -> Tensor<2> {
    let (shape, pieces) = (x.dims(), pieces(&x));
    f(in_pieces(x, pieces), w.unsqueeze()).reshape(shape)
}

pub fn embedding(table: Tensor<2>, ids: Tensor<1, Int>) -> Tensor<2> {
    in_f32(table.select(0, ids))
}

fn in_f32(x: Tensor<2>) -> Tensor<2> {
    if x.dtype() == DType::BF16 { x.cast(FloatDType::F32) } else { x }
}

pub fn linear_lora(x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    linear(x.clone(), weight) + linear(linear(x, a), b)
}

pub fn rescale(y: Tensor<2>, magnitudes: Tensor<1>, norms: Tensor<1>) -> Tensor<2> {
    by_column(y, magnitudes / norms, Mul::mul)
}

pub fn row_norms(weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    let norms = (in_f32(weight) + in_f32(b).matmul(in_f32(a))).square().sum_dim(1).sqrt().squeeze_dim::<1>(1);
    norms.clone().mask_fill(norms.equal_elem(0.0), 1.0)
}

pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
    let scale = (x.clone().square().mean_dim(1) + eps).sqrt().recip();
    by_column(x * scale, weight, Mul::mul)
}

pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f32) -> Tensor<2> {
    let x = x.clone() - x.mean_dim(1);
    let scale = (x.clone().square().mean_dim(1) + eps).sqrt().recip();
    by_column(by_column(x * scale, weight, Mul::mul), bias, Add::add)
}

pub fn activation(x: Tensor<2>, kind: Activation) -> Tensor<2> {
    match kind {
        Activation::Silu => activation::silu(x),
        Activation::GeluTanh => activation::gelu_approximate(x),
        // On GPUs the gradient of burn 0.22's `gelu` is that of the tanh approximation, off by up
        // to 1e-3.
        Activation::Gelu => x.clone() * ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5,
    }
}

pub fn rope(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    let [_, tokens, _, head_dim] = x.dims();
    let [_, half] = cos.dims();
    let cos = cos.reshape([1, tokens, 1, half]);
    let sin = sin.reshape([1, tokens, 1, half]);
    let x1 = x.clone().narrow(3, 0, half);
    let x2 = x.clone().narrow(3, half, half);
    let y1 = x1.clone() * cos.clone() - x2.clone() * sin.clone();
    let y2 = x2 * cos + x1 * sin;
    let mut parts = vec![y1, y2];
    if 2 * half < head_dim {
        parts.push(x.narrow(3, 2 * half, head_dim - 2 * half));
    }
    Tensor::cat(parts, 3)
}

pub fn merge(x: Tensor<2>, y: Tensor<2>, gate: Tensor<2>, merge: &Merge) -> Tensor<2> {
    let [num_rows, _] = x.dims();
    let device = x.device();
    let entered = x.clone().select(0, merge.rows.indices(&device));
    let values = match merge.gating {
        // 1 in the forward pass, with the gradient of `gate`.
        Gating::StraightThrough => {
            let one = gate.clone() - gate.detach();
            y.clone() + one * (y - entered).detach()
        }
        Gating::Delta => entered * (-gate.clone() + 1.0) + y * gate,
        Gating::Weighted => entered + y * gate,
        Gating::Additive => entered + y,
    };
    // Selected rows are zeroed before values are added: `0 + v` is exactly `v`, `x + v − x` is not.
    let put = |values: Tensor<2>, target: Tensor<2>| {
        target.select_assign(0, merge.rows.indices(&device), values, IndexingUpdateOp::Add)
    };
    let ones = Tensor::<2>::ones([merge.rows.len(), 1], &device);
    let through = put(ones, Tensor::zeros([num_rows, 1], &device)); // [M, 1]
    put(values, x * (-through + 1.0))
}

pub fn adamw(value: Tensor<1>, grad: Tensor<1>, means: [Tensor<1>; 2], step: AdamWStep) -> [Tensor<1>; 3] {
    let AdamWStep { beta1, beta2, eps, step_size, inverse_root, keep, clip } = step;
    let ([mean, square], grad) = (means, grad * clip);
    let mean = mean * beta1 + grad.clone() * (1.0 - beta1);
    let square = square * beta2 + grad.square() * (1.0 - beta2);
    let change = mean.clone() / (square.clone().sqrt() * inverse_root + eps) * step_size;
    [value * keep - change, mean, square]
}

pub fn write_rows(buffer: Tensor<2>, values: &Tensor<2>, runs: &[RowCopy]) -> Tensor<2> {
    let [_, width] = buffer.dims();
    runs.iter().fold(buffer, |buffer, RowCopy { rows, at }| {
        let values = values.clone().narrow(0, rows.start, rows.len());
        buffer.slice_assign([*at..at + rows.len(), 0..width], values)
    })
}

pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, layout: &Layout, scoring: Scoring) -> Tensor<3> {
    assert!(layout.pages().is_none(), "keys in pages, expected runs of rows");
    let [rows, heads, head_dim] = q.dims();
    let [_, kv_heads, _] = k.dims();
    if let Some(Grid { batch, tokens, kv_len, capacity }) = layout.grid() {
        // A cache may have more slots than the batch has sequences; slicing copies, so whole
        // buffers are not sliced.
        let slots = |x: Tensor<3>| if x.dims()[0] > batch * capacity { x.narrow(0, 0, batch * capacity) } else { x };
        let keys = |x: Tensor<3>| slots(x).reshape([batch, capacity, kv_heads, head_dim]).narrow(1, 0, kv_len);
        let q = q.reshape([batch, tokens, heads, head_dim]);
        let own = match layout.own_keys() {
            Some(own) => own.indices(&q.device()).reshape([batch, tokens]),
            None => own_keys(&(kv_len - tokens..kv_len).collect::<Vec<_>>(), &q.device()),
        };
        return causal(q, keys(k), keys(v), own, scoring).reshape([rows, heads, head_dim]);
    }
    let device = q.device();
    let selected = layout.own_keys().map(|own| own.indices(&device));
    let segments = layout.segments().iter().map(|segment| {
        let take = |x: &Tensor<3>, rows: &Range<usize>| x.clone().narrow(0, rows.start, rows.len());
        let keys = |x: &Tensor<3>| match segment.prefix.is_empty() {
            true => take(x, &segment.keys).unsqueeze(),
            false => Tensor::cat(vec![take(x, &segment.prefix), take(x, &segment.keys)], 0).unsqueeze(),
        };
        let queries = &segment.queries;
        let own = match &selected {
            Some(own) => own.clone().narrow(0, queries.start, queries.len()).reshape([1, queries.len()]),
            None => own_keys(&segment.positions().collect::<Vec<_>>(), &device),
        };
        causal(take(&q, queries).unsqueeze(), keys(&k), keys(&v), own, scoring).squeeze_dim::<3>(0)
    });
    Tensor::cat(segments.collect(), 0)
}

/// Own keys of the queries of every sequence, `[1, T]`.
fn own_keys(own: &[usize], device: &Device) -> Tensor<2, Int> {
    upload(own, device).reshape([1, own.len()])
}

/// Causal attention: `q [B, T, N, H]`; `k`, `v` `[B, S, K, H]` → `[B, T, N, H]`. `own` is the index
/// of each query's own key, the last that it attends to: `[1, T]` for all sequences, or `[B, T]`.
fn causal(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, own: Tensor<2, Int>, scoring: Scoring) -> Tensor<4> {
    let [batch, tokens, heads, head_dim] = q.dims();
    let [_, kv_len, kv_heads, _] = k.dims();
    let repeat = |x: Tensor<4>| {
        x.swap_dims(1, 2) // [B, K, S, H]
            .unsqueeze_dim::<5>(2)
            .expand([batch, kv_heads, heads / kv_heads, kv_len, head_dim])
            .reshape([batch, heads, kv_len, head_dim])
    };
    let device = q.device();
    // Queries are scaled instead of scores, because there are fewer of them.
    let mut scores = (q * scoring.scale).swap_dims(1, 2).matmul(repeat(k).swap_dims(2, 3)); // [B, N, T, S]
    if let Some(cap) = scoring.softcap {
        scores = (scores / cap).tanh() * cap;
    }
    let [masks, _] = own.dims();
    let own = own.reshape([masks, tokens, 1]).expand([masks, tokens, kv_len]);
    let keys = Tensor::<1, Int>::arange(0..kv_len as i64, &device);
    let keys = keys.reshape([1, 1, kv_len]).expand([masks, tokens, kv_len]);
    let mut hidden = keys.clone().greater(own.clone());
    if let Some(window) = scoring.window.filter(|window| *window < kv_len) {
        hidden = hidden.bool_or(keys.lower_equal(own - window as i64));
    }
    let hidden = hidden.reshape([masks, 1, tokens, kv_len]).expand([batch, heads, tokens, kv_len]);
    let scores = scores.mask_fill(hidden, f32::NEG_INFINITY);
    activation::softmax(scores, 3).matmul(repeat(v)).swap_dims(1, 2) // [B, T, N, H]
}
