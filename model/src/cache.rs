//! Keys and values of past tokens, one slot per depth.
//!
//! Where every token goes through every depth, a slot is allocated once and all rows of a batch have the same length. In a recursion
//! whose router leaves tokens out, a slot holds the tokens that reached it: each row has its own length, and the slot grows.

use crate::kernels::{Grid, Layout, Segment};
use burn::tensor::{Device, Tensor};
use retie_config::ModelConfig;
use std::ops::Range;

/// Buffers of every depth, and how much of them is filled.
#[derive(Debug)]
pub struct KvCache {
    /// `[B, room, K, H]` each.
    slots: Vec<Option<[Tensor<4>; 2]>>,
    capacity: usize,
    len: usize,
    /// Tokens of each row that went through each recursion; empty for a recursion that all tokens go through.
    reached: Vec<Vec<usize>>,
}

/// One depth's part of a cache during a forward pass.
#[derive(Debug)]
pub struct KvSlot<'a> {
    buffers: &'a mut Option<[Tensor<4>; 2]>,
    place: Place<'a>,
}

/// Where new keys go.
#[derive(Debug)]
enum Place<'a> {
    /// Behind the first tokens of every row, as many for each.
    Behind(usize),
    /// Run by run.
    Runs(&'a [Run]),
}

/// Consecutive query rows that join one row of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Query rows.
    pub queries: Range<usize>,
    /// Row of the cache.
    pub row: usize,
    /// Tokens that are there already.
    pub start: usize,
}

/// Part of a slot by which it grows at least.
const GROWTH: f64 = 0.125;

impl KvCache {
    /// Room for `capacity` tokens in each of `batch` rows. A recursion with a router begins with room for its share of them.
    #[must_use]
    pub fn new(config: &ModelConfig, batch: usize, capacity: usize, device: &Device) -> Self {
        let (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim);
        let empty = |room: usize| {
            let zeros = || Tensor::zeros([batch, room, kv_heads, head_dim], device);
            Some([zeros(), zeros()])
        };
        let mut slots: Vec<_> = Vec::with_capacity(config.num_hidden_layers);
        let mut reached = Vec::new();
        let recursion = config.recursion.as_ref().and_then(|r| Some((r.router.as_ref()?, r.share_map(config).ok()?)));
        if let Some((router, map)) = recursion {
            let part = |r: usize| router.part(r, map.num_recursions());
            for step in map.depths() {
                let part = step.recursion.and_then(part).unwrap_or(1.0);
                slots.push(empty((part * capacity as f64).ceil() as usize));
            }
            let rows = |r: usize| if part(r).is_some() { vec![0; batch] } else { Vec::new() };
            reached = (0..map.num_recursions()).map(rows).collect();
        } else {
            slots.extend((0..config.num_hidden_layers).map(|_| empty(capacity)));
        }
        Self { slots, capacity, len: 0, reached }
    }

