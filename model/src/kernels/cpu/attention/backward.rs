//! Backward pass of attention: recomputes probabilities from the saved log-sum-exp, block by block.
//!
//! Let `p` be the probabilities, `g` the gradient of the output and `o` the output of a query. Then
//! `dv = pᵀ·g`, `ds = p ∘ (g·vᵀ − g·o)·scale` (times the slope of a soft cap), `dq = ds·k`,
//! `dk = dsᵀ·q`.

use super::{Heads, KEY_BLOCK, check, key_blocks, product, query_blocks, scratch};
use crate::kernels::{
    cpu::simd::{cap, dot, exp_in_place, slopes, vectorised},
    layout::{Layout, Scoring, Segment},
};
use faer::{Accum, MatRef};
use rayon::prelude::*;
use std::ops::Range;

/// Inputs and results of the forward pass.
pub struct Saved<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub log_sums: &'a [f32],
}

/// Gradients of one head of a segment.
struct HeadGradients {
    /// `[T, H]`.
    queries: Vec<f32>,
    /// Keys and values: `[S, H]` each, the prefix first.
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Gradients of `q`, `k` and `v`, in their shapes. Contributions of several heads or segments to a
/// row are added in their order.
pub fn backward(saved: &Saved<'_>, grad: &[f32], heads: Heads, layout: &Layout) -> [Vec<f32>; 3] {
    let Heads { heads: num_heads, kv_heads, head_dim, .. } = heads;
    check(layout, saved.q.len() / (num_heads * head_dim), saved.k.len() / (kv_heads * head_dim));
    assert!(layout.pages().is_none(), "keys in pages, of which there is no gradient");
    let segments = layout.segments();
    let tasks = (0..segments.len() * num_heads).into_par_iter().map(|i| (&segments[i / num_heads], i % num_heads));
    let results: Vec<HeadGradients> =
        tasks.map(|(segment, head)| backward_head(saved, grad, heads, (layout, segment), head)).collect();
    let mut grad_q = vec![0.0; saved.q.len()];
    let mut grad_k = vec![0.0; saved.k.len()];
    let mut grad_v = vec![0.0; saved.v.len()];
    for (index, result) in results.iter().enumerate() {
        let (segment, head) = (&segments[index / num_heads], index % num_heads);
        add_rows(&mut grad_q, [num_heads, head_dim], segment.queries.clone(), head, &result.queries);
        let (kv_head, shared) = (heads.kv_head(head), segment.prefix.len() * head_dim);
        for (grad, part) in [(&mut grad_k, &result.keys), (&mut grad_v, &result.values)] {
            add_rows(grad, [kv_heads, head_dim], segment.prefix.clone(), kv_head, &part[..shared]);
            add_rows(grad, [kv_heads, head_dim], segment.keys.clone(), kv_head, &part[shared..]);
        }
    }
    [grad_q, grad_k, grad_v]
}

/// Adds `values [rows, H]` to the rows of one head of `out [M, heads, H]`.
fn add_rows(out: &mut [f32], [heads, head_dim]: [usize; 2], rows: Range<usize>, head: usize, values: &[f32]) {
    for (row, values) in rows.zip(values.chunks_exact(head_dim)) {
        let out = &mut out[(row * heads + head) * head_dim..][..head_dim];
        for (sum, value) in out.iter_mut().zip(values) {
            *sum += value;
        }
    }
}

fn backward_head(
    saved: &Saved<'_>,
    grad: &[f32],
    heads: Heads,
    (layout, segment): (&Layout, &Segment),
    head: usize,
) -> HeadGradients {
    let Heads { heads: num_heads, head_dim, .. } = heads;
    let Scoring { scale, softcap, window } = heads.scoring;
    let zeros = |rows: usize| vec![0.0; rows * head_dim];
    let mut result = HeadGradients {
        queries: zeros(segment.queries.len()),
        keys: zeros(segment.num_keys()),
        values: zeros(segment.num_keys()),
    };
    let (mut scores, mut grad_scores) = (scratch(segment), scratch(segment));
    for block in query_blocks(segment) {
        let rows = block.len();
        let first = segment.queries.start + block.start;
        let queries = heads.of_queries(saved.q, first..first + rows, head);
        let grads = heads.of_queries(grad, first..first + rows, head);
        for keys in key_blocks((layout, segment), block.clone(), window, KEY_BLOCK) {
            let num_keys = keys.rows.len();
            let key_rows = heads.of_keys(saved.k, keys.rows.clone(), head);
            let value_rows = heads.of_keys(saved.v, keys.rows.clone(), head);
            product(&mut scores, rows, num_keys, Accum::Replace, queries, key_rows.transpose());
            product(&mut grad_scores, rows, num_keys, Accum::Replace, grads, value_rows.transpose());
            vectorised(
                #[inline(always)]
                || {
                    let pairs = scores[..rows * num_keys]
                        .chunks_exact_mut(num_keys)
                        .zip(grad_scores[..rows * num_keys].chunks_exact_mut(num_keys));
                    for (i, (p, d)) in pairs.enumerate() {
                        let at = (first + i) * num_heads + head;
                        let row = at * head_dim..(at + 1) * head_dim;
                        let projection = dot(&grad[row.clone()], &saved.out[row]);
                        let visible = keys.visible(i);
                        for hidden in [0..visible.start, visible.end..num_keys] {
                            p[hidden.clone()].fill(0.0);
                            d[hidden].fill(0.0);
                        }
                        let (p, d) = (&mut p[visible.clone()], &mut d[visible]);
                        match softcap {
                            Some(limit) => {
                                cap(p, scale, limit);
                                for (d, slope) in d.iter_mut().zip(slopes(p, limit)) {
                                    *d = (*d - projection) * scale * slope;
                                }
                                exp_in_place(p, 1.0, saved.log_sums[at]);
                                d.iter_mut().zip(p.iter()).for_each(|(d, p)| *d *= p);
                            }
                            None => {
                                exp_in_place(p, scale, saved.log_sums[at]);
                                for (d, p) in d.iter_mut().zip(p.iter()) {
                                    *d = p * (*d - projection) * scale;
                                }
                            }
                        }
                    }
                },
            );
            let p = MatRef::from_row_major_slice(&scores[..rows * num_keys], rows, num_keys);
            let d = MatRef::from_row_major_slice(&grad_scores[..rows * num_keys], rows, num_keys);
            let at = keys.start * head_dim;
            product(&mut result.queries[block.start * head_dim..], rows, head_dim, Accum::Add, d, key_rows);
            product(&mut result.keys[at..], num_keys, head_dim, Accum::Add, d.transpose(), queries);
            product(&mut result.values[at..], num_keys, head_dim, Accum::Add, p.transpose(), grads);
        }
    }
    result
}
