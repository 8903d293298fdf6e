//! KV cache: keys and values of past tokens, with one slot per sequence and buffers per depth.
//!
//! A slot has room for `capacity` tokens and its own length. Sequences are admitted
//! ([`KvCache::admit`]) and evicted ([`KvCache::evict`]) one by one. A forward pass continues any
//! subset of them, each by its own number of tokens ([`NewTokens`]): prompts, parts of prompts and
//! single tokens side by side. A free slot can hold on to its tokens for a later sequence
//! (`prefix`).
//!
//! If every token runs through a depth, slot `s` is rows `s·capacity..` of that depth's buffers.
//! A recursion whose router leaves tokens out stores only its selected tokens (`selected`). Depths
//! that reuse the keys and values of the first recursion have no buffers. Depths with descriptors
//! of earlier chunks have room for those and for one chunk (`steps::descriptor`), depths with
//! latents for those and for two chunks (`steps::rg`), recursions over coarse tokens for these
//! (`steps::resolution`).
//!
//! A cache in blocks ([`KvCache::in_blocks`]) gives a slot memory as its sequence grows; its rows
//! lie in pages then (`blocks`).

mod blocks;
mod depth;
mod pages;
mod prefix;
mod selected;

use crate::{
    exit::Pending,
    kernels::{Grid, Layout, RowCopy, RowSet, Segment, write_rows},
};
use blocks::Blocks;
pub use blocks::{HeldTokens, KvBlocks};
use burn::tensor::{Device, Int, Tensor};
pub use depth::DepthCache;
use depth::Writes;
use retie_config::{DepthAssignment, KvSharing, Mechanism, ModelConfig, SkippedKv, StepConfig};
use selected::{Room, SelectedTokens};
use std::{ops::Range, sync::Arc};

/// Buffers of every depth, and the slots of the sequences in them.
#[derive(Debug)]
pub struct KvCache {
    depths: Vec<Buffers>,
    width: usize,
    device: Device,
    capacity: usize,
    /// Number of tokens of the sequence in each slot; `None` for a free slot.
    lengths: Vec<Option<usize>>,
    /// Number of tokens that each free slot still holds.
    held: Vec<usize>,
    /// Selected tokens of each recursion; `None` where the buffers hold every token.
    selected: Vec<Option<SelectedTokens>>,
    /// Tokens that wait in front of each recursion, where skipped ones are made up for.
    pending: Vec<Pending>,
    /// Chunks of depths that hold less of earlier ones.
    chunks: Vec<Chunk>,
    /// State of each depth with a convolution, `[num_slots × tokens, S]`; `None` elsewhere.
    states: Vec<Option<Tensor<2>>>,
    /// Tokens, or coarse tokens, that each depth has room for in a slot.
    rooms: Vec<usize>,
    /// Of each recursion over coarse tokens.
    coarse: Vec<Option<Coarse>>,
    /// Blocks of the depths that hold every token, unless each slot has its rows.
    blocks: Option<Blocks>,
}

/// State of a recursion over coarse tokens.
#[derive(Debug)]
struct Coarse {
    /// Tokens of a coarse token.
    factor: usize,
    /// States of tokens that wait for the rest of their coarse token, `[num_slots × factor, D]`.
    waiting: Option<Tensor<2>>,
    /// What the last complete coarse token of each slot got, `[num_slots, D]`.
    last: Option<Tensor<2>>,
}

/// Chunks of a depth, of which the last is there as it was.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    /// Tokens of a chunk.
    tokens: usize,
    /// Tokens of the last one that have to stay where a sequence is truncated.
    stay: usize,
}

/// Keys and values of a depth, `[rows, K·H]` each; `None` while they are being written, and for
/// depths without buffers.
type Buffers = Option<[Tensor<2>; 2]>;

/// The place of one sequence in a [`KvCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(usize);

