//! Forward pass of attention: online softmax over blocks of keys, with a running maximum and sum.

use super::{Heads, KEY_BLOCK, check, key_blocks, product, query_blocks, scratch, single};
use crate::kernels::{
    cpu::simd::{cap, exp, exp_in_place, max, vectorised},
    layout::{Layout, Scoring, Segment},
};
use faer::{Accum, MatRef};
use rayon::prelude::*;
use std::ops::Range;

/// Output `[M, N, H]`, and log-sum-exp of each query's scaled scores `[M, N]`.
pub fn forward(q: &[f32], k: &[f32], v: &[f32], heads: Heads, layout: &Layout) -> (Vec<f32>, Vec<f32>) {
    if layout.segments().iter().all(|segment| segment.queries.len() == 1) {
        return single::forward([q, k, v], heads, layout);
    }
    let Heads { heads: num_heads, kv_heads, head_dim, .. } = heads;
    let width = num_heads * head_dim;
    check(layout, q.len() / width, k.len() / (kv_heads * head_dim));
    let tasks: Vec<(&Segment, Range<usize>, usize)> = layout
        .segments()
        .iter()
        .flat_map(|segment| query_blocks(segment).map(move |block| (segment, block)))
        .flat_map(|(segment, block)| (0..num_heads).map(move |head| (segment, block.clone(), head)))
        .collect();
    let results: Vec<(Vec<f32>, Vec<f32>)> = tasks
        .par_iter()
        .map(|(segment, block, head)| forward_block([q, k, v], heads, (layout, segment), block.clone(), *head))
        .collect();
    let mut out = vec![0.0; q.len()];
    let mut log_sums = vec![0.0; layout.num_rows() * num_heads];
    for ((segment, block, head), (values, sums)) in tasks.iter().zip(&results) {
        for (i, (value, sum)) in values.chunks_exact(head_dim).zip(sums).enumerate() {
            let at = (segment.queries.start + block.start + i) * num_heads + head;
            out[at * head_dim..][..head_dim].copy_from_slice(value);
            log_sums[at] = *sum;
        }
    }
    (out, log_sums)
}

/// Output `[rows, H]` and log-sum-exp `[rows]` of one head of a block of queries.
fn forward_block(
    [q, k, v]: [&[f32]; 3],
    heads: Heads,
    (layout, segment): (&Layout, &Segment),
    block: Range<usize>,
    head: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (head_dim, rows, Scoring { scale, softcap, window }) = (heads.head_dim, block.len(), heads.scoring);
    let first = segment.queries.start;
    let queries = heads.of_queries(q, first + block.start..first + block.end, head);
    let (mut scores, mut copied) = (scratch(segment), Vec::new());
    let mut out = vec![0.0; rows * head_dim];
    let (mut maxima, mut sums) = (vec![f32::NEG_INFINITY; rows], vec![0.0f32; rows]);
    for keys in key_blocks((layout, segment), block, window, KEY_BLOCK) {
        let num_keys = keys.rows.len();
        let key_rows = heads.of_block(k, &keys, head, &mut copied);
        product(&mut scores, rows, num_keys, Accum::Replace, queries, key_rows.transpose());
        vectorised(
            #[inline(always)]
            || {
                let rows = scores[..rows * num_keys].chunks_exact_mut(num_keys).zip(out.chunks_exact_mut(head_dim));
                for (i, (row, out)) in rows.enumerate() {
                    let visible = keys.visible(i);
                    let (row, later) = row.split_at_mut(visible.end);
                    let (earlier, row) = row.split_at_mut(visible.start);
                    earlier.fill(0.0);
                    later.fill(0.0);
                    if row.is_empty() {
                        continue;
                    }
                    let scale = match softcap {
                        Some(limit) => {
                            cap(row, scale, limit);
                            1.0
                        }
                        None => scale,
                    };
                    let shift = maxima[i].max(max(row) * scale);
                    let rescale = exp(maxima[i] - shift);
                    sums[i] = sums[i] * rescale + exp_in_place(row, scale, shift);
                    maxima[i] = shift;
                    for x in out {
                        *x *= rescale;
                    }
                }
            },
        );
        let weights = MatRef::from_row_major_slice(&scores[..rows * num_keys], rows, num_keys);
        product(&mut out, rows, head_dim, Accum::Add, weights, heads.of_block(v, &keys, head, &mut copied));
    }
    for (out, sum) in out.chunks_exact_mut(head_dim).zip(&sums) {
        let inverse = 1.0 / sum;
        for x in out {
            *x *= inverse;
        }
    }
    let log_sums = maxima.iter().zip(&sums).map(|(shift, sum)| shift + sum.ln()).collect();
    (out, log_sums)
}
