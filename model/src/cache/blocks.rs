//! A cache in blocks: the rows of the depths that hold every token are divided into blocks, which
//! a sequence gets as it grows (PagedAttention, <https://arxiv.org/abs/2309.06180>). So a budget of
//! blocks is shared by sequences of any length.
//!
//! One table serves all of these depths, as their rows are those of the same tokens; a recursion
//! that selects its tokens has a table of its own (`selected`). Depths with room for a few tokens
//! of each sequence keep it.
//!
//! Tokens can be held beside the sequences ([`KvCache::hold`]), for others that begin with them:
//! these share the blocks ([`KvCache::admit_holding`]), and copy one when they write over what
//! somebody has written in it.

use super::{
    Buffers, KvCache, Slot,
    pages::{PageCopy, PageTable},
    selected::HeldRows,
};
use crate::{
    device::is_host,
    exit::Pending,
    kernels::{self, Pages, RowCopy, RowSet, write_rows},
};
use burn::tensor::Device;
use retie_config::{ModelConfig, SkippedKv};
use std::{ops::Range, sync::Arc};

/// Sizes of the blocks of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvBlocks {
    /// Tokens of a block, at least one.
    pub tokens: usize,
    /// Number of blocks, at least one.
    pub count: usize,
}

impl KvBlocks {
    /// Number of blocks that so many tokens need.
    #[must_use]
    pub fn of(self, tokens: usize) -> usize {
        tokens.div_ceil(self.tokens)
    }
}

/// Blocks of a cache, and who has them.
#[derive(Debug)]
pub(super) struct Blocks {
    sizes: KvBlocks,
    pub all: PageTable,
    /// Depths with buffers in these blocks.
    pub depths: Vec<usize>,
}

/// Tokens of one block, held beside the sequences. [`KvCache::drop_held`] ends it.
#[derive(Debug)]
#[must_use = "a block stays occupied until it is given back"]
pub struct HeldTokens {
    block: u32,
    /// Of each recursion that selects its tokens.
    selected: Vec<Option<HeldRows>>,
    /// Of each recursion that makes up for skipped tokens: those that waited in front of it.
    pending: Vec<Pending>,
}

impl HeldTokens {
    /// True if these tokens can be taken behind `before`, or as the first ones: they were read
    /// behind as many rows of each recursion. A router may decide otherwise where it is a matter
    /// of rounding.
    #[must_use]
    pub fn follows(&self, before: Option<&Self>) -> bool {
        let of_recursion = |(index, rows): (usize, &Option<HeldRows>)| {
            let before = before.and_then(|before| before.selected[index].as_ref());
            rows.as_ref().is_none_or(|rows| rows.follows(before))
        };
        self.selected.iter().enumerate().all(of_recursion)
    }
}

impl Blocks {
    /// Free blocks of the buffers of `depths`, for so many slots of so many tokens.
    pub fn new((num_slots, capacity): (usize, usize), sizes: KvBlocks, depths: Vec<usize>) -> Self {
        let all = PageTable::new(num_slots, capacity, sizes.tokens, sizes.count);
        Self { sizes, all, depths }
    }
}

impl KvCache {
    /// Empty cache of `num_slots` slots, of sequences of up to `capacity` tokens, that get their
    /// memory in blocks; `policy` as in [`KvCache::for_exits`], if tokens leave early. A pass is
    /// over tokens that have been [reserved](KvCache::reserve).
    ///
    /// Recursions that select their tokens get further blocks on demand, a sixteenth more at a
    /// time.
    ///
    /// # Panics
    /// When `device` has no attention over blocks: those other than the CPU have not.
    #[must_use]
    pub fn in_blocks(
        config: &ModelConfig,
        (num_slots, capacity): (usize, usize),
        device: &Device,
        policy: Option<SkippedKv>,
        blocks: KvBlocks,
    ) -> Self {
        assert!(is_host(device), "blocks of a cache that is not in the memory of the host");
        Self::with(config, num_slots, capacity, device, (policy, Some(blocks)))
    }

    /// Sizes of the blocks; `None` if each slot has its rows.
    #[must_use]
    pub fn blocks(&self) -> Option<KvBlocks> {
        self.blocks.as_ref().map(|blocks| blocks.sizes)
    }

    /// Number of blocks that neither a sequence nor held tokens occupy.
    #[must_use]
    pub fn num_free_blocks(&self) -> usize {
        self.blocks.as_ref().map_or(0, |blocks| blocks.all.num_free())
    }

    /// Number of blocks that sequences have; one that several share counts once.
    #[must_use]
    pub fn num_occupied_blocks(&self) -> usize {
        self.blocks.as_ref().map_or(0, |blocks| blocks.all.num_in_slots())
    }

    /// Number of blocks of the sequence in a slot.
    #[must_use]
    pub fn num_blocks(&self, slot: Slot) -> usize {
        self.blocks.as_ref().map_or(0, |blocks| blocks.all.of_slot(slot.0).len())
    }