/// New tokens of one sequence in a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewTokens {
    /// Slot of the sequence.
    pub slot: Slot,
    /// Number of new tokens, at least one.
    pub tokens: usize,
}

/// Consecutive tokens of the sequence in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Slot of the sequence.
    pub slot: Slot,
    /// Position of the first token.
    pub start: usize,
    /// Number of tokens, at least one.
    pub tokens: usize,
}

impl Slot {
    /// Index of the slot, below [`KvCache::num_slots`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }

    /// The slot with this index.
    pub(crate) fn at(index: usize) -> Self {
        Self(index)
    }
}

impl KvCache {
    /// Empty cache of `num_slots` slots with room for `capacity` tokens each.
    ///
    /// Recursions whose router leaves tokens out get room on demand: exactly enough for the first
    /// forward pass, then a sixteenth more at a time. A slot keeps that room for later sequences.
    #[must_use]
    pub fn new(config: &ModelConfig, num_slots: usize, capacity: usize, device: &Device) -> Self {
        Self::with(config, num_slots, capacity, device, (None, None))
    }

    /// [`KvCache::new`] for tokens that leave the loop early, with a policy for the recursions that
    /// they skip.
    #[must_use]
    pub fn for_exits(
        config: &ModelConfig,
        num_slots: usize,
        capacity: usize,
        device: &Device,
        policy: SkippedKv,
    ) -> Self {
        Self::with(config, num_slots, capacity, device, (Some(policy), None))
    }

    fn with(
        config: &ModelConfig,
        num_slots: usize,
        capacity: usize,
        device: &Device,
        (policy, sizes): (Option<SkippedKv>, Option<KvBlocks>),
    ) -> Self {
        let width = config.key_value_size();
        let zeros = |rows: usize| Tensor::zeros([rows, width], device);
        let buffers_of = |rows: usize| Some([zeros(rows), zeros(rows)]);
        let holding = |tokens: usize| buffers_of(num_slots * tokens);
        let whole = || buffers_of(sizes.map_or(num_slots * capacity, |blocks| blocks.count * blocks.tokens));
        let recursion = config.recursion.as_ref().map(|recursion| (recursion, config.share_map()));
        let num_pending = config.share_map().num_recursions();
        let pending = match policy {
            Some(SkippedKv::Recompute) => (0..num_pending).map(|_| Pending::default()).collect(),
            _ => Vec::new(),
        };
        let mut in_blocks: Vec<usize> = (0..config.share_map().depths().len()).collect();
        let (depths, selected) = match recursion {
            None => ((0..config.num_hidden_layers).map(|_| whole()).collect(), Vec::new()),
            Some((recursion, map)) => {
                let kv_sharing = recursion.kv_sharing;
                let leaves_out = |r| {
                    let by_router = recursion.router.as_ref().is_some_and(|router| !router.takes_all(r));
                    by_router || r > 0 && policy == Some(SkippedKv::Skip)
                };
                let selects = |r| kv_sharing == KvSharing::RecursionWise && leaves_out(r);
                let buffers = |recursion: Option<usize>| match recursion {
                    Some(r) if r > 0 && kv_sharing == KvSharing::Shared => None,
                    Some(r) if selects(r) => None,
                    _ => whole(),
                };
                let room = |depth: &DepthAssignment| config.step_room(depth, capacity);
                let bounded = |depth: &DepthAssignment| {
                    recursion.step(depth)?.attention.as_ref()?.parameters().cached_keys(room(depth))
                };
                let of_depth = |depth: &DepthAssignment| match bounded(depth) {
                    Some(0) => None,
                    Some(keys) => holding(keys),
                    None if room(depth) < capacity => holding(room(depth)),
                    None => buffers(depth.recursion),
                };
                let depths: Vec<Buffers> = map.depths().iter().map(of_depth).collect();
                let is_whole = |depth: &DepthAssignment| bounded(depth).is_none() && room(depth) >= capacity;
                in_blocks.retain(|depth| depths[*depth].is_some() && is_whole(&map.depths()[*depth]));
                let new = || match sizes {
                    None => SelectedTokens::new(num_slots, capacity),
                    Some(sizes) => SelectedTokens::in_pages(num_slots, capacity, sizes.tokens),
                };
                let selected = |r| selects(r).then(new);
                (depths, (0..map.num_recursions()).map(selected).collect())
            }
        };
        let (chunks, states) = (chunks_of(config), states_of(config, num_slots, device));
        let coarse = coarse_of(config, num_slots, device);
        let rooms = config.share_map().depths().iter().map(|depth| config.step_room(depth, capacity)).collect();
        let lengths = vec![None; num_slots];
        let held = vec![0; num_slots];
        Self {
            depths,
            width,
            device: device.clone(),
            capacity,
            lengths,
            held,
            selected,
            pending,
            chunks,
            states,
            rooms,
            coarse,
            blocks: sizes.map(|sizes| Blocks::new((num_slots, capacity), sizes, in_blocks)),
        }
    }

