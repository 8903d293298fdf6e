//! Table of the pages of one set of buffers: which page each part of each slot has, and how many
//! hold it.
//!
//! A page belongs to all that hold it: slots, and tokens that are held beside them
//! ([`super::HeldTokens`]). A slot writes behind its rows in place where nobody has written there,
//! which leaves what others hold of the page as it is; else it gets a copy of its own.
//!
//! A pure value: it knows no tensors.

use crate::kernels::{NO_PAGE, Pages};
use std::{collections::BTreeSet, ops::Range, sync::Arc};

/// Pages of the slots of a cache.
#[derive(Clone, Debug)]
pub(super) struct PageTable {
    /// Rows of a page.
    size: usize,
    /// Rows of a slot at most.
    capacity: usize,
    /// Page of each part of each slot, `[slots × pages of a slot]`.
    table: Arc<[u32]>,
    /// Number of pages of each slot.
    counts: Vec<usize>,
    pages: Vec<Page>,
    free: BTreeSet<u32>,
    /// Number of pages that slots have.
    in_slots: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// Slots among the holders, and all of them.
    slots: u32,
    holders: u32,
    /// Rows that somebody has written.
    filled: usize,
}

/// A page whose first rows go to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageCopy {
    pub from: u32,
    pub to: u32,
    pub rows: usize,
}

impl PageTable {
    /// `count` free pages of `size` rows, for slots of `capacity` rows.
    pub fn new(num_slots: usize, capacity: usize, size: usize, count: usize) -> Self {
        let table = vec![NO_PAGE; num_slots * capacity.div_ceil(size)].into();
        let (counts, pages, free) = (vec![0; num_slots], Vec::new(), BTreeSet::new());
        let mut new = Self { size, capacity, table, counts, pages, free, in_slots: 0 };
        new.add(count);
        new
    }

