//! Pages: key rows that do not lie one behind the other.
//!
//! The ranges of a [`Segment`](super::Segment) are then numbers of rows as if each sequence had a
//! run of `capacity` rows of its own, and a table says where its pages lie (PagedAttention,
//! <https://arxiv.org/abs/2309.06180>). The kernels of the CPU read it; those of devices read runs
//! of rows.

use std::{ops::Range, sync::Arc};

/// Entry of a table without a page.
pub(crate) const NO_PAGE: u32 = u32::MAX;

/// Where the rows of sequences lie in buffers that are divided into pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Page of each part of each sequence, `[sequences × pages of a sequence]`.
    table: Arc<[u32]>,
    /// Rows of a page.
    size: usize,
    /// Rows of a sequence at most.
    capacity: usize,
}

impl Pages {
    /// Pages of `size` rows, of sequences with `capacity` rows each.
    pub(crate) fn new(table: Arc<[u32]>, size: usize, capacity: usize) -> Self {
        Self { table, size, capacity }
    }

    /// Row of the buffers that row `row` of the layout is.
    #[must_use]
    pub fn row(&self, row: usize) -> usize {
        let (sequence, row) = (row / self.capacity, row % self.capacity);
        let page = self.table[sequence * self.capacity.div_ceil(self.size) + row / self.size];
        debug_assert!(page != NO_PAGE, "row {row} of sequence {sequence} has no page");
        page as usize * self.size + row % self.size
    }

    /// Rows of the buffers that `rows` of one sequence of the layout are, as runs of consecutive
    /// ones.
    pub fn runs(&self, rows: Range<usize>) -> Runs<'_> {
        Runs { pages: Some(self), rows }
    }
}

/// Runs of consecutive rows.
#[derive(Clone, Debug)]
pub struct Runs<'p> {
    pages: Option<&'p Pages>,
    rows: Range<usize>,
}

impl<'p> Runs<'p> {
    /// `rows` in `pages`, or as they are.
    pub(crate) fn of(pages: Option<&'p Pages>, rows: Range<usize>) -> Self {
        Self { pages, rows }
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        if self.rows.is_empty() {
            return None;
        }
        let Some(Pages { table, size, capacity }) = self.pages else { return Some(std::mem::take(&mut self.rows)) };
        let (sequence, row) = (self.rows.start / capacity, self.rows.start % capacity);
        let table = &table[sequence * capacity.div_ceil(*size) + row / size..];
        let first = table[0] as usize * size + row % size;
        let mut len = size - row % size;
        // Pages one behind the other are one run.
        for pair in table.windows(2) {
            if len >= self.rows.len() || pair[1] != pair[0] + 1 {
                break;
            }
            len += size;
        }
        len = len.min(self.rows.len());
        self.rows.start += len;
        Some(first..first + len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_pages_one_behind_the_other_are_one_run() {
        // Two sequences of up to 10 rows in pages of 4.
        let pages = Pages::new([5, 6, 1, 0, 3, NO_PAGE].into(), 4, 10);
        let runs = |rows| pages.runs(rows).collect::<Vec<_>>();
        assert_eq!(runs(0..10), [20..28, 4..6]);
        assert_eq!(runs(3..9), [23..28, 4..5]);
        assert_eq!(runs(10..18), [0..4, 12..16]);
        assert_eq!(pages.runs(12..13).next(), Some(2..3));
        assert!(runs(7..7).is_empty());
        assert_eq!([0, 7, 9, 15].map(|row| pages.row(row)), [20, 27, 5, 13]);
        let mut whole = Runs::of(None, 3..9);
        assert_eq!((whole.next(), whole.next()), (Some(3..9), None));
    }
}