    /// Where the rows of the slots lie, in the buffers that hold every token.
    pub(crate) fn pages(&self) -> Option<Pages> {
        self.blocks.as_ref().map(|blocks| blocks.all.pages())
    }

    /// Gives a sequence the blocks to grow to `len` tokens; false if there are too few.
    ///
    /// # Panics
    /// When the slot is free, or `len` exceeds the capacity.
    pub fn reserve(&mut self, slot: Slot, len: usize) -> bool {
        let held = self.len(slot);
        assert!(len <= self.capacity, "{len} tokens in a slot for {}", self.capacity);
        let Some(Blocks { sizes, all, depths }) = &mut self.blocks else { return true };
        if all.missing(slot.0, held, len) > all.num_free() {
            return false;
        }
        if let Some(copy) = all.reserve(slot.0, held, len) {
            for depth in depths {
                copy_pages(&mut self.depths[*depth], sizes.tokens, &[copy]);
            }
        }
        true
    }

    /// Holds tokens of a sequence that lie in one of its blocks, from the first of the block on.
    ///
    /// # Panics
    /// When they do not, or not [`KvCache::holds_prefixes`], or the cache is not in blocks.
    pub fn hold(&mut self, slot: Slot, tokens: Range<usize>) -> HeldTokens {
        assert!(self.holds_prefixes() && tokens.end <= self.len(slot), "{tokens:?} of slot {}", slot.0);
        let Some(Blocks { sizes, all, .. }) = &mut self.blocks else { panic!("a cache without blocks") };
        let is_one = tokens.start.is_multiple_of(sizes.tokens) && (1..=sizes.tokens).contains(&tokens.len());
        assert!(is_one, "{tokens:?} in blocks of {}", sizes.tokens);
        let block = all.of_slot(slot.0)[tokens.start / sizes.tokens];
        all.hold(block);
        let hold = |selected: &mut Option<super::SelectedTokens>| selected.as_mut()?.hold(slot.0, tokens.clone());
        let selected = self.selected.iter_mut().map(hold).collect();
        let pending = self.pending.iter().map(|pending| pending.copies(slot.0, &tokens)).collect();
        HeldTokens { block, selected, pending }
    }

    /// True if dropping held tokens frees their block.
    #[must_use]
    pub fn is_last_holder(&self, held: &HeldTokens) -> bool {
        self.blocks.as_ref().is_some_and(|blocks| blocks.all.is_held_once(held.block))
    }

    /// Drops held tokens.
    pub fn drop_held(&mut self, held: HeldTokens) {
        if let Some(blocks) = &mut self.blocks {
            blocks.all.release(held.block);
        }
        for (selected, held) in self.selected.iter_mut().zip(held.selected) {
            if let Some((selected, held)) = selected.as_mut().zip(held) {
                selected.drop_held(&held);
            }
        }
    }

    /// Assigns the first free slot to a new sequence whose first `len` tokens are held: the blocks
    /// from the first on, of which the last may hold more. `None` if no slot is free.
    ///
    /// # Panics
    /// When there are more or fewer tokens in the blocks.
    pub fn admit_holding(&mut self, held: &[&HeldTokens], len: usize) -> Option<Slot> {
        let slot = self.admit()?;
        let Some(Blocks { sizes, all, .. }) = &mut self.blocks else { return Some(slot) };
        assert_eq!(held.len(), sizes.of(len), "blocks of {len} tokens");
        held.iter().for_each(|held| all.share(slot.0, held.block));
        self.lengths[slot.0] = Some(len);
        for (recursion, selected) in self.selected.iter_mut().enumerate() {
            let rows: Vec<&HeldRows> = held.iter().filter_map(|held| held.selected[recursion].as_ref()).collect();
            if let Some(selected) = selected {
                selected.admit(slot.0, &rows, len);
            }
        }
        for (recursion, pending) in self.pending.iter_mut().enumerate() {
            held.iter().for_each(|held| pending.add_copies(&held.pending[recursion], slot.0, len));
        }
        Some(slot)
    }
}

/// Copies the first rows of pages of `size` rows within the buffers of a depth, if it has any.
pub(super) fn copy_pages(buffers: &mut Buffers, size: usize, copies: &[PageCopy]) {
    if copies.is_empty() {
        return;
    }
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for copy in copies {
        let (first, start) = (copy.from as usize * size, from.len());
        from.extend(first..first + copy.rows);
        to.push(RowCopy { rows: start..from.len(), at: copy.to as usize * size });
    }
    let (from, to): (RowSet, Arc<[RowCopy]>) = (from.into(), to.into());
    // Taken out, so that the buffers have one owner and are written in place.
    *buffers = buffers.take().map(|all| {
        all.map(|all| {
            let some = kernels::gather(all.clone(), &from);
            write_rows(all, some, &to)
        })
    });
}
