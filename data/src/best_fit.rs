//! Best-fit packing: rows of whole documents, as in "Fewer Truncations Improve Language Modeling"
//! (<https://arxiv.org/abs/2404.10830>).
//!
//! A document of `n` tokens, its end-of-text token included, has `n - 1` places: its tokens but the
//! last are inputs, those but the first targets. One of more than `T` places is cut: as many pieces
//! of `T` places as it has, and what is left. Pieces go into rows of `T` places by best-fit
//! decreasing, [`WINDOW`] of them at a time: the longest first, each into the row with the least
//! room that it fits in, or into a new one. So rows are cut from the text in its order but for what
//! happens within a window; they depend on nothing else.
//!
//! ```text
//! documents  a0 a1 a2 E   b0 E   c0 c1 c2 c3 c4 E      T = 4
//! row 0      inputs c0 c1 c2 c3    targets c1 c2 c3 c4
//! row 1      inputs a0 a1 a2 b0    targets a1 a2 E E
//! row 2      inputs c4             targets E
//! ```
//!
//! The places that a row has left are not filled with anything: the row is shorter.

use std::collections::BTreeSet;
use std::ops::Range;

/// Pieces that are packed together. More fill rows better and cost memory; with this many, of text,
/// less than a place in a hundred is left.
pub(crate) const WINDOW: usize = 4096;

/// A run of inputs, whose targets are one token further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Token of the stream.
    pub(crate) start: usize,
    pub(crate) places: u32,
}

/// Rows of pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PackedRows {
    pieces: Vec<Piece>,
    /// Pieces up to the end of each row.
    ends: Vec<usize>,
    /// Places of all pieces.
    pub(crate) places: usize,
}

impl PackedRows {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The pieces of a row, the longest first.
    pub(crate) fn row(&self, row: usize) -> &[Piece] {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.pieces[start..self.ends[row]]
    }
}

/// Packs documents that come one after the other.
#[derive(Debug)]
pub(crate) struct Packer {
    sequence_length: usize,
    window: usize,
    pending: Vec<Piece>,
    rows: PackedRows,
}

impl Packer {
    pub(crate) fn new(sequence_length: usize, window: usize) -> Self {
        // A row longer than 32 bits count cannot be held.
        let sequence_length = sequence_length.clamp(1, u32::MAX as usize);
        Self { sequence_length, window: window.max(1), pending: Vec::new(), rows: PackedRows::default() }
    }

    /// Adds the document at `tokens` of the stream. One of a single token has no place.
    pub(crate) fn add(&mut self, tokens: Range<usize>) {
        let mut start = tokens.start;
        while start + 1 < tokens.end {
            let places = (tokens.end - 1 - start).min(self.sequence_length);
            self.pending.push(Piece { start, places: places as u32 });
            start += places;
            if self.pending.len() == self.window {
                self.pack();
            }
        }
    }

    pub(crate) fn finish(mut self) -> PackedRows {
        self.pack();
        self.rows
    }

    /// Best-fit decreasing of what waits. Pieces of one length stay in order; of rows with the same
    /// room the first made is taken.
    fn pack(&mut self) {
        let mut pieces = std::mem::take(&mut self.pending);
        pieces.sort_by_key(|piece| std::cmp::Reverse(piece.places));
        let mut rows: Vec<Vec<Piece>> = Vec::new();
        let mut with_room: BTreeSet<(u32, usize)> = BTreeSet::new();
        for piece in pieces {
            let found = with_room.range((piece.places, 0)..).next().copied();
            let (room, row) = found.unwrap_or((self.sequence_length as u32, rows.len()));
            match rows.get_mut(row) {
                Some(row) => row.push(piece),
                None => rows.push(vec![piece]),
            }
            with_room.remove(&(room, row));
            if room > piece.places {
                with_room.insert((room - piece.places, row));
            }
        }
        for row in rows {
            self.rows.places += row.iter().map(|piece| piece.places as usize).sum::<usize>();
            self.rows.pieces.extend(row);
            self.rows.ends.push(self.rows.pieces.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pack(lengths: &[usize], sequence_length: usize, window: usize) -> PackedRows {
        let mut packer = Packer::new(sequence_length, window);
        let mut start = 0;
        for length in lengths {
            packer.add(start..start + length);
            start += length;
        }
        packer.finish()
    }

    fn rows(packed: &PackedRows) -> Vec<Vec<(usize, u32)>> {
        let row = |row| packed.row(row).iter().map(|piece| (piece.start, piece.places)).collect();
        (0..packed.len()).map(row).collect()
    }

    #[test]
    fn pieces_go_longest_first_where_the_least_room_is_left() {
        // The example above: documents at 0, 4 and 6.
        assert_eq!(rows(&pack(&[4, 2, 6], 4, 9)), [vec![(6, 4)], vec![(0, 3), (4, 1)], vec![(10, 1)]]);
        // Places 5, 6, 3, 2, 4 in rows of 9: 6 and 3, 5 and 4, 2. First fit in the text's order
        // would cut 5 and 3.
        assert_eq!(rows(&pack(&[6, 7, 4, 3, 5], 9, 9)), [vec![(6, 6), (13, 3)], vec![(0, 5), (20, 4)], vec![(17, 2)]]);
        // Windows of two pieces are packed by themselves.
        assert_eq!(rows(&pack(&[2, 3, 3, 1, 2], 4, 2)), [vec![(2, 2), (0, 1)], vec![(5, 2), (9, 1)]]);
        assert_eq!(pack(&[1, 1], 4, 9).len(), 0);
    }

    proptest! {
        #[test]
        fn every_place_of_every_document_is_in_one_row_and_only_long_documents_are_cut(
            lengths in prop::collection::vec(1_usize..40, 0..80), sequence_length in 1_usize..16, window in 1_usize..50,
        ) {
            let packed = pack(&lengths, sequence_length, window);
            let mut seen = vec![0; lengths.iter().sum::<usize>()];
            for row in rows(&packed) {
                prop_assert!(!row.is_empty());
                prop_assert!(row.iter().map(|(_, places)| *places as usize).sum::<usize>() <= sequence_length);
                for (start, places) in row {
                    (start..start + places as usize).for_each(|token| seen[token] += 1);
                }
            }
            let mut start = 0;
            for length in &lengths {
                let end = start + length;
                prop_assert!(seen[start..end - 1].iter().all(|count| *count == 1), "inputs");
                prop_assert_eq!(seen[end - 1], 0, "the last token is a target only");
                let pieces = packed.pieces.iter().filter(|piece| (start..end).contains(&piece.start)).count();
                prop_assert_eq!(pieces, (length - 1).div_ceil(sequence_length));
                start = end;
            }
            prop_assert_eq!(packed.places, seen.iter().sum::<usize>());
        }
    }
}
