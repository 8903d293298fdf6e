//! Causal grouped-query attention that neither repeats keys or values nor stores all scores.
//!
//! Blocks of queries pass over blocks of keys. The forward pass keeps a running maximum and sum per
//! row; the backward pass recomputes the probabilities from the saved log-sum-exp, as
//! FlashAttention does (Dao et al., <https://arxiv.org/abs/2205.14135>). So scratch memory does not
//! grow with the context.
//!
//! Queries `[M, N, H]`, keys and values `[S, K, H]`. The [`Layout`] gives the keys of each query,
//! which may lie in pages: blocks of keys are the same then, and so is every sum.

mod backward;
mod forward;
mod single;
#[cfg(test)]
mod tests;

pub use backward::{Saved, backward};
pub use forward::forward;

use crate::kernels::{
    layout::{Layout, Scoring, Segment},
    pages::Runs,
};
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use std::ops::Range;

/// Query rows per block.
const QUERY_BLOCK: usize = 64;
/// Keys per block.
const KEY_BLOCK: usize = 512;

/// Head counts, head size, and scoring.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scoring: Scoring,
}

impl Heads {
    /// Rows of one head of the queries (or of a tensor of their shape): `[rows, H]`.
    fn of_queries(self, x: &[f32], rows: Range<usize>, head: usize) -> MatRef<'_, f32> {
        part(x, self.heads, self.head_dim, rows, head)
    }

    /// Rows of the keys or values that a query head reads: `[rows, H]`.
    fn of_keys(self, x: &[f32], rows: Range<usize>, head: usize) -> MatRef<'_, f32> {
        part(x, self.kv_heads, self.head_dim, rows, self.kv_head(head))
    }

    /// [`Heads::of_keys`] of a block: where it lies in several runs of pages, a copy in `scratch`
    /// that lies as it would in one.
    fn of_block<'x>(
        self,
        x: &'x [f32],
        keys: &KeyBlock<'_>,
        head: usize,
        scratch: &'x mut Vec<f32>,
    ) -> MatRef<'x, f32> {
        let num_keys = keys.rows.len();
        let mut runs = keys.runs(0..num_keys);
        if let Some(run) = runs.clone().next().filter(|run| run.len() == num_keys) {
            return self.of_keys(x, run, head);
        }
        let (width, at) = (self.kv_heads * self.head_dim, self.kv_head(head) * self.head_dim);
        scratch.resize(num_keys * width, 0.0);
        let rows = runs.by_ref().flatten();
        for (to, row) in scratch.chunks_exact_mut(width).zip(rows) {
            to[at..at + self.head_dim].copy_from_slice(&x[row * width + at..][..self.head_dim]);
        }
        self.of_keys(scratch, 0..num_keys, head)
    }

    fn kv_head(self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }
}

fn part(x: &[f32], heads: usize, head_dim: usize, rows: Range<usize>, head: usize) -> MatRef<'_, f32> {
    let width = heads * head_dim;
    let x = &x[rows.start * width..rows.end * width];
    MatRef::from_row_major_slice(x, rows.len(), width).subcols(head * head_dim, head_dim)
}

/// Block of keys that a block of queries passes over at once.
struct KeyBlock<'s> {
    /// Key rows of the segment; where they lie, `runs` says.
    rows: Range<usize>,
    /// Index of the first key among the keys of the segment, prefix first.
    start: usize,
    segment: &'s Segment,
    layout: &'s Layout,
    /// First query of the query block, counted from the first of the segment.
    first: usize,
    window: usize,
}

impl KeyBlock<'_> {
    /// Range of the block's keys that the `i`-th query attends to.
    fn visible(&self, i: usize) -> Range<usize> {
        let within = |key: usize| key.saturating_sub(self.start).min(self.rows.len());
        let end = self.segment.position(self.first + i) + 1;
        within(end.saturating_sub(self.window))..within(end)
    }

    /// Rows that some of the block's keys lie in.
    fn runs(&self, keys: Range<usize>) -> Runs<'_> {
        self.layout.key_runs(self.rows.start + keys.start..self.rows.start + keys.end)
    }
}

/// Blocks of `size` keys for the query rows `queries`, which are counted from the first of the
/// segment. Keys outside of the causal mask and window of all these queries are left out.
fn key_blocks<'s>(
    (layout, segment): (&'s Layout, &'s Segment),
    queries: Range<usize>,
    window: Option<usize>,
    size: usize,
) -> impl Iterator<Item = KeyBlock<'s>> {
    let window = window.unwrap_or(usize::MAX);
    let seen_by_last = segment.position(queries.end - 1) + 1;
    let left = (segment.position(queries.start) + 1).saturating_sub(window); // of all keys, the first that a query sees
    let shared = segment.prefix.len();
    let prefix = segment.prefix.start + left.min(shared)..segment.prefix.end;
    let own = segment.keys.start + left.saturating_sub(shared)..segment.keys.start + seen_by_last - shared;
    let parts = [(prefix, left.min(shared)), (own, left.max(shared))];
    parts.into_iter().flat_map(move |(rows, offset)| {
        let (first, last) = (rows.start, rows.end);
        rows.step_by(size).map(move |start| KeyBlock {
            rows: start..last.min(start + size),
            start: offset + start - first,
            segment,
            layout,
            first: queries.start,
            window,
        })
    })
}

/// Blocks of the query rows of a segment, counted from its first.
fn query_blocks(segment: &Segment) -> impl Iterator<Item = Range<usize>> {
    let tokens = segment.queries.len();
    (0..tokens).step_by(QUERY_BLOCK).map(move |start| start..tokens.min(start + QUERY_BLOCK))
}

/// Scratch memory for the scores of any block of a segment.
fn scratch(segment: &Segment) -> Vec<f32> {
    vec![0.0; QUERY_BLOCK.min(segment.queries.len()) * KEY_BLOCK.min(segment.num_keys())]
}

fn product(out: &mut [f32], rows: usize, cols: usize, accum: Accum, lhs: MatRef<'_, f32>, rhs: MatRef<'_, f32>) {
    matmul(MatMut::from_row_major_slice_mut(&mut out[..rows * cols], rows, cols), accum, lhs, rhs, 1.0, Par::Seq);
}

/// Panics unless every row that the layout names is there.
fn check(layout: &Layout, queries: usize, keys: usize) {
    let segments = layout.segments();
    assert_eq!(layout.num_rows(), queries, "rows of queries");
    // Rows of pages are looked up where they are read.
    let is_there = |s: &Segment| s.prefix.end.max(s.keys.end) <= keys;
    assert!(layout.pages().is_some() || segments.iter().all(is_there), "rows of keys: {keys}");
}
