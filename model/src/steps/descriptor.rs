//! Attention to descriptors of earlier chunks (`retie_config::DescriptorConfig`), over whole
//! sequences and with a cache of bounded size.
//!
//! Keys come with their rotary embedding. A descriptor has the position of one token of its block,
//! so the other tokens are turned by their distance from it, the same in every block.
//!
//! In a cache a slot has the rows of its memory (sinks, then descriptors chunk by chunk), and
//! behind them those of one chunk, which the next chunk overwrites. A forward pass that goes on
//! over the end of a chunk runs in waves: the keys of a wave are written, its queries attend, and
//! chunks that are complete become descriptors.

use crate::{
    cache::DepthCache,
    kernels::{self, Layout, RowCopy, Scoring, Segment},
    rope::RopeFrequencies,
};
use burn::tensor::Tensor;
use retie_config::DescriptorConfig;
use std::{ops::Range, sync::Arc};

/// Queries `[M, N, H]`, keys and values `[M, K, H]` of the rows of a forward pass.
pub(crate) struct Projected {
    pub q: Tensor<3>,
    pub k: Tensor<3>,
    pub v: Tensor<3>,
}

/// Descriptors of one depth.
pub(crate) struct Descriptors<'a> {
    pub config: &'a DescriptorConfig,
    /// Rotary embedding of the keys, if any.
    pub rope: Option<RopeFrequencies>,
    pub scoring: Scoring,
}

/// Consecutive queries of one sequence in one chunk.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Rows of the queries.
    pub rows: Range<usize>,
    /// Their positions.
    pub positions: Range<usize>,
}

impl Piece {
    /// Pieces of a segment, in chunks of `chunk` tokens.
    pub fn of(segment: &Segment, chunk: usize) -> Vec<Self> {
        let positions: Vec<usize> = segment.positions().collect();
        let mut start = segment.queries.start;
        let mut pieces = Vec::new();
        for members in positions.chunk_by(|a, b| a / chunk == b / chunk) {
            let rows = start..start + members.len();
            start = rows.end;
            pieces.push(Self { rows, positions: members[0]..members[members.len() - 1] + 1 });
        }
        pieces
    }

    /// Number of its chunk, of `chunk` tokens.
    pub fn chunk(&self, chunk: usize) -> usize {
        self.positions.start / chunk
    }
}

