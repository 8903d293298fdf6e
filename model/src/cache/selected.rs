//! Selected tokens of one recursion: a ragged part of the KV cache.
//!
//! Each slot is a range of rows of the recursion's buffers. All ranges grow together, because
//! growing one moves the ranges behind it. They never shrink, so the buffers of a long-running
//! cache stop growing. In a cache in blocks each recursion has a table of pages instead, to which
//! pages are added on demand.

use super::pages::{PageCopy, PageTable};
use crate::kernels::{Layout, RowCopy, Segment};
use std::{ops::Range, sync::Arc};

/// Selected tokens of every slot.
#[derive(Clone, Debug)]
pub(super) struct SelectedTokens {
    slots: Vec<SlotTokens>,
    /// Maximum number of tokens in a slot.
    capacity: usize,
    /// Pages of the slots, in a cache in blocks.
    pages: Option<PageTable>,
}

/// Room for further rows.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Copies of the rows of the old buffers into larger ones, where the buffers were too small.
    pub moves: Option<Arc<[RowCopy]>>,
    /// Pages that are copied then.
    pub copies: Vec<PageCopy>,
}

/// Rows of selected tokens that are held beside the slots.
#[derive(Debug)]
pub(super) struct HeldRows {
    /// Positions of the tokens.
    positions: Vec<usize>,
    /// Number of rows of the slot before them.
    before: usize,
    /// Index of the first page among those of the slot.
    first: usize,
    pages: Vec<u32>,
}

impl HeldRows {
    /// True if they lie behind the rows `before`, or behind none.
    pub fn follows(&self, before: Option<&Self>) -> bool {
        self.before == before.map_or(0, |before| before.before + before.positions.len())
    }
}

/// Selected tokens of one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SlotTokens {
    /// Range of rows in the buffers.
    rows: Range<usize>,
    /// Positions of the tokens in their sequence, ascending; the first is stored in the first row.
    positions: Vec<usize>,
}

/// Extra room of a full slot, as a fraction of its tokens.
const GROWTH: f64 = 1.0 / 16.0;

impl SelectedTokens {
    /// Empty slots without room.
    pub fn new(num_slots: usize, capacity: usize) -> Self {
        Self { slots: vec![SlotTokens::default(); num_slots], capacity, pages: None }
    }

    /// Empty slots with pages of `size` rows.
    pub fn in_pages(num_slots: usize, capacity: usize, size: usize) -> Self {
        Self { pages: Some(PageTable::new(num_slots, capacity, size, 0)), ..Self::new(num_slots, capacity) }
    }

    /// Number of rows that the buffers need.
    pub fn num_rows(&self) -> usize {
        let end = || self.slots.last().map_or(0, |slot| slot.rows.end);
        self.pages.as_ref().map_or_else(end, PageTable::num_rows)
    }

    /// Rows of a page.
    pub fn page_size(&self) -> usize {
        self.pages.as_ref().map_or(0, PageTable::size)
    }

    /// Number of tokens in each slot.
    pub fn lengths(&self) -> Vec<usize> {
        self.slots.iter().map(|slot| slot.positions.len()).collect()
    }

    /// Drops the tokens of a sequence from position `len` on.
    pub fn crop(&mut self, slot: usize, len: usize) {
        let positions = &mut self.slots[slot].positions;
        positions.truncate(positions.partition_point(|position| *position < len));
        if let Some(pages) = &mut self.pages {
            pages.crop(slot, positions.len());
        }
    }

    /// Makes room for the `selected` rows of a forward pass over `layout`.
    pub fn make_room(&mut self, layout: &Layout, selected: &[usize]) -> Room {
        let mut needed: Vec<usize> = self.lengths();
        self.segment_rows(layout, selected).for_each(|rows| needed[rows.slot] += rows.queries.len());
        match &mut self.pages {
            None => Room { moves: self.grow(needed), copies: Vec::new() },
            Some(pages) => {
                let (old, mut copies) = (pages.num_rows(), Vec::new());
                for (slot, (tokens, needed)) in self.slots.iter().zip(needed).enumerate() {
                    let held = tokens.positions.len();
                    // One that writes in a page that several share makes the others copy it.
                    let missing = pages.missing(slot, held, needed).saturating_sub(pages.num_free());
                    if missing > 0 {
                        let spare = (pages.len() as f64 * GROWTH).ceil() as usize;
                        pages.add(missing.max(spare));
                    }
                    copies.extend(pages.reserve(slot, held, needed));
                }
                let moves = || [RowCopy { rows: 0..old, at: 0 }].into_iter().filter(|_| old > 0).collect();
                Room { copies, moves: (pages.num_rows() > old).then(moves) }
            }
        }
    }

    /// Makes room for `needed` tokens in each slot. If the room was too small, returns the copies
    /// that move the rows of the old buffers into larger ones.
    fn grow(&mut self, needed: Vec<usize>) -> Option<Arc<[RowCopy]>> {
        if self.slots.iter().zip(&needed).all(|(slot, needed)| *needed <= slot.rows.len()) {
            return None;
        }
        let (mut moves, mut start) = (Vec::new(), 0);
        for (SlotTokens { rows, positions }, needed) in self.slots.iter_mut().zip(needed) {
            let held = positions.len();
            let spare = held + (held as f64 * GROWTH).ceil() as usize;
            let room = rows.len().max(needed).max(spare.min(self.capacity));
            if held > 0 {
                moves.push(RowCopy { rows: rows.start..rows.start + held, at: start });
            }
            *rows = start..start + room;
            start += room;
        }
        Some(moves.into())
    }