    /// Adds free pages.
    pub fn add(&mut self, count: usize) {
        let first = self.pages.len();
        self.pages.resize(first + count, Page::default());
        self.free.extend((first..first + count).map(|page| page as u32));
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Number of rows of all pages.
    pub fn num_rows(&self) -> usize {
        self.pages.len() * self.size
    }

    /// Rows of a page.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of pages that nobody holds.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Number of pages that slots have.
    pub fn num_in_slots(&self) -> usize {
        self.in_slots
    }

    /// True if a page has one holder, which is no slot.
    pub fn is_held_once(&self, page: u32) -> bool {
        let Page { slots, holders, .. } = self.pages[page as usize];
        (slots, holders) == (0, 1)
    }

    /// The table, for the kernels.
    pub fn pages(&self) -> Pages {
        Pages::new(Arc::clone(&self.table), self.size, self.capacity)
    }

    /// Pages of a slot.
    pub fn of_slot(&self, slot: usize) -> &[u32] {
        let first = slot * self.per_slot();
        &self.table[first..first + self.counts[slot]]
    }

    fn per_slot(&self) -> usize {
        self.capacity.div_ceil(self.size)
    }

    fn set(&mut self, slot: usize, index: usize, page: u32) {
        let at = slot * self.per_slot() + index;
        Arc::make_mut(&mut self.table)[at] = page;
    }

    /// True if rows behind the first `held` of a slot would be written over those of others.
    fn has_to_copy(&self, slot: usize, held: usize) -> bool {
        let page = self.of_slot(slot).get(held / self.size).map(|page| self.pages[*page as usize]);
        page.is_some_and(|page| page.holders > 1 && page.filled > held % self.size)
    }

    /// Number of free pages that a slot with `held` rows needs to get `rows`.
    pub fn missing(&self, slot: usize, held: usize, rows: usize) -> usize {
        let more = rows.div_ceil(self.size).saturating_sub(self.counts[slot]);
        more + usize::from(rows > held && self.has_to_copy(slot, held))
    }

    /// Gives a slot with `held` rows pages for `rows` rows, to write those behind the first ones.
    /// The result has to be copied before.
    ///
    /// # Panics
    /// When pages are missing.
    pub fn reserve(&mut self, slot: usize, held: usize, rows: usize) -> Option<PageCopy> {
        assert!(self.missing(slot, held, rows) <= self.num_free(), "{rows} rows of slot {slot}: pages are missing");
        if rows <= held {
            return None;
        }
        let copy = self.has_to_copy(slot, held).then(|| {
            let (index, kept) = (held / self.size, held % self.size);
            let from = self.of_slot(slot)[index];
            let to = self.take(index.checked_sub(1).map(|before| self.of_slot(slot)[before]));
            self.pages[to as usize].filled = kept;
            self.set(slot, index, to);
            self.leave(from);
            PageCopy { from, to, rows: kept }
        });
        while self.counts[slot] < rows.div_ceil(self.size) {
            let page = self.take(self.of_slot(slot).last().copied());
            self.push(slot, page);
        }
        for index in held / self.size..self.counts[slot] {
            let page = self.of_slot(slot)[index] as usize;
            let page = &mut self.pages[page];
            page.filled = page.filled.max(rows.saturating_sub(index * self.size).min(self.size));
        }
        copy.filter(|copy| copy.rows > 0)
    }

    /// Takes a free page; the one behind `before` if it is free, so that rows lie in long runs.
    fn take(&mut self, before: Option<u32>) -> u32 {
        let next = before.map(|before| before + 1).filter(|next| self.free.contains(next));
        let Some(page) = next.or_else(|| self.free.first().copied()) else { panic!("no page is free") };
        self.free.remove(&page);
        self.pages[page as usize] = Page::default();
        self.enter(page);
        page
    }

    /// Adds a slot to the holders of a page.
    fn enter(&mut self, page: u32) {
        let held = &mut self.pages[page as usize];
        (held.slots, held.holders) = (held.slots + 1, held.holders + 1);
        self.in_slots += usize::from(held.slots == 1);
    }

    /// Removes a slot from the holders of a page.
    fn leave(&mut self, page: u32) {
        let held = &mut self.pages[page as usize];
        held.slots -= 1;
        self.in_slots -= usize::from(held.slots == 0);
        self.release(page);
    }

    fn push(&mut self, slot: usize, page: u32) {
        self.set(slot, self.counts[slot], page);
        self.counts[slot] += 1;
    }

    /// Gives a slot a further page, which others hold.
    pub fn share(&mut self, slot: usize, page: u32) {
        self.enter(page);
        self.push(slot, page);
    }

    /// Adds a holder that is no slot to those of a page.
    pub fn hold(&mut self, page: u32) {
        self.pages[page as usize].holders += 1;
    }

    /// Removes a holder that is no slot.
    pub fn release(&mut self, page: u32) {
        let held = &mut self.pages[page as usize];
        held.holders -= 1;
        if held.holders == 0 {
            self.free.insert(page);
        }
    }

    /// Releases the pages of a slot behind its first `rows` rows.
    pub fn crop(&mut self, slot: usize, rows: usize) {
        while self.counts[slot] > rows.div_ceil(self.size) {
            let index = self.counts[slot] - 1;
            let page = self.of_slot(slot)[index];
            self.set(slot, index, NO_PAGE);
            self.counts[slot] = index;
            self.leave(page);
        }
    }

    /// Pages that some rows of a slot lie in, and the index of the first among those of the slot;
    /// of no rows that behind all pages before them.
    pub fn covering(&self, slot: usize, rows: Range<usize>) -> (usize, Vec<u32>) {
        if rows.is_empty() {
            return (rows.start.div_ceil(self.size), Vec::new());
        }
        let first = rows.start / self.size;
        (first, self.of_slot(slot)[first..rows.end.div_ceil(self.size)].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLOTS: usize = 3;
    const CAPACITY: usize = 14;
    const SIZE: usize = 4;

    #[derive(Clone, Debug)]
    enum Action {
        /// Some more rows for a slot, where there are pages for them.
        Write(usize, usize),
        Crop(usize, usize),
        /// The rows of a slot in one of its pages are held, up to a number of them.
        Hold(usize, usize, usize),
        Drop(usize),
        /// An empty slot gets what is held of another one, less some rows.
        Share(usize, usize, usize),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            4 => (0..SLOTS, 1..6usize).prop_map(|(slot, rows)| Action::Write(slot, rows)),
            2 => (0..SLOTS, 0..CAPACITY).prop_map(|(slot, rows)| Action::Crop(slot, rows)),
            3 => (0..SLOTS, 0..4usize, 1..=SIZE).prop_map(|(slot, page, rows)| Action::Hold(slot, page, rows)),
            1 => (0..8usize).prop_map(Action::Drop),
            3 => (0..SLOTS, 0..8usize, 0..SIZE).prop_map(|(slot, held, less)| Action::Share(slot, held, less)),
        ]
    }

    /// Rows that are held: the page, and the values of all rows up to the last one of it.
    #[derive(Clone, Debug)]
    struct Held {
        pages: Vec<u32>,
        values: Vec<u32>,
    }

    proptest! {
        /// Buffers of numbers beside a list of numbers for each slot and for all that is held.
        #[test]
        fn every_slot_reads_what_it_wrote_or_shared_and_no_page_is_lost(
            actions in prop::collection::vec(action(), 0..60),
            count in 4..13usize,
        ) {
            let mut table = PageTable::new(SLOTS, CAPACITY, SIZE, count);
            let (mut buffer, mut next) = (vec![0u32; count * SIZE], 0);
            let mut slots: Vec<Vec<u32>> = vec![Vec::new(); SLOTS];
            let mut held: Vec<Held> = Vec::new();
            for action in actions {
                match action {
                    Action::Write(slot, rows) => {
                        let (from, to) = (slots[slot].len(), (slots[slot].len() + rows).min(CAPACITY));
                        let missing = table.missing(slot, from, to);
                        if missing > table.num_free() {
                            continue;
                        }
                        let free = table.num_free();
                        if let Some(PageCopy { from, to, rows }) = table.reserve(slot, from, to) {
                            let from = from as usize * SIZE;
                            buffer.copy_within(from..from + rows, to as usize * SIZE);
                        }
                        // A page that only this slot held is free once it has a copy.
                        prop_assert!(free - table.num_free() <= missing);
                        for row in from..to {
                            next += 1;
                            buffer[table.pages().row(slot * CAPACITY + row)] = next;
                            slots[slot].push(next);
                        }
                    }
                    Action::Crop(slot, rows) => {
                        slots[slot].truncate(rows);
                        table.crop(slot, slots[slot].len());
                    }
                    Action::Hold(slot, page, rows) => {
                        let end = (page * SIZE + rows).min(slots[slot].len());
                        if end <= page * SIZE {
                            continue;
                        }
                        let (first, covering) = table.covering(slot, page * SIZE..end);
                        prop_assert_eq!((first, covering.len()), (page, 1));
                        let pages = table.of_slot(slot)[..=page].to_vec();
                        pages.iter().for_each(|page| table.hold(*page));
                        held.push(Held { pages, values: slots[slot][..end].to_vec() });
                    }
                    Action::Drop(index) if index < held.len() => {
                        held.remove(index).pages.into_iter().for_each(|page| table.release(page));
                    }
                    Action::Share(slot, index, less) if slots[slot].is_empty() && index < held.len() => {
                        let Held { pages, values } = held[index].clone();
                        let len = values.len().saturating_sub(less);
                        slots[slot] = values[..len].to_vec();
                        pages.iter().take(len.div_ceil(SIZE)).for_each(|page| table.share(slot, *page));
                    }
                    Action::Drop(_) | Action::Share(..) => {}
                }
                for (slot, values) in slots.iter().enumerate() {
                    let pages = table.pages();
                    let found: Vec<u32> = (0..values.len()).map(|row| buffer[pages.row(slot * CAPACITY + row)]).collect();
                    prop_assert_eq!(&found, values);
                    prop_assert_eq!(table.of_slot(slot).len(), values.len().div_ceil(SIZE));
                }
                for Held { pages, values } in &held {
                    let row = |row: usize| buffer[pages[row / SIZE] as usize * SIZE + row % SIZE];
                    prop_assert!(values.iter().enumerate().all(|(at, value)| row(at) == *value));
                }
                let occupied: BTreeSet<u32> =
                    (0..SLOTS).flat_map(|slot| table.of_slot(slot).to_vec()).chain(held.iter().flat_map(|held| held.pages.clone())).collect();
                prop_assert_eq!(table.num_free() + occupied.len(), count);
                let in_slots: BTreeSet<u32> = (0..SLOTS).flat_map(|slot| table.of_slot(slot).to_vec()).collect();
                prop_assert_eq!(table.num_in_slots(), in_slots.len());
            }
            (0..SLOTS).for_each(|slot| table.crop(slot, 0));
            held.into_iter().flat_map(|held| held.pages).for_each(|page| table.release(page));
            prop_assert_eq!(table.num_free(), count);
        }
    }

    #[test]
    fn pages_of_one_slot_lie_one_behind_the_other_where_they_can() {
        let mut table = PageTable::new(2, 12, 4, 6);
        assert_eq!(table.reserve(0, 0, 3), None);
        assert_eq!(table.reserve(1, 0, 4), None);
        table.crop(0, 0);
        assert_eq!(table.reserve(1, 4, 9), None);
        assert_eq!(table.of_slot(1), [1, 2, 3]);
        assert_eq!(table.reserve(0, 0, 8), None);
        assert_eq!(table.of_slot(0), [0, 4]);
    }
}