    /// Tokens that wait in front of a recursion.
    pub(crate) fn pending(&mut self, recursion: usize) -> &mut Pending {
        &mut self.pending[recursion]
    }

    /// Cache for a fixed batch: [`KvCache::new`] with an empty sequence in each of `batch` slots.
    #[must_use]
    pub fn for_batch(config: &ModelConfig, batch: usize, capacity: usize, device: &Device) -> Self {
        let mut cache = Self::new(config, batch, capacity, device);
        cache.lengths.fill(Some(0));
        cache
    }

    /// Assigns the first free slot to a new sequence; `None` if no slot is free.
    pub fn admit(&mut self) -> Option<Slot> {
        let slot = self.free_slots().next()?;
        self.admit_at(slot, 0);
        Some(slot)
    }

    /// Frees a slot and drops its sequence.
    pub fn evict(&mut self, slot: Slot) {
        self.crop(slot, 0);
        self.lengths[slot.0] = None;
    }

    /// True if a sequence can be truncated to its first `len` tokens: depths with descriptors or
    /// latents hold only the tokens of the last chunks, convolutions only the last tokens, and
    /// recursions over coarse tokens only those behind the last one that is complete.
    ///
    /// # Panics
    /// When the slot is free.
    #[must_use]
    pub fn can_crop(&self, slot: Slot, len: usize) -> bool {
        let last = self.len(slot).saturating_sub(1);
        let convolves = self.states.iter().any(Option::is_some);
        let is_there = |chunk: &Chunk| len >= last / chunk.tokens * chunk.tokens + chunk.stay;
        let is_behind = |coarse: &Coarse| len >= self.len(slot) / coarse.factor * coarse.factor;
        let is_there = self.chunks.iter().all(is_there) && self.coarse.iter().flatten().all(is_behind);
        len == 0 || len == self.len(slot) || !convolves && is_there
    }

    /// Truncates a sequence to its first `len` tokens.
    ///
    /// # Panics
    /// When the slot is free or holds fewer than `len` tokens, or not [`KvCache::can_crop`].
    pub fn crop(&mut self, slot: Slot, len: usize) {
        let held = self.len(slot);
        assert!(len <= held, "{len} tokens of a sequence of {held}");
        assert!(self.can_crop(slot, len), "{len} tokens of a sequence of {held}, of which chunks are left");
        self.lengths[slot.0] = Some(len);
        self.selected.iter_mut().flatten().for_each(|selected| selected.crop(slot.0, len));
        self.pending.iter_mut().for_each(|pending| pending.crop(slot.0, len));
        if let Some(blocks) = &mut self.blocks {
            blocks.all.crop(slot.0, len);
        }
    }

    /// Number of tokens of the sequence in a slot.
    ///
    /// # Panics
    /// When the slot is free.
    #[must_use]
    pub fn len(&self, slot: Slot) -> usize {
        match self.lengths[slot.0] {
            Some(len) => len,
            None => panic!("slot {} is free", slot.0),
        }
    }

