//! Causal grouped-query attention without repeating keys or values and without a `T × S` matrix for the whole sequence.
//!
//! Blocks of query rows see only the keys up to their last row; the backward pass recomputes the probabilities from the
//! saved log-sum-exp, as FlashAttention does (Dao et al., <https://arxiv.org/abs/2205.14135>). Query `i` stands at position
//! `kv_len − T + i` and sees the keys `0..=kv_len − T + i`.

use super::simd::{dot, exp_in_place, max, vectorised};
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

const BLOCK: usize = 64;

/// Sizes of one call. Queries `[B, T, N, H]`; keys and values `[B, capacity, K, H]`, of which `kv_len` rows count.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub capacity: usize,
    pub kv_len: usize,
}

impl Sizes {
    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// One task per batch row and query head.
    fn tasks(self) -> impl IndexedParallelIterator<Item = (usize, usize)> {
        (0..self.batch * self.heads).into_par_iter().map(move |i| (i / self.heads, i % self.heads))
    }

    /// The blocks of query rows: first row, number of rows, number of visible keys.
    fn blocks(self) -> impl Iterator<Item = (usize, usize, usize)> {
        let offset = self.kv_len - self.tokens;
        (0..self.tokens).step_by(BLOCK).map(move |start| {
            let rows = BLOCK.min(self.tokens - start);
            (start, rows, offset + start + rows)
        })
    }

    /// Keys that the query in `row` sees.
    fn visible(self, row: usize) -> usize {
        self.kv_len - self.tokens + row + 1
    }

    /// Head `head` of the queries (or of anything of their shape) in batch row `batch`: `[T, H]`.
    fn query_head(self, x: &[f32], batch: usize, head: usize) -> MatRef<'_, f32> {
        let width = self.heads * self.head_dim;
        let x = &x[batch * self.tokens * width..][..self.tokens * width];
        MatRef::from_row_major_slice(x, self.tokens, width).submatrix(
            0,
            head * self.head_dim,
            self.tokens,
            self.head_dim,
        )
    }

    /// The keys or values that query head `head` reads in batch row `batch`: `[S, H]`.
    fn kv_head(self, x: &[f32], batch: usize, head: usize) -> MatRef<'_, f32> {
        let width = self.kv_heads * self.head_dim;
        let x = &x[batch * self.capacity * width..][..self.kv_len * width];
        let kv_head = head / (self.heads / self.kv_heads);
        MatRef::from_row_major_slice(x, self.kv_len, width).submatrix(
            0,
            kv_head * self.head_dim,
            self.kv_len,
            self.head_dim,
        )
    }
}

fn product(out: &mut [f32], rows: usize, cols: usize, accum: Accum, lhs: MatRef<'_, f32>, rhs: MatRef<'_, f32>) {
    matmul(MatMut::from_row_major_slice_mut(&mut out[..rows * cols], rows, cols), accum, lhs, rhs, 1.0, Par::Seq);
}

/// The output `[B, T, N, H]` and the log-sum-exp of each query's scaled scores `[B, N, T]`.
pub fn forward(q: &[f32], k: &[f32], v: &[f32], sizes: Sizes) -> (Vec<f32>, Vec<f32>) {
    let Sizes { tokens, heads, head_dim, .. } = sizes;
    let results: Vec<(Vec<f32>, Vec<f32>)> =
        sizes.tasks().map(|(batch, head)| forward_head(q, k, v, sizes, batch, head)).collect();
    let mut out = vec![0.0; q.len()];
    let mut log_sums = Vec::with_capacity(sizes.batch * heads * tokens);
    for (index, (values, log_sum)) in results.iter().enumerate() {
        scatter_head(&mut out, values, index / heads * tokens, index % heads, heads, head_dim);
        log_sums.extend_from_slice(log_sum);
    }
    (out, log_sums)
}

fn forward_head(q: &[f32], k: &[f32], v: &[f32], sizes: Sizes, batch: usize, head: usize) -> (Vec<f32>, Vec<f32>) {
    let Sizes { tokens, head_dim, .. } = sizes;
    let (queries, keys, values) =
        (sizes.query_head(q, batch, head), sizes.kv_head(k, batch, head), sizes.kv_head(v, batch, head));
    let scale = sizes.scale();
    let mut out = vec![0.0; tokens * head_dim];
    let mut log_sums = Vec::with_capacity(tokens);
    let mut scores = vec![0.0; BLOCK.min(tokens) * sizes.kv_len];
    for (start, rows, seen) in sizes.blocks() {
        product(
            &mut scores,
            rows,
            seen,
            Accum::Replace,
            queries.subrows(start, rows),
            keys.subrows(0, seen).transpose(),
        );
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in scores[..rows * seen].chunks_exact_mut(seen).enumerate() {
                    let (row, hidden) = row.split_at_mut(sizes.visible(start + i));
                    let shift = max(row) * scale;
                    let sum = exp_in_place(row, scale, shift);
                    let inverse = 1.0 / sum;
                    for p in row.iter_mut() {
                        *p *= inverse;
                    }
                    hidden.fill(0.0);
                    log_sums.push(shift + sum.ln());
                }
            },
        );
        let probabilities = MatRef::from_row_major_slice(&scores[..rows * seen], rows, seen);
        product(&mut out[start * head_dim..], rows, head_dim, Accum::Replace, probabilities, values.subrows(0, seen));
    }
    (out, log_sums)
}

