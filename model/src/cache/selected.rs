//! Selected tokens of one recursion: a ragged part of the KV cache.
//!
//! Each slot is a range of rows of the recursion's buffers. All ranges grow together, because
//! growing one moves the ranges behind it. They never shrink, so the buffers of a long-running
//! cache stop growing.

use crate::kernels::{Layout, RowCopy, Segment};
use std::{ops::Range, sync::Arc};

/// Selected tokens of every slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SelectedTokens {
    slots: Vec<SlotTokens>,
    /// Maximum number of tokens in a slot.
    capacity: usize,
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
        Self { slots: vec![SlotTokens::default(); num_slots], capacity }
    }

    /// Number of rows that the buffers need.
    pub fn num_rows(&self) -> usize {
        self.slots.last().map_or(0, |slot| slot.rows.end)
    }

    /// Number of tokens in each slot.
    pub fn lengths(&self) -> Vec<usize> {
        self.slots.iter().map(|slot| slot.positions.len()).collect()
    }

    /// Drops the tokens of a sequence from position `len` on.
    pub fn crop(&mut self, slot: usize, len: usize) {
        let positions = &mut self.slots[slot].positions;
        positions.truncate(positions.partition_point(|position| *position < len));
    }

    /// Makes room for the `selected` rows of a forward pass over `layout`. If the room was too
    /// small, returns the copies that move the rows of the old buffers into larger ones.
    pub fn make_room(&mut self, layout: &Layout, selected: &[usize]) -> Option<Arc<[RowCopy]>> {
        let mut needed: Vec<usize> = self.lengths();
        self.segment_rows(layout, selected).for_each(|rows| needed[rows.slot] += rows.queries.len());
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
            segments.push(Segment::last(queries, 0..0, rows.start..rows.start + positions.len()));
        }
        Layout::ragged(segments)
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
        let mut selected = SelectedTokens { slots, capacity: 40 };
        let copy = |rows, at| RowCopy { rows, at };
        let moves = selected.make_room(&layout(), &[0, 2, 3]).unwrap();
        assert_eq!(*moves, [copy(0..2, 0), copy(3..35, 5)]);
        // Room: two tokens more; no token, so the one unused row; 32 tokens and a sixteenth more.
        let rows: Vec<_> = selected.slots.iter().map(|slot| slot.rows.clone()).collect();
        assert_eq!(rows, [0..4, 4..5, 5..39]);
        assert_eq!(selected.make_room(&layout(), &[0, 2, 3]), None);
        let found = selected.extend(&layout(), &[0, 2, 3]);
        assert_eq!(found.segments(), [Segment::last(0..2, 0..0, 0..4), Segment::last(2..3, 0..0, 5..38)]);
        assert_eq!(selected.slots[0].positions, [1, 4, 5, 7]);
        assert_eq!((selected.lengths(), selected.slots[2].positions[32]), (vec![4, 0, 33], 33));
    }

    #[test]
    fn a_cropped_sequence_keeps_the_tokens_before_a_position() {
        let mut selected = SelectedTokens { slots: vec![slot(0..9, &[1, 4, 5, 7])], capacity: 40 };
        selected.crop(0, 5);
        assert_eq!(selected.slots, [slot(0..9, &[1, 4])]);
        selected.crop(0, 0);
        assert_eq!(selected.lengths(), [0]);
    }
}