    /// Occupied slots, ascending.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.lengths.iter().enumerate().filter(|(_, len)| len.is_some()).map(|(slot, _)| Slot(slot))
    }

    /// Number of slots, occupied and free.
    #[must_use]
    pub fn num_slots(&self) -> usize {
        self.lengths.len()
    }

    /// Number of free slots.
    #[must_use]
    pub fn num_free_slots(&self) -> usize {
        self.lengths.iter().filter(|len| len.is_none()).count()
    }

    /// Maximum number of tokens in a slot.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Size of the buffers in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let coarse = self.coarse.iter().flatten().flat_map(|coarse| coarse.waiting.iter().chain(&coarse.last));
        let buffers = self.depths.iter().flatten().flatten().chain(self.states.iter().flatten()).chain(coarse);
        buffers.map(|buffer| buffer.dims().iter().product::<usize>() * size_of::<f32>()).sum()
    }

    /// Number of tokens in each slot that a recursion has selected; `None` if its buffers hold
    /// every token.
    #[must_use]
    pub fn num_selected(&self, recursion: usize) -> Option<Vec<usize>> {
        Some(self.selected.get(recursion)?.as_ref()?.lengths())
    }

    /// `tokens` new tokens for every sequence of a cache with `batch` sequences.
    ///
    /// # Panics
    /// When the cache has another number of sequences than `batch`.
    pub(crate) fn continue_all(&self, batch: usize, tokens: usize) -> Vec<NewTokens> {
        let new: Vec<_> = self.slots().map(|slot| NewTokens { slot, tokens }).collect();
        assert_eq!(batch, new.len(), "rows of a batch, and sequences in the cache");
        new
    }

    /// Layout of a forward pass that continues the sequences of `batch`; their new rows are
    /// concatenated in that order. The keys are rows of the buffers that hold every token.
    ///
    /// # Panics
    /// When a slot is free, has too little room, or occurs twice.
    pub(crate) fn layout(&self, batch: &[NewTokens]) -> Layout {
        if let Some(grid) = self.grid(batch) {
            return Layout::cached(grid).in_pages(self.pages());
        }
        let mut start = 0;
        let segment = |(i, NewTokens { slot, tokens }): (usize, &NewTokens)| {
            assert!(batch[..i].iter().all(|other| other.slot != *slot), "slot {} twice in a batch", slot.0);
            let kv_len = self.len(*slot) + tokens;
            assert!(kv_len <= self.capacity, "{kv_len} tokens in a slot for {}", self.capacity);
            let queries = start..start + tokens;
            start = queries.end;
            let first = slot.0 * self.capacity;
            Segment::last(queries, 0..0, first..first + kv_len)
        };
        Layout::ragged(batch.iter().enumerate().map(segment).collect()).in_pages(self.pages())
    }

    /// Grid of the batch, if its sequences have equal lengths, get equal numbers of tokens and
    /// occupy the first slots in order.
    fn grid(&self, batch: &[NewTokens]) -> Option<Grid> {
        let NewTokens { tokens, slot } = *batch.first()?;
        let held = self.len(slot);
        let alike =
            |(i, new): (usize, &NewTokens)| new.slot.0 == i && new.tokens == tokens && self.lengths[i] == Some(held);
        let grid = Grid { batch: batch.len(), tokens, kv_len: held + tokens, capacity: self.capacity };
        batch.iter().enumerate().all(alike).then_some(grid)
    }

    /// Adds the new tokens of `batch` to the lengths, once every depth has their keys and values.
    pub(crate) fn advance(&mut self, batch: &[NewTokens]) {
        for NewTokens { slot, tokens } in batch {
            self.lengths[slot.0] = Some(self.len(*slot) + tokens);
        }
    }

    /// Adds tokens to a sequence whose keys and values are written part by part
    /// ([`CausalLm::run_part`](crate::CausalLm::run_part)).
    ///
    /// # Panics
    /// When the slot is free or has too little room.
    pub fn extend(&mut self, new: NewTokens) -> Span {
        let (start, NewTokens { slot, tokens }) = (self.len(new.slot), new);
        let end = start + tokens;
        assert!(end <= self.capacity, "{end} tokens in a slot for {}", self.capacity);
        self.lengths[slot.0] = Some(end);
        Span { slot, start, tokens }
    }

    /// Layout of the rows of `spans`, in their order: each row attends to the tokens of its
    /// sequence up to itself.
    pub(crate) fn layout_of(&self, spans: impl IntoIterator<Item = Span>) -> Layout {
        let mut row = 0;
        let segment = |Span { slot, start, tokens }: Span| {
            let queries = row..row + tokens;
            row = queries.end;
            let first = slot.0 * self.capacity;
            Segment::last(queries, 0..0, first..first + start + tokens)
        };
        Layout::ragged(spans.into_iter().map(segment).collect()).in_pages(self.pages())
    }

    /// Buffers of a depth, ready for the new rows of `layout`.
    pub(crate) fn depth(&mut self, depth: usize, layout: &Layout) -> DepthCache<'_> {
        let write = |Segment { queries, keys, .. }: &Segment| {
            let mut start = queries.start;
            layout.key_runs(keys.end - queries.len()..keys.end).map(move |run| {
                let rows = start..start + run.len();
                start = rows.end;
                RowCopy { rows, at: run.start }
            })
        };
        let writes = match layout.own_keys() {
            // Of the first slot, whose tokens are the first rows.
            Some(own) => Writes::Rows(own.clone()),
            None => Writes::Runs(layout.segments().iter().flat_map(write).collect()),
        };
        let (buffers, state) = (&mut self.depths[depth], &mut self.states[depth]);
        DepthCache { writes, buffers, capacity: self.rooms[depth], state }
    }

    /// Tokens, or coarse tokens, that a depth has room for in a slot.
    pub(crate) fn room(&self, depth: usize) -> usize {
        self.rooms[depth]
    }

    /// Of a recursion over coarse tokens: the tokens that wait for the rest of theirs,
    /// `[num_slots × factor, D]`, and what the last complete one of each slot got,
    /// `[num_slots, D]`.
    pub(crate) fn coarse(&self, recursion: usize) -> Option<[Tensor<2>; 2]> {
        let Coarse { waiting, last, .. } = self.coarse.get(recursion)?.as_ref()?;
        Some([waiting.clone()?, last.clone()?])
    }

    /// Copies rows of both into them.
    pub(crate) fn write_coarse(&mut self, recursion: usize, rows: [Option<(Tensor<2>, Vec<RowCopy>)>; 2]) {
        let Some(Some(coarse)) = self.coarse.get_mut(recursion) else { return };
        for (held, new) in [&mut coarse.waiting, &mut coarse.last].into_iter().zip(rows) {
            if let Some((rows, copies)) = new.filter(|(_, copies)| !copies.is_empty()) {
                // Taken out, so that it has one owner and is written in place.
                *held = held.take().map(|held| write_rows(held, rows, &copies.into()));
            }
        }
    }

    /// Layout of a token of the sequence in the first slot, whose position is on the device: its
    /// keys are those up to `position [1]`, where its own keys and values are written.
    pub(crate) fn layout_at(&self, position: &Tensor<1, Int>) -> Layout {
        let grid = Grid { batch: 1, tokens: 1, kv_len: self.capacity, capacity: self.capacity };
        let own = RowSet::on_device(position.clone(), position.clone(), [1].into());
        Layout::cached(grid).with_queries(&[1], own)
    }

    /// Keys and values of every depth that has buffers.
    pub(crate) fn all_buffers(&self) -> impl Iterator<Item = &Tensor<2>> {
        self.depths.iter().flatten().flatten()
    }

    /// Keys and values in the buffers of a depth.
    pub(crate) fn buffers(&self, depth: usize) -> [Tensor<2>; 2] {
        match &self.depths[depth] {
            Some(buffers) => buffers.clone(),
            None => unreachable!("buffers are put back after every use"),
        }
    }

    /// Adds the selected `rows` of a forward pass over `layout` to the tokens of a recursion that
    /// runs `depths`. Returns the layout in which these rows attend to the recursion's tokens, or
    /// `None` if its buffers hold every token.
    pub(crate) fn select(
        &mut self,
        recursion: usize,
        depths: Range<usize>,
        layout: &Layout,
        rows: &[usize],
    ) -> Option<Layout> {
        let selected = self.selected.get_mut(recursion)?.as_mut()?;
        let Room { moves, copies } = selected.make_room(layout, rows);
        for buffers in &mut self.depths[depths] {
            if let Some(moves) = &moves {
                let zeros = || Tensor::zeros([selected.num_rows(), self.width], &self.device);
                *buffers = Some(moved(buffers.take(), [zeros(), zeros()], moves));
            }
            blocks::copy_pages(buffers, selected.page_size(), &copies);
        }
        Some(selected.extend(layout, rows))
    }
}

