//! Recursive generalisation attention (`retie_config::RgConfig`), over whole sequences and with a
//! cache of bounded size.
//!
//! Keys come with their rotary embedding. They are turned back before the filter, and latents are
//! turned to positions of their own.
//!
//! In a cache a slot has the rows of its latents, which end where those of the previous chunk
//! begin, and behind these those of the chunk that is being filled. Before the first token of a
//! chunk the previous one becomes latents and the last one the previous. So a sequence can be cut
//! back within its last chunk, but not to the beginning of it.

use super::{
    StepLoader,
    descriptor::{Piece, Projected, take},
    nll::Affine,
};
use crate::{
    cache::DepthCache,
    kernels::{self, Layout, RowCopy, RowSet, Scoring, Segment},
    rope::RopeFrequencies,
};
use burn::{
    module::Module,
    tensor::{Tensor, TensorData},
};
use retie_checkpoint::CheckpointError;
use retie_config::{Latent, RgConfig};
use std::collections::{BTreeMap, BTreeSet};

/// The filters of one depth: `weight [K·H, stride]`, `bias [K·H]` each.
#[derive(Module, Debug)]
pub struct Rg {
    pub keys: Affine,
    pub values: Affine,
}

impl Rg {
    pub(super) fn load(from: &StepLoader<'_>) -> Result<Option<Self>, CheckpointError> {
        let Some(weight) = from.optional("rg.keys.weight")? else { return Ok(None) };
        Ok(Some(Self {
            keys: Affine { weight, bias: from.param("rg.keys.bias")? },
            values: Affine { weight: from.param("rg.values.weight")?, bias: from.param("rg.values.bias")? },
        }))
    }
}

/// Attention of one depth.
pub(crate) struct Generalised<'a> {
    pub config: &'a RgConfig,
    pub filters: &'a Rg,
    /// Rotary embedding of the keys, if any.
    pub rope: Option<RopeFrequencies>,
    pub scoring: Scoring,
}

/// A latent of one of several sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Of {
    sequence: usize,
    latent: Latent,
}

/// Keys and values of tokens and latents, `[rows, K·H]` each, and the rows of each.
struct Reduced {
    kv: [Tensor<2>; 2],
    rows: BTreeMap<Of, usize>,
}

/// Beginning of a chunk in a cache.
#[derive(Clone, Copy)]
struct Turnover {
    /// First row of the slot.
    base: usize,
    /// The chunk that begins.
    chunk: usize,
}

fn flat(x: Tensor<3>) -> Tensor<2> {
    let [rows, heads, head_dim] = x.dims();
    x.reshape([rows, heads * head_dim])
}