impl Descriptors<'_> {
    /// Attention over whole sequences → `[M, N, H]`.
    pub fn attend(&self, Projected { q, k, v }: Projected, layout: &Layout) -> Tensor<3> {
        let chunk = self.config.chunk;
        if layout.segments().iter().all(|segment| segment.num_keys() <= chunk) {
            return kernels::attention(q, k, v, layout, self.scoring);
        }
        let [num_keys, ..] = k.dims();
        // Rows of the keys and of the descriptors behind them that each sequence attends to.
        let (mut rows, mut blocks, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        for segment in layout.segments() {
            let row = |position: usize| match position.checked_sub(segment.prefix.len()) {
                None => segment.prefix.start + position,
                Some(index) => segment.keys.start + index,
            };
            let pieces = Piece::of(segment, chunk);
            let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { continue };
            let own = first.positions.start / chunk * chunk;
            let chunks = (last.positions.end - 1) / chunk;
            let memory = rows.len();
            rows.extend((0..self.config.memory(chunks).min(self.config.sinks)).map(row));
            for chunk_index in 0..chunks {
                for first in self.config.kept_blocks(chunk_index) {
                    rows.push(num_keys + blocks.len());
                    let first = chunk_index * chunk + first;
                    blocks.push((first..first + self.config.ratio).map(row).collect::<Vec<_>>());
                }
            }
            let exact = rows.len();
            rows.extend((own..last.positions.end).map(row));
            for Piece { rows: queries, positions } in pieces {
                let index = positions.start / chunk;
                let seen = self.config.memory(index);
                let start = index * chunk;
                segments.push(Segment {
                    own: Some(positions.clone().map(|position| seen + position - start).collect()),
                    queries,
                    prefix: memory..memory + seen,
                    keys: exact + start - own..exact + positions.end - own,
                });
            }
        }
        let [k, v] = match blocks.is_empty() {
            true => [k, v],
            false => {
                let [pooled_k, pooled_v] = self.pooled([&k, &v], &blocks);
                [Tensor::cat(vec![k, pooled_k], 0), Tensor::cat(vec![v, pooled_v], 0)]
            }
        };
        kernels::attention(q, take(k, &rows), take(v, &rows), &Layout::ragged(segments), self.scoring)
    }

    /// Attention of new tokens of cached sequences → `[M, N, H]`. The tokens are added to `cache`.
    pub fn attend_cached(
        &self,
        Projected { q, k, v }: Projected,
        layout: &Layout,
        mut cache: DepthCache<'_>,
    ) -> Tensor<3> {
        let [_, kv_heads, head_dim] = k.dims();
        let flat = |x: Tensor<3>| {
            let [rows, heads, head_dim] = x.dims();
            x.reshape([rows, heads * head_dim])
        };
        let heads = |x: Tensor<2>| {
            let [rows, _] = x.dims();
            x.reshape([rows, kv_heads, head_dim])
        };
        let (chunk, capacity) = (self.config.chunk, cache.capacity());
        let chunks = capacity.div_ceil(chunk);
        let (room, memory) = (self.config.cached(capacity), self.config.memory(chunks.saturating_sub(1)));
        let base = |segment: &Segment| segment.keys.start / capacity * room;
        let sequences: Vec<_> =
            layout.segments().iter().map(|segment| (base(segment), Piece::of(segment, chunk))).collect();
        let num_waves = sequences.iter().map(|(_, pieces)| pieces.len()).max().unwrap_or(0);
        let new = [flat(k), flat(v)];
        let (mut outputs, mut order) = (Vec::new(), Vec::new());
        for wave in 0..num_waves {
            let pieces: Vec<(usize, &Piece)> =
                sequences.iter().filter_map(|(base, pieces)| Some((*base, pieces.get(wave)?))).collect();
            let copy = |(base, piece): &(usize, &Piece)| RowCopy {
                rows: piece.rows.clone(),
                at: base + memory + piece.positions.start % chunk,
            };
            let [keys, values] = cache.write(new.clone(), &pieces.iter().map(copy).collect());
            let mut segments = Vec::new();
            let from = order.len();
            for (base, piece) in &pieces {
                let start = order.len() - from;
                order.extend(piece.rows.clone());
                let seen = self.config.memory(piece.positions.start / chunk);
                let held = (piece.positions.end - 1) % chunk + 1;
                let queries = start..start + piece.rows.len();
                segments.push(Segment::last(queries, *base..base + seen, base + memory..base + memory + held));
            }
            let queries = if num_waves == 1 { q.clone() } else { take(q.clone(), &order[from..]) };
            let (keys, values) = (heads(keys), heads(values));
            let layout = Layout::ragged(segments);
            outputs.push(kernels::attention(queries, keys.clone(), values.clone(), &layout, self.scoring));
            let complete = |(_, piece): &&(usize, &Piece)| {
                piece.positions.end.is_multiple_of(chunk) && piece.positions.end < chunks * chunk
            };
            let complete: Vec<_> = pieces.iter().filter(complete).collect();
            if !complete.is_empty() {
                let (mut sinks, mut blocks, mut copies) = (Vec::new(), Vec::new(), Vec::new());
                for (base, piece) in complete {
                    let (index, own) = (piece.positions.start / chunk, base + memory);
                    if index == 0 && self.config.sinks > 0 {
                        let rows = sinks.len()..sinks.len() + self.config.sinks;
                        sinks.extend(own..own + self.config.sinks);
                        copies.push((true, RowCopy { rows, at: *base }));
                    }
                    let before = blocks.len();
                    let kept = self.config.kept_blocks(index);
                    blocks.extend(kept.map(|first| (own + first..own + first + self.config.ratio).collect::<Vec<_>>()));
                    let first = if index == 0 { self.config.sinks } else { self.config.memory(index) };
                    copies.push((false, RowCopy { rows: before..blocks.len(), at: base + first }));
                }
                let pooled = (!blocks.is_empty()).then(|| self.pooled([&keys, &values], &blocks));
                let whole = (!sinks.is_empty()).then(|| [&keys, &values].map(|x| take(x.clone(), &sinks)));
                drop((keys, values));
                for (is_sink, rows) in [(true, whole), (false, pooled)] {
                    let copies = copies.iter().filter(|(sink, copy)| *sink == is_sink && !copy.rows.is_empty());
                    let copies: Arc<[RowCopy]> = copies.map(|(_, copy)| copy.clone()).collect();
                    if let Some(rows) = rows {
                        let _ = cache.write(rows.map(flat), &copies);
                    }
                }
            }
        }
        if outputs.len() == 1 {
            return outputs.remove(0);
        }
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, row)| back[*row] = at);
        take(Tensor::cat(outputs, 0), &back)
    }

    /// Descriptors of blocks of rows: keys and values, `[blocks, K, H]` each.
    fn pooled(&self, [k, v]: [&Tensor<3>; 2], blocks: &[Vec<usize>]) -> [Tensor<3>; 2] {
        let (tokens, middle) = self.config.pooled();
        let turned = |keys, token| self.turned(keys, token, middle);
        [pool(k, blocks, tokens.clone(), turned), pool(v, blocks, tokens, |values, _| values)]
    }

    /// Keys of the tokens `from` of blocks, turned to the positions of their tokens `to`.
    fn turned(&self, keys: Tensor<3>, from: usize, to: usize) -> Tensor<3> {
        let Some(rope) = self.rope.as_ref().filter(|_| from != to) else { return keys };
        let [blocks, heads, head_dim] = keys.dims();
        let angles = rope.angles(&[from.abs_diff(to)], &keys.device().inner());
        let sin = if from > to { -angles.sin } else { angles.sin };
        kernels::rope(keys.reshape([blocks, 1, heads, head_dim]), angles.cos, sin).reshape([blocks, heads, head_dim])
    }
}

/// Means of rows of `x [S, K, H]`: of the rows that `tokens` are in each block, after `change` of
/// those of one token of all blocks, `[blocks, K, H]` each → `[blocks, K, H]`.
///
/// # Panics
/// When there is no token, or a block does not have one.
pub fn pool(
    x: &Tensor<3>,
    blocks: &[Vec<usize>],
    tokens: impl IntoIterator<Item = usize>,
    change: impl Fn(Tensor<3>, usize) -> Tensor<3>,
) -> Tensor<3> {
    let rows = |token: usize| blocks.iter().map(|block| block[token]).collect::<Vec<_>>();
    let parts: Vec<_> = tokens.into_iter().map(|token| change(take(x.clone(), &rows(token)), token)).collect();
    let count = parts.len() as f32;
    match parts.into_iter().reduce(|sum, part| sum + part) {
        Some(sum) if count > 1.0 => sum / count,
        Some(only) => only,
        None => panic!("a pool of no tokens"),
    }
}

/// Rows of `x [S, K, H]` by index.
pub(super) fn take(x: Tensor<3>, rows: &[usize]) -> Tensor<3> {
    let [count, heads, head_dim] = x.dims();
    let gathered = kernels::gather(x.reshape([count, heads * head_dim]), &rows.into());
    gathered.reshape([rows.len(), heads, head_dim])
}
