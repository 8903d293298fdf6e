//! Causal grouped-query attention of sequences of equal length: two products, and the softmax
//! between them in place. The query heads of a group are rows of one product, so keys and values
//! are not repeated. The backward pass computes the probabilities again.

use super::{
    heads::{Angles, join, split},
    launch::{dense, dims, reshaped},
    linear::{product, transposed},
    softmax::{self, Keys, Rows},
    swap::swapped,
};
use crate::kernels::{Grid, Scoring};
use burn_cubecl::tensor::CubeTensor;
use cubecl::zspace::{Strides, metadata::Metadata};

/// What an attention is over.
#[derive(Clone, Debug)]
pub struct Attended {
    pub grid: Grid,
    pub keys: Keys,
    pub scoring: Scoring,
}

/// What the backward pass reads.
#[derive(Clone, Debug)]
pub struct Saved {
    /// `[B, K, G·T, H]`.
    q: CubeTensor,
    /// `[B, K, S, H]`.
    k: CubeTensor,
    v: CubeTensor,
    attended: Attended,
}

/// `q [M, N, H]`; `k`, `v` `[S, K, H]` → `[M, N, H]`.
pub fn forward(q: CubeTensor, k: CubeTensor, v: CubeTensor, attended: Attended) -> (CubeTensor, Saved) {
    let Grid { batch, tokens, .. } = attended.grid;
    let [_, heads, head_dim] = dims(&q);
    let q = swapped(reshaped(dense(q), [batch, tokens, heads, head_dim])); // [B, N, T, H]
    let [k, v] = [k, v].map(|x| by_head(x, attended.grid));
    of_heads([q, k, v], attended)
}

/// Gradients of `q`, `k` and `v` of [`forward`].
pub fn backward(saved: Saved, grad: CubeTensor) -> [CubeTensor; 3] {
    backward_of_heads(saved, grad).map(|grad| {
        let [batch, heads, tokens, head_dim] = dims(&grad);
        reshaped(swapped(grad), [batch * tokens, heads, head_dim])
    })
}

/// Rotary embedding and attention of `qkv [M, (N + 2 K)·H]` → `[M, N·H]`; `heads` are `N` and `K`.
pub fn of_qkv(qkv: CubeTensor, angles: Angles, heads: [usize; 2], attended: Attended) -> (CubeTensor, Saved) {
    let [num_heads, kv_heads] = heads;
    let (out, saved) = of_heads(split(qkv, angles, [attended.grid.tokens, num_heads, kv_heads]), attended);
    let [rows, heads, head_dim] = dims(&out);
    (reshaped(out, [rows, heads * head_dim]), saved)
}

/// Gradient of `qkv` of [`of_qkv`].
pub fn backward_of_qkv(saved: Saved, angles: Angles, grad: CubeTensor) -> CubeTensor {
    let ([rows, width], [_, _, _, head_dim]) = (dims(&grad), dims(&saved.q));
    let grad = reshaped(dense(grad), [rows, width / head_dim, head_dim]);
    join(backward_of_heads(saved, grad), angles)
}

/// Attention of `q [B, N, T, H]` over `k`, `v` `[B, K, S, H]` → `[M, N, H]`.
fn of_heads([q, k, v]: [CubeTensor; 3], attended: Attended) -> (CubeTensor, Saved) {
    let ([batch, heads, tokens, head_dim], [_, kv_heads, _, _]) = (dims(&q), dims(&k));
    let q = reshaped(q, [batch, kv_heads, heads / kv_heads * tokens, head_dim]);
    let (probs, _) = probabilities(&q, &k, &attended);
    let out = product(probs, v.clone());
    let out = swapped(reshaped(dense(out), [batch, heads, tokens, head_dim])); // [B, T, N, H]
    (reshaped(out, [batch * tokens, heads, head_dim]), Saved { q, k, v, attended })
}

/// Gradients of queries, keys and values, heads before tokens, of `grad [M, N, H]`.
///
/// # Panics
/// When there are keys that are not those of the queries: caches have no gradient.
fn backward_of_heads(saved: Saved, grad: CubeTensor) -> [CubeTensor; 3] {
    let Saved { q, k, v, attended } = saved;
    let Grid { batch, tokens, capacity, .. } = attended.grid;
    assert_eq!(tokens, capacity, "keys of a cache have no gradient");
    let ([_, heads, head_dim], [_, kv_heads, group_rows, _]) = (dims(&grad), dims(&q));
    let grad = swapped(reshaped(dense(grad), [batch, tokens, heads, head_dim]));
    let grad = reshaped(grad, [batch, kv_heads, group_rows, head_dim]);
    let (probs, log_sums) = probabilities(&q, &k, &attended);
    let grad_v = product(transposed(probs.clone()), grad.clone());
    let grad_scores = dense(product(grad, transposed(v)));
    softmax::backward(&probs, log_sums, &grad_scores, score_rows(&q, &attended), attended.scoring);
    let grad_k = product(transposed(grad_scores.clone()), q);
    let grad_q = reshaped(dense(product(grad_scores, k)), [batch, heads, tokens, head_dim]);
    [grad_q, dense(grad_k), dense(grad_v)]
}

/// Rows of keys or values, `[S, K, H]`, as `[B, K, S, H]`: copied, because products would copy them
/// each; of a cache not, of which a part is read.
fn by_head(x: CubeTensor, grid: Grid) -> CubeTensor {
    let mut x = dense(x);
    let [rows, heads, head_dim] = dims(&x);
    let Grid { batch, kv_len, capacity, .. } = grid;
    if rows == batch * kv_len {
        return swapped(reshaped(x, [batch, kv_len, heads, head_dim]));
    }
    // Strides of `[B, capacity, K, H]` with two dimensions swapped, and fewer keys than room.
    let strides = [capacity * heads * head_dim, head_dim, heads * head_dim, 1];
    *x.meta = Metadata::new([batch, heads, kv_len, head_dim], Strides::new(&strides));
    x
}

/// Rows of the scores of queries `[B, K, G·T, H]`.
fn score_rows(q: &CubeTensor, attended: &Attended) -> Rows {
    let [batch, kv_heads, rows, _] = dims(q);
    let Grid { tokens, kv_len, .. } = attended.grid;
    Rows { batch, heads: kv_heads * rows / tokens, tokens, keys: kv_len }
}

/// Probabilities `[B, K, G·T, S]`, and `log Σ exp` of the scores of each row.
fn probabilities(q: &CubeTensor, k: &CubeTensor, attended: &Attended) -> (CubeTensor, CubeTensor) {
    let scores = dense(product(q.clone(), transposed(k.clone())));
    let log_sums = softmax::forward(&scores, score_rows(q, attended), &attended.keys, attended.scoring);
    (scores, log_sums)
}