impl Generalised<'_> {
    fn before(&self, sequence: usize, chunk: usize) -> impl Iterator<Item = Of> {
        self.config.latents_before(chunk).into_iter().map(move |latent| Of { sequence, latent })
    }

    /// Attention over whole sequences → `[M, N, H]`.
    pub fn attend(&self, Projected { q, k, v }: Projected, layout: &Layout) -> Tensor<3> {
        let chunk = self.config.latents;
        let [num_keys, kv_heads, head_dim] = k.dims();
        let row = |segment: &Segment, position: usize| match position.checked_sub(segment.prefix.len()) {
            None => segment.prefix.start + position,
            Some(index) => segment.keys.start + index,
        };
        let sequences: Vec<(&Segment, Vec<Piece>)> =
            layout.segments().iter().map(|segment| (segment, Piece::of(segment, chunk))).collect();
        // Tokens that become latents, and the latents that some query attends to.
        let (mut tokens, mut known, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, (segment, pieces)) in sequences.iter().enumerate() {
            let last = pieces.last().map_or(0, |piece| piece.chunk(chunk));
            for position in 0..last.saturating_sub(1) * chunk {
                tokens.push(row(segment, position));
                known.push(Of { sequence, latent: Latent { level: 0, index: position } });
            }
            wanted.extend(pieces.iter().flat_map(|piece| self.before(sequence, piece.chunk(chunk))));
        }
        if tokens.is_empty() {
            return kernels::attention(q, k, v, layout, self.scoring);
        }
        let tokens = RowSet::from(tokens);
        let all = [flat(k), flat(v)];
        let reduced =
            self.reduce(all.clone().map(|x| kernels::gather(x, &tokens)), known, &wanted, [kv_heads, head_dim]);
        let (mut rows, mut segments) = (Vec::new(), Vec::new());
        for (sequence, (segment, pieces)) in sequences.into_iter().enumerate() {
            let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { continue };
            let whole = first.chunk(chunk).saturating_sub(1) * chunk;
            let exact = rows.len();
            rows.extend((whole..last.positions.end).map(|position| row(segment, position)));
            for piece in pieces {
                let index = piece.chunk(chunk);
                let latents = rows.len();
                rows.extend(self.before(sequence, index).map(|latent| num_keys + reduced.rows[&latent]));
                let (seen, start) = (rows.len() - latents, index.saturating_sub(1) * chunk);
                segments.push(Segment {
                    own: Some(piece.positions.clone().map(|position| seen + position - start).collect()),
                    queries: piece.rows,
                    prefix: latents..rows.len(),
                    keys: exact + start - whole..exact + piece.positions.end - whole,
                });
            }
        }
        let rows = RowSet::from(rows);
        let [k, v] = pairs(all, reduced.kv)
            .map(|both| kernels::gather(Tensor::cat(both, 0), &rows).reshape([rows.len(), kv_heads, head_dim]));
        kernels::attention(q, k, v, &Layout::ragged(segments), self.scoring)
    }

    /// Attention of new tokens of cached sequences → `[M, N, H]`. The tokens are added to `cache`.
    pub fn attend_cached(
        &self,
        Projected { q, k, v }: Projected,
        layout: &Layout,
        mut cache: DepthCache<'_>,
    ) -> Tensor<3> {
        let [_, kv_heads, head_dim] = k.dims();
        let (chunk, capacity) = (self.config.latents, cache.capacity());
        let chunks = capacity.div_ceil(chunk);
        let (room, most) = (self.config.cached(capacity), self.config.most_latents(chunks));
        let filled = most + self.config.whole_before(chunks.saturating_sub(1));
        let sequences: Vec<(usize, Vec<Piece>)> = layout
            .segments()
            .iter()
            .map(|segment| (segment.keys.start / capacity * room, Piece::of(segment, chunk)))
            .collect();
        let num_waves = sequences.iter().map(|(_, pieces)| pieces.len()).max().unwrap_or(0);
        let new = [flat(k), flat(v)];
        let (mut outputs, mut order) = (Vec::new(), Vec::new());
        for wave in 0..num_waves {
            let pieces: Vec<(usize, &Piece)> =
                sequences.iter().filter_map(|(base, pieces)| Some((*base, pieces.get(wave)?))).collect();
            let begins = |(base, piece): &(usize, &Piece)| {
                let begins = piece.positions.start > 0 && piece.positions.start.is_multiple_of(chunk);
                begins.then(|| Turnover { base: *base, chunk: piece.chunk(chunk) })
            };
            let turnovers: Vec<Turnover> = pieces.iter().filter_map(begins).collect();
            if !turnovers.is_empty() {
                self.turn_over(&turnovers, [most, filled], [kv_heads, head_dim], &mut cache);
            }
            let copy = |(base, piece): &(usize, &Piece)| RowCopy {
                rows: piece.rows.clone(),
                at: base + filled + piece.positions.start % chunk,
            };
            let kv = cache.write(new.clone(), &pieces.iter().map(copy).collect());
            let mut segments = Vec::new();
            let from = order.len();
            for (base, piece) in &pieces {
                let start = order.len() - from;
                order.extend(piece.rows.clone());
                let index = piece.chunk(chunk);
                let latents = self.config.latents_before(index).len();
                let held = (piece.positions.end - 1) % chunk + 1;
                segments.push(Segment::last(
                    start..start + piece.rows.len(),
                    base + most - latents..base + most + self.config.whole_before(index),
                    base + filled..base + filled + held,
                ));
            }
            let queries = if num_waves == 1 { q.clone() } else { take(q.clone(), &order[from..]) };
            let [keys, values] = kv.map(|x| {
                let [rows, _] = x.dims();
                x.reshape([rows, kv_heads, head_dim])
            });
            outputs.push(kernels::attention(queries, keys, values, &Layout::ragged(segments), self.scoring));
        }
        if outputs.len() == 1 {
            return outputs.remove(0);
        }
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, row)| back[*row] = at);
        take(Tensor::cat(outputs, 0), &back)
    }

    /// Makes latents of the previous chunks of slots, and the last chunks the previous ones.
    fn turn_over(
        &self,
        turnovers: &[Turnover],
        [most, filled]: [usize; 2],
        sizes: [usize; 2],
        cache: &mut DepthCache<'_>,
    ) {
        let chunk = self.config.latents;
        let (mut rows, mut known, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, Turnover { base, chunk: index }) in turnovers.iter().enumerate() {
            if *index < 2 {
                continue;
            }
            let before: Vec<Of> = self.before(sequence, index - 1).collect();
            rows.extend(base + most - before.len()..base + most + chunk);
            known.extend(before);
            let tokens = (index - 2) * chunk..(index - 1) * chunk;
            known.extend(tokens.map(|index| Of { sequence, latent: Latent { level: 0, index } }));
            wanted.extend(self.before(sequence, *index));
        }
        let last: RowSet =
            turnovers.iter().flat_map(|turnover| turnover.base + filled..turnover.base + filled + chunk).collect();
        let rows = RowSet::from(rows);
        let buffers = cache.read();
        let previous = buffers.clone().map(|x| kernels::gather(x, &last));
        if wanted.is_empty() {
            drop(buffers);
            let copy = |(index, turnover): (usize, &Turnover)| RowCopy {
                rows: index * chunk..(index + 1) * chunk,
                at: turnover.base + most,
            };
            let _ = cache.write(previous, &turnovers.iter().enumerate().map(copy).collect());
            return;
        }
        let held = buffers.map(|x| kernels::gather(x, &rows));
        let reduced = self.reduce(held, known, &wanted, sizes);
        let latents: RowSet = wanted.iter().map(|latent| reduced.rows[latent]).collect();
        let (mut copies, mut from) = (Vec::new(), turnovers.len() * chunk);
        for (index, Turnover { base, chunk: begun }) in turnovers.iter().enumerate() {
            copies.push(RowCopy { rows: index * chunk..(index + 1) * chunk, at: base + most });
            let count = self.config.latents_before(*begun).len();
            copies.push(RowCopy { rows: from..from + count, at: base + most - count });
            from += count;
        }
        copies.retain(|copy| !copy.rows.is_empty());
        let written = pairs(previous, reduced.kv.map(|x| kernels::gather(x, &latents)));
        let _ = cache.write(written.map(|both| Tensor::cat(both, 0)), &copies.into());
    }

    /// Adds the latents `wanted`, and what they are made of, behind the rows of `known`.
    fn reduce(&self, [k, v]: [Tensor<2>; 2], known: Vec<Of>, wanted: &[Of], sizes: [usize; 2]) -> Reduced {
        let stride = self.config.stride;
        let mut rows: BTreeMap<Of, usize> = known.iter().copied().zip(0..).collect();
        let mut missing: BTreeMap<u32, BTreeSet<Of>> = BTreeMap::new();
        let mut open = wanted.to_vec();
        while let Some(of) = open.pop() {
            if !rows.contains_key(&of) && missing.entry(of.latent.level).or_default().insert(of) {
                open.extend(of.latent.parts(stride).map(|latent| Of { latent, ..of }));
            }
        }
        if missing.is_empty() {
            return Reduced { kv: [k, v], rows };
        }
        let first = known.len();
        let mut made = [self.turned(k.clone(), &known, true, sizes), v.clone()];
        let mut latents = Vec::new();
        // Levels in ascending order: a latent is made of those of the level below.
        for level in missing.into_values() {
            let parts: Vec<RowSet> = (0..stride)
                .map(|part| {
                    let of = |of: &Of| of.latent.parts(stride).nth(part).map(|latent| rows[&Of { latent, ..*of }]);
                    level.iter().filter_map(of).collect()
                })
                .collect();
            let [keys, values] = made;
            made = [filtered(keys, &parts, &self.filters.keys), filtered(values, &parts, &self.filters.values)];
            for of in level {
                rows.insert(of, first + latents.len());
                latents.push(of);
            }
        }
        let [new_k, new_v] = made.map(|x| x.narrow(0, first, latents.len()));
        let new_k = self.turned(self.in_channels(new_k, sizes), &latents, false, sizes);
        Reduced { kv: [Tensor::cat(vec![k, new_k], 0), Tensor::cat(vec![v, new_v], 0)], rows }
    }

    /// Keys turned to the positions of `of`, or back from them.
    fn turned(&self, keys: Tensor<2>, of: &[Of], back: bool, [heads, head_dim]: [usize; 2]) -> Tensor<2> {
        let Some(rope) = self.rope.as_ref().filter(|_| !of.is_empty()) else { return keys };
        let positions: Vec<usize> = of.iter().map(|of| of.latent.position(self.config.stride)).collect();
        let angles = rope.angles(&positions, &keys.device().inner());
        let sin = if back { -angles.sin } else { angles.sin };
        kernels::rope(keys.reshape([1, of.len(), heads, head_dim]), angles.cos, sin)
            .reshape([of.len(), heads * head_dim])
    }

    /// Keys of latents in the channels that they have.
    fn in_channels(&self, keys: Tensor<2>, [heads, head_dim]: [usize; 2]) -> Tensor<2> {
        let rotary_dim = self.rope.as_ref().map_or(head_dim, RopeFrequencies::rotary_dim);
        let channels = self.config.key_channels(head_dim, rotary_dim);
        if channels.len() == head_dim {
            return keys;
        }
        let mut factors = vec![0.0f32; heads * head_dim];
        (0..heads).for_each(|head| channels.iter().for_each(|channel| factors[head * head_dim + channel] = 1.0));
        let factors = TensorData::new(factors, [1, heads * head_dim]);
        let factors: Tensor<2> = Tensor::from_data(factors, &keys.device());
        keys * factors
    }
}

/// `x [S, W]` and the `k` rows `b + Σ_m w_m ⊙ x[parts_m]` behind it.
fn filtered(x: Tensor<2>, parts: &[RowSet], filter: &Affine) -> Tensor<2> {
    let added = filter.depthwise(&x, parts.iter().cloned());
    Tensor::cat(vec![x, added], 0)
}

/// Keys with keys, and values with values.
fn pairs([k, v]: [Tensor<2>; 2], [other_k, other_v]: [Tensor<2>; 2]) -> [Vec<Tensor<2>>; 2] {
    [vec![k, other_k], vec![v, other_v]]
}