    /// Adds the `selected` rows of a forward pass over `layout`, which must have room. Returns the
    /// attention layout in which they are the queries; each attends to the tokens of its slot up to
    /// itself.
    pub fn extend(&mut self, layout: &Layout, selected: &[usize]) -> Layout {
        let mut segments = Vec::new();
        for SegmentRows { slot, segment, queries } in self.segment_rows(layout, selected).collect::<Vec<_>>() {
            let SlotTokens { rows, positions } = &mut self.slots[slot];
            let position = |row: &usize| segment.position(row - segment.queries.start);
            positions.extend(selected[queries.clone()].iter().map(position));
            let start = if self.pages.is_some() { slot * self.capacity } else { rows.start };
            segments.push(Segment::last(queries, 0..0, start..start + positions.len()));
        }
        Layout::ragged(segments).in_pages(self.pages.as_ref().map(PageTable::pages))
    }

    /// Holds the tokens of a slot at some positions of its sequence; `None` without pages.
    pub fn hold(&mut self, slot: usize, positions: Range<usize>) -> Option<HeldRows> {
        let (all, pages) = (&self.slots[slot].positions, self.pages.as_mut()?);
        let index = |position: usize| all.partition_point(|other| *other < position);
        let rows = index(positions.start)..index(positions.end);
        let ((first, covering), before) = (pages.covering(slot, rows.clone()), rows.start);
        covering.iter().for_each(|page| pages.hold(*page));
        Some(HeldRows { positions: all[rows].to_vec(), before, first, pages: covering })
    }

    /// Drops what is held.
    pub fn drop_held(&mut self, held: &HeldRows) {
        if let Some(pages) = &mut self.pages {
            held.pages.iter().for_each(|page| pages.release(*page));
        }
    }

    /// Gives an empty slot the held tokens before position `len`, those of one sequence in their
    /// order.
    pub fn admit(&mut self, slot: usize, held: &[&HeldRows], len: usize) {
        let Some(pages) = &mut self.pages else { return };
        let positions = &mut self.slots[slot].positions;
        positions.extend(held.iter().flat_map(|held| &held.positions).filter(|position| **position < len));
        let mut shared: Vec<u32> = Vec::new();
        for held in held {
            // A later page has the rows of an earlier one that it stands for.
            shared.truncate(held.first);
            shared.extend(&held.pages);
        }
        shared.truncate(positions.len().div_ceil(pages.size()));
        shared.into_iter().for_each(|page| pages.share(slot, page));
    }

    /// The segments of `layout` that contain `selected` rows (ascending).
    fn segment_rows<'a>(&self, layout: &'a Layout, selected: &[usize]) -> impl Iterator<Item = SegmentRows<'a>> {
        let capacity = self.capacity;
        let rows = move |segment: &'a Segment| {
            let index = |row: usize| selected.partition_point(|other| *other < row);
            let queries = index(segment.queries.start)..index(segment.queries.end);
            SegmentRows { slot: segment.keys.start / capacity, segment, queries }
        };
        layout.segments().iter().map(rows).filter(|rows| !rows.queries.is_empty())
    }
}

/// Selected rows of one sequence.
struct SegmentRows<'a> {
    slot: usize,
    segment: &'a Segment,
    /// Indices of its rows among the selected rows.
    queries: Range<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(rows: Range<usize>, positions: &[usize]) -> SlotTokens {
        SlotTokens { rows, positions: positions.to_vec() }
    }

    /// Slots 0 and 2 of a cache with 40 tokens per slot: the first gets 3 new tokens after 5, the
    /// other 1 after 33.
    fn layout() -> Layout {
        Layout::ragged(vec![Segment::last(0..3, 0..0, 0..8), Segment::last(3..4, 0..0, 80..114)])
    }

    #[test]
    fn a_full_slot_grows_for_all_sequences_and_keeps_what_they_hold() {
        let many: Vec<usize> = (0..32).collect();
        let slots = vec![slot(0..2, &[1, 4]), slot(2..3, &[]), slot(3..35, &many)];
        let mut selected = SelectedTokens { slots, capacity: 40, pages: None };
        let copy = |rows, at| RowCopy { rows, at };
        let moves = selected.make_room(&layout(), &[0, 2, 3]).moves.unwrap();
        assert_eq!(*moves, [copy(0..2, 0), copy(3..35, 5)]);
        // Room: two tokens more; no token, so the one unused row; 32 tokens and a sixteenth more.
        let rows: Vec<_> = selected.slots.iter().map(|slot| slot.rows.clone()).collect();
        assert_eq!(rows, [0..4, 4..5, 5..39]);
        assert_eq!(selected.make_room(&layout(), &[0, 2, 3]).moves, None);
        let found = selected.extend(&layout(), &[0, 2, 3]);
        assert_eq!(found.segments(), [Segment::last(0..2, 0..0, 0..4), Segment::last(2..3, 0..0, 5..38)]);
        assert_eq!(selected.slots[0].positions, [1, 4, 5, 7]);
        assert_eq!((selected.lengths(), selected.slots[2].positions[32]), (vec![4, 0, 33], 33));
    }

    #[test]
    fn a_cropped_sequence_keeps_the_tokens_before_a_position() {
        let mut selected = SelectedTokens { slots: vec![slot(0..9, &[1, 4, 5, 7])], capacity: 40, pages: None };
        selected.crop(0, 5);
        assert_eq!(selected.slots, [slot(0..9, &[1, 4])]);
        selected.crop(0, 0);
        assert_eq!(selected.lengths(), [0]);
    }
}