    /// Tokens that it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of its buffers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let buffers = self.slots.iter().flatten().flatten();
        buffers.map(|buffer| buffer.dims().iter().product::<usize>() * size_of::<f32>()).sum()
    }

    /// Tokens of each row that went through recursion `recursion`, if its router leaves some out.
    #[must_use]
    pub fn reached(&self, recursion: usize) -> Option<&[usize]> {
        self.reached.get(recursion).map(Vec::as_slice).filter(|rows| !rows.is_empty())
    }

    /// The rows of a forward pass over `tokens` more tokens in each of `batch` rows.
    pub(crate) fn layout(&self, batch: usize, tokens: usize) -> Layout {
        let kv_len = self.len + tokens;
        assert!(kv_len <= self.capacity, "{kv_len} tokens in a cache for {}", self.capacity);
        Layout::cached(Grid { batch, tokens, kv_len, capacity: self.capacity })
    }

    pub(crate) fn slot(&mut self, depth: usize) -> KvSlot<'_> {
        KvSlot { buffers: &mut self.slots[depth], place: Place::Behind(self.len) }
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Makes room in `depths`, those of a recursion, for `tokens` more tokens of each row; gives where they go and the layout of an
    /// attention over them, or `None` if the recursion takes all tokens.
    pub(crate) fn make_room(
        &mut self,
        recursion: usize,
        depths: Range<usize>,
        tokens: &[usize],
    ) -> Option<(Vec<Run>, Layout)> {
        let reached = self.reached.get(recursion).filter(|rows| !rows.is_empty())?;
        let needed = reached.iter().zip(tokens).map(|(len, new)| len + new).max().unwrap_or(0);
        let mut room = 0;
        for slot in &mut self.slots[depths] {
            room = grow(slot, needed, self.capacity);
        }
        let (mut runs, mut segments, mut start) = (Vec::new(), Vec::new(), 0);
        for (row, (len, new)) in reached.iter().zip(tokens).enumerate().filter(|(_, (_, new))| **new > 0) {
            let queries = start..start + new;
            start += new;
            segments.push(Segment { queries: queries.clone(), prefix: 0..0, keys: row * room..row * room + len + new });
            runs.push(Run { queries, row, start: *len });
        }
        Some((runs, Layout::ragged(segments)))
    }

    /// The part of a depth whose tokens go where [`KvCache::make_room`] said.
    pub(crate) fn slot_for<'a>(&'a mut self, depth: usize, runs: &'a [Run]) -> KvSlot<'a> {
        KvSlot { buffers: &mut self.slots[depth], place: Place::Runs(runs) }
    }

    pub(crate) fn advance_recursion(&mut self, recursion: usize, tokens: &[usize]) {
        if let Some(reached) = self.reached.get_mut(recursion) {
            reached.iter_mut().zip(tokens).for_each(|(len, new)| *len += new);
        }
    }
}

/// Makes the buffers of a slot hold `needed` tokens a row, of at most `capacity`; gives what they hold.
fn grow(slot: &mut Option<[Tensor<4>; 2]>, needed: usize, capacity: usize) -> usize {
    let Some(buffers) = slot.take() else { unreachable!("a slot is put back after every use") };
    let [batch, room, heads, head_dim] = buffers[0].dims();
    if needed <= room {
        *slot = Some(buffers);
        return room;
    }
    let more = needed.max(room + (room as f64 * GROWTH).ceil() as usize).min(capacity);
    *slot = Some(buffers.map(|buffer| {
        let larger = Tensor::zeros([batch, more, heads, head_dim], &buffer.device());
        if room == 0 { larger } else { larger.slice_assign([0..batch, 0..room, 0..heads, 0..head_dim], buffer) }
    }));
    more
}

impl KvSlot<'_> {
    /// Writes `k`, `v` `[B, T, K, H]` (run by run: `[1, M, K, H]`) behind what is there; gives the buffers `[B, room, K, H]`.
    pub(crate) fn append(self, k: Tensor<4>, v: Tensor<4>) -> [Tensor<4>; 2] {
        let [batch, tokens, heads, head_dim] = k.dims();
        // Taken out, so that the buffer has one owner and is written in place.
        let [mut keys, mut values] = match self.buffers.take() {
            Some(buffers) => buffers,
            None => unreachable!("a slot is put back after every use"),
        };
        match self.place {
            Place::Behind(len) => {
                let ranges = [0..batch, len..len + tokens, 0..heads, 0..head_dim];
                keys = keys.slice_assign(ranges.clone(), k);
                values = values.slice_assign(ranges, v);
            }
            Place::Runs(runs) => {
                for Run { queries, row, start } in runs {
                    let rows = |x: &Tensor<4>| x.clone().narrow(1, queries.start, queries.len());
                    let ranges = [*row..row + 1, *start..start + queries.len(), 0..heads, 0..head_dim];
                    keys = keys.slice_assign(ranges.clone(), rows(&k));
                    values = values.slice_assign(ranges, rows(&v));
                }
            }
        }
        *self.buffers = Some([keys.clone(), values.clone()]);
        [keys, values]
    }
}