/// What the forward pass was given and gave.
pub struct Saved<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub log_sums: &'a [f32],
}

/// Gradients of `q`, `k` and `v`, in their shapes. Query heads of one group add to the same keys and values in head order.
pub fn backward(saved: &Saved<'_>, grad: &[f32], sizes: Sizes) -> [Vec<f32>; 3] {
    let Sizes { tokens, heads, kv_heads, head_dim, capacity, kv_len, .. } = sizes;
    let results: Vec<[Vec<f32>; 3]> =
        sizes.tasks().map(|(batch, head)| backward_head(saved, grad, sizes, batch, head)).collect();
    let mut grad_q = vec![0.0; saved.q.len()];
    let mut grad_k = vec![0.0; saved.k.len()];
    let mut grad_v = vec![0.0; saved.v.len()];
    let width = kv_heads * head_dim;
    for (index, [dq, dk, dv]) in results.iter().enumerate() {
        let (batch, head) = (index / heads, index % heads);
        scatter_head(&mut grad_q, dq, batch * tokens, head, heads, head_dim);
        let kv_head = head / (heads / kv_heads);
        for (target, source) in [(&mut grad_k, dk), (&mut grad_v, dv)] {
            for s in 0..kv_len {
                let target = &mut target[(batch * capacity + s) * width + kv_head * head_dim..][..head_dim];
                for (sum, value) in target.iter_mut().zip(&source[s * head_dim..][..head_dim]) {
                    *sum += value;
                }
            }
        }
    }
    [grad_q, grad_k, grad_v]
}

fn backward_head(saved: &Saved<'_>, grad: &[f32], sizes: Sizes, batch: usize, head: usize) -> [Vec<f32>; 3] {
    let Sizes { tokens, heads, head_dim, kv_len, .. } = sizes;
    let queries = sizes.query_head(saved.q, batch, head);
    let keys = sizes.kv_head(saved.k, batch, head);
    let values = sizes.kv_head(saved.v, batch, head);
    let grads = sizes.query_head(grad, batch, head);
    let log_sums = &saved.log_sums[(batch * heads + head) * tokens..][..tokens];
    let scale = sizes.scale();
    let (mut dq, mut dk, mut dv) =
        (vec![0.0; tokens * head_dim], vec![0.0; kv_len * head_dim], vec![0.0; kv_len * head_dim]);
    let scratch = BLOCK.min(tokens) * kv_len;
    let (mut scores, mut grad_scores) = (vec![0.0; scratch], vec![0.0; scratch]);
    for (start, rows, seen) in sizes.blocks() {
        product(
            &mut scores,
            rows,
            seen,
            Accum::Replace,
            queries.subrows(start, rows),
            keys.subrows(0, seen).transpose(),
        );
        product(
            &mut grad_scores,
            rows,
            seen,
            Accum::Replace,
            grads.subrows(start, rows),
            values.subrows(0, seen).transpose(),
        );
        vectorised(
            #[inline(always)]
            || {
                let pairs =
                    scores[..rows * seen].chunks_exact_mut(seen).zip(grad_scores[..rows * seen].chunks_exact_mut(seen));
                for (i, (p, d)) in pairs.enumerate() {
                    let token = start + i;
                    let visible = sizes.visible(token);
                    let at = ((batch * tokens + token) * heads + head) * head_dim;
                    let projection = dot(&grad[at..at + head_dim], &saved.out[at..at + head_dim]);
                    let (p, p_hidden) = p.split_at_mut(visible);
                    let (d, d_hidden) = d.split_at_mut(visible);
                    exp_in_place(p, scale, log_sums[token]);
                    for (d, p) in d.iter_mut().zip(p.iter()) {
                        *d = p * (*d - projection) * scale;
                    }
                    p_hidden.fill(0.0);
                    d_hidden.fill(0.0);
                }
            },
        );
        let p = MatRef::from_row_major_slice(&scores[..rows * seen], rows, seen);
        let d = MatRef::from_row_major_slice(&grad_scores[..rows * seen], rows, seen);
        product(&mut dq[start * head_dim..], rows, head_dim, Accum::Replace, d, keys.subrows(0, seen));
        product(&mut dk, seen, head_dim, Accum::Add, d.transpose(), queries.subrows(start, rows));
        product(&mut dv, seen, head_dim, Accum::Add, p.transpose(), grads.subrows(start, rows));
    }
    [dq, dk, dv]
}

/// Writes `[T, H]` values of one head into `[rows, N, H]`, from row `first` on.
fn scatter_head(out: &mut [f32], values: &[f32], first: usize, head: usize, heads: usize, head_dim: usize) {
    for (token, value) in values.chunks_exact(head_dim).enumerate() {
        let at = ((first + token) * heads + head) * head_dim;
        out[at..at + head_dim].copy_from_slice(value);
    }
}
