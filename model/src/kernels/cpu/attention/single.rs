//! Forward pass of attention with one query per segment, as in decoding.
//!
//! Its time is that of reading keys and values. So query heads that share keys and values read them
//! together, and a segment's blocks of keys are divided among the threads, which combine their sums
//! afterwards (Flash-Decoding, <https://pytorch.org/blog/flash-decoding/>).

use super::{Heads, KeyBlock, check, key_blocks};
use crate::kernels::{
    cpu::{
        few::{MOST_ROWS, few_dots, few_sums},
        simd::{cap, exp, exp_in_place, max, vectorised},
    },
    layout::{Layout, Scoring},
};
use rayon::prelude::*;
use std::ops::Range;

/// Keys per task.
const KEY_BLOCK: usize = 256;

/// Partial result of the query heads that share a kv head, on one block of keys.
struct Partial {
    /// Highest scaled score of each head, and the sum of `exp(score − highest)`.
    maxima: Vec<f32>,
    sums: Vec<f32>,
    /// `Σ exp(score − highest)·value`, `[heads, H]`.
    out: Vec<f32>,
}

/// [`forward`](super::forward()) for a layout whose segments have one query each.
pub fn forward([q, k, v]: [&[f32]; 3], heads: Heads, layout: &Layout) -> (Vec<f32>, Vec<f32>) {
    let Heads { heads: num_heads, kv_heads, head_dim, scoring } = heads;
    check(layout, q.len() / (num_heads * head_dim), k.len() / (kv_heads * head_dim));
    let group = num_heads / kv_heads;
    // Tasks on the same query and kv head are consecutive.
    let tasks: Vec<(usize, usize, KeyBlock<'_>)> = layout
        .segments()
        .iter()
        .flat_map(|segment| (0..kv_heads).map(move |head| (segment, head)))
        .flat_map(|(segment, head)| {
            let blocks = key_blocks((layout, segment), 0..1, scoring.window, KEY_BLOCK);
            blocks.map(move |keys| (segment.queries.start, head, keys))
        })
        .collect();
    let of_task = |(query, head, keys): &(usize, usize, KeyBlock<'_>)| {
        let first = (query * num_heads + head * group) * head_dim;
        partial(&q[first..][..group * head_dim], [k, v], heads, *head, keys)
    };
    let partials: Vec<Partial> = tasks.par_iter().map(of_task).collect();
    let (mut out, mut log_sums) = (vec![0.0; q.len()], vec![0.0; layout.num_rows() * num_heads]);
    let mut rest = partials.as_slice();
    for tasks in tasks.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let (parts, others) = rest.split_at(tasks.len());
        rest = others;
        let first = tasks[0].0 * num_heads + tasks[0].1 * group;
        for i in 0..group {
            let out = &mut out[(first + i) * head_dim..][..head_dim];
            log_sums[first + i] = join(out, parts, i);
        }
    }
    (out, log_sums)
}

/// Partial result of the query heads `q [heads, H]` of one kv head on a block of its keys.
fn partial(q: &[f32], [k, v]: [&[f32]; 2], heads: Heads, kv_head: usize, keys: &KeyBlock<'_>) -> Partial {
    let visible = keys.visible(0);
    let count = visible.len();
    match keys.runs(visible.clone()).next() {
        Some(run) if run.len() < count => {
            let runs = keys.runs(visible);
            let [k, v] = [k, v].map(|x| runs.clone().flat_map(move |run| rows_of(x, run, heads, kv_head)));
            of_rows(q, [k, v], heads, count)
        }
        run => of_rows(q, [k, v].map(|x| rows_of(x, run.clone().unwrap_or_default(), heads, kv_head)), heads, count),
    }
}

/// Keys or values of one head in a run of rows, `[H]` each.
fn rows_of(x: &[f32], run: Range<usize>, heads: Heads, kv_head: usize) -> impl Iterator<Item = &[f32]> + Clone {
    let (width, at) = (heads.kv_heads * heads.head_dim, kv_head * heads.head_dim);
    let rows = x[run.start * width..run.end * width].chunks_exact(width);
    rows.map(move |row| &row[at..at + heads.head_dim])
}

/// [`partial`] on `count` keys and values, `[H]` each.
fn of_rows<'x>(q: &[f32], [k, v]: [impl Iterator<Item = &'x [f32]> + Clone; 2], heads: Heads, count: usize) -> Partial {
    let Heads { head_dim, scoring: Scoring { scale, softcap, .. }, .. } = heads;
    let group = q.len() / head_dim;
    let mut partial =
        Partial { maxima: vec![f32::NEG_INFINITY; group], sums: vec![0.0; group], out: vec![0.0; q.len()] };
    let mut columns = vec![0.0; count * group.min(MOST_ROWS)]; // [keys, heads]
    let mut scores = vec![0.0; count]; // of one head
    for (first, q) in (0..group).step_by(MOST_ROWS).zip(q.chunks(MOST_ROWS * head_dim)) {
        let group = q.len() / head_dim;
        let columns = &mut columns[..count * group];
        few_dots(columns, q, head_dim, k.clone());
        let (maxima, sums) = (&mut partial.maxima[first..], &mut partial.sums[first..]);
        vectorised(
            #[inline(always)]
            || {
                for i in 0..group {
                    for (score, column) in scores.iter_mut().zip(columns.chunks_exact(group)) {
                        *score = column[i];
                    }
                    let scale = match softcap {
                        Some(limit) => {
                            cap(&mut scores, scale, limit);
                            1.0
                        }
                        None => scale,
                    };
                    maxima[i] = max(&scores) * scale;
                    sums[i] = exp_in_place(&mut scores, scale, maxima[i]);
                    for (score, column) in scores.iter().zip(columns.chunks_exact_mut(group)) {
                        column[i] = *score;
                    }
                }
            },
        );
        let out = &mut partial.out[first * head_dim..][..q.len()];
        few_sums(out, columns, head_dim, v.clone());
    }
    partial
}

/// Combines the `parts` of the `i`-th head: writes its output `[H]` and returns its log-sum-exp.
fn join(out: &mut [f32], parts: &[Partial], i: usize) -> f32 {
    let shift = parts.iter().map(|part| part.maxima[i]).fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, first) = (0.0, i * out.len());
    for part in parts {
        let rescale = exp(part.maxima[i] - shift);
        sum += part.sums[i] * rescale;
        for (out, part) in out.iter_mut().zip(&part.out[first..]) {
            *out += part * rescale;
        }
    }
    for x in out {
        *x /= sum;
    }
    shift + sum.ln()
}
