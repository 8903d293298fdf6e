//! Tokens that a free slot still holds: a sequence that begins with them need not read them again.
//! A slot can also get the first tokens of another one, by a copy of their keys and values.

use super::{KvCache, Slot};
use crate::{
    exit::Pending,
    kernels::{self, RowCopy, RowSet, write_keys_values},
};
use std::sync::Arc;

impl KvCache {
    /// True if a slot can be cut back to any of its first tokens, so that free slots can be held:
    /// not where depths have descriptors or latents of chunks, or the state of a convolution, or
    /// recursions run over coarse tokens.
    #[must_use]
    pub fn holds_prefixes(&self) -> bool {
        let is_whole = self.states.iter().all(Option::is_none) && self.coarse.iter().all(Option::is_none);
        self.chunks.is_empty() && is_whole
    }

    /// True if tokens can be copied from slot to slot: where recursions hold a part of the tokens,
    /// or some wait for later ones, they cannot.
    #[must_use]
    pub fn copies_prefixes(&self) -> bool {
        let holds_all = self.selected.iter().all(Option::is_none);
        self.holds_prefixes() && holds_all && self.pending.is_empty()
    }

    /// Frees a slot, which goes on to hold the first `len` tokens of its sequence.
    ///
    /// # Panics
    /// When the slot is free or holds fewer tokens, or not [`KvCache::holds_prefixes`].
    pub fn release(&mut self, slot: Slot, len: usize) {
        assert!(self.holds_prefixes(), "a slot that cannot be cut back");
        self.crop(slot, len);
        self.lengths[slot.0] = None;
        self.held[slot.0] = len;
    }

    /// Assigns a free slot to a new sequence, which begins with the first `len` tokens that the
    /// slot holds.
    ///
    /// # Panics
    /// When the slot is occupied, or holds fewer tokens.
    pub fn admit_at(&mut self, slot: Slot, len: usize) {
        assert!(self.lengths[slot.0].is_none(), "slot {} is occupied", slot.0);
        let held = std::mem::take(&mut self.held[slot.0]);
        self.lengths[slot.0] = Some(held);
        self.crop(slot, len);
    }

    /// Copies the first `len` tokens of `from`, free or not, to the free slot `to`, which holds no
    /// others then.
    ///
    /// # Panics
    /// When `to` is occupied, `from` holds fewer tokens, or not [`KvCache::copies_prefixes`].
    pub fn copy_prefix(&mut self, from: Slot, to: Slot, len: usize) {
        assert!(self.copies_prefixes() && self.lengths[to.0].is_none(), "a copy to slot {}", to.0);
        let there = self.lengths[from.0].unwrap_or(self.held[from.0]);
        assert!(len <= there && from != to, "{len} tokens of {there}");
        let start = from.0 * self.capacity;
        let rows: RowSet = (start..start + len).collect();
        let copies: Arc<[RowCopy]> = [RowCopy { rows: 0..len, at: to.0 * self.capacity }].into();
        for buffers in &mut self.depths {
            // Taken out, so that the buffers have one owner and are written in place.
            let Some(all) = buffers.take() else { continue };
            let some = all.each_ref().map(|all| kernels::gather(all.clone(), &rows));
            *buffers = Some(write_keys_values(all, some, &copies));
        }
        self.held[to.0] = len;
    }

    /// Number of tokens that a free slot holds; 0 for an occupied one.
    #[must_use]
    pub fn held(&self, slot: Slot) -> usize {
        self.held[slot.0]
    }

    /// Free slots, ascending.
    pub fn free_slots(&self) -> impl Iterator<Item = Slot> {
        self.lengths.iter().enumerate().filter(|(_, len)| len.is_none()).map(|(slot, _)| Slot(slot))
    }

    /// Number of tokens that wait in front of each recursion.
    #[must_use]
    pub fn num_pending(&self) -> Vec<usize> {
        self.pending.iter().map(Pending::len).collect()
    }
}