/// Chunks of the depths of `config` with descriptors or latents.
fn chunks_of(config: &ModelConfig) -> Vec<Chunk> {
    let rows = config.recursion.iter().flat_map(|recursion| &recursion.steps);
    // Coarse tokens are not truncated.
    let rows = rows.filter(|step| step.factor() == 1);
    let chunk = |step: &StepConfig| match step.attention.as_ref()? {
        Mechanism::Descriptor(config) => Some(Chunk { tokens: config.chunk, stay: 0 }),
        // At the end of a chunk nothing is made of it yet.
        Mechanism::Rg(config) => Some(Chunk { tokens: config.latents, stay: 1 }),
        _ => None,
    };
    rows.filter_map(chunk).collect()
}

/// States of the depths of `config` with a convolution: the last rows that it reads, by slot.
fn states_of(config: &ModelConfig, num_slots: usize, device: &Device) -> Vec<Option<Tensor<2>>> {
    let of_depth = |depth: &DepthAssignment| match config.recursion.as_ref()?.step(depth)?.branch.as_ref()? {
        Mechanism::Gnconv(branch) if branch.kernel > 1 => {
            let width = branch.widths(config.hidden_size).iter().sum();
            Some(Tensor::zeros([num_slots * (branch.kernel - 1), width], device))
        }
        _ => None,
    };
    config.share_map().depths().iter().map(of_depth).collect()
}

/// States of the recursions of `config` over coarse tokens, by recursion.
fn coarse_of(config: &ModelConfig, num_slots: usize, device: &Device) -> Vec<Option<Coarse>> {
    let Some(recursion) = &config.recursion else { return Vec::new() };
    let zeros = |tokens: usize| Some(Tensor::zeros([num_slots * tokens, config.hidden_size], device));
    let map = config.share_map();
    let of = |index: usize| {
        let depth = map.depths().iter().find(|depth| depth.recursion == Some(index))?;
        let factor = recursion.step(depth).map(StepConfig::factor).filter(|factor| *factor > 1)?;
        Some(Coarse { factor, waiting: zeros(factor), last: zeros(1) })
    };
    (0..map.num_recursions()).map(of).collect()
}

/// Copies the rows of a depth's buffers, if any, into larger ones.
fn moved(buffers: Buffers, larger: [Tensor<2>; 2], moves: &Arc<[RowCopy]>) -> [Tensor<2>; 2] {
    let Some([old_keys, old_values]) = buffers else { return larger };
    let [keys, values] = larger;
    [write_rows(keys, old_keys, moves), write_rows(values, old_values, moves)]
}
