//! Attention layout: the rows of a forward pass that form sequences, and the keys each attends to.

use super::{
    pages::{Pages, Runs},
    rows::RowSet,
};
use burn::tensor::{Device, Int, Tensor};
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

/// Consecutive query rows of one sequence. Each attends to the key rows of `prefix`, then to those
/// of `keys` up to its own. Key rows of a layout in pages are where these say
/// ([`Layout::in_pages`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the queries.
    pub queries: Range<usize>,
    /// Key rows of a shared prefix, before the segment's own keys.
    pub prefix: Range<usize>,
    /// Key rows of the segment itself, at least as many as queries.
    pub keys: Range<usize>,
    /// Index of each query's own key among all keys of the segment, prefix first, ascending. `None`
    /// if the queries are the last keys.
    pub own: Option<Arc<[usize]>>,
}

impl Segment {
    /// Segment whose queries are its last keys.
    #[must_use]
    pub fn last(queries: Range<usize>, prefix: Range<usize>, keys: Range<usize>) -> Self {
        Self { queries, prefix, keys, own: None }
    }

    /// Index of the `i`-th query's own key among all keys of the segment, prefix first.
    #[must_use]
    pub fn position(&self, i: usize) -> usize {
        match &self.own {
            Some(own) => own[i],
            None => self.num_keys() - self.queries.len() + i,
        }
    }

    /// Own keys of all queries, as [`Segment::position`].
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        (0..self.queries.len()).map(|i| self.position(i))
    }

    /// Number of keys, prefix included.
    #[must_use]
    pub fn num_keys(&self) -> usize {
        self.prefix.len() + self.keys.len()
    }

    /// Number of pairs of a query and a key that it attends to, with a sliding `window`, if any.
    #[must_use]
    pub fn num_pairs(&self, window: Option<usize>) -> usize {
        self.positions().map(|position| (position + 1).min(window.unwrap_or(usize::MAX))).sum()
    }

    /// Segment with only the queries `some` (ascending rows of this segment) on the same keys; the
    /// first of them becomes query row `start`.
    #[must_use]
    pub fn only(&self, some: &[usize], start: usize) -> Self {
        let own = some.iter().map(|row| self.position(row - self.queries.start)).collect();
        Self { queries: start..start + some.len(), own: Some(own), ..self.clone() }
    }
}

/// Sequences of equal length, in consecutive rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Number of sequences.
    pub batch: usize,
    /// Queries per sequence.
    pub tokens: usize,
    /// Keys per sequence, including those of the queries.
    pub kv_len: usize,
    /// Distance in key rows from one sequence to the next.
    pub capacity: usize,
}

/// Sequences of equal length, each of several segments one after the other.
#[derive(Clone, Debug)]
pub struct PackedRows {
    /// The sequences; keys are those of the queries.
    pub grid: Grid,
    /// The first key in its sequence that each query attends to, `[M]`.
    first: RowSet,
    on_device: Arc<OnceLock<Tensor<1, Int>>>,
}

impl PackedRows {
    /// [`PackedRows::first`] on the host.
    pub(crate) fn first_keys(&self) -> &[usize] {
        self.first.host()
    }

    /// The first key in its sequence that each query attends to, `[M]`, on `device`; it is uploaded
    /// once.
    #[must_use]
    pub fn first(&self, device: &Device) -> Tensor<1, Int> {
        self.on_device.get_or_init(|| self.first.indices(device)).clone()
    }
}

/// Sequences of unequal lengths as ones of the longest length, padded at their ends.
#[derive(Clone, Debug)]
pub struct PaddedRows {
    /// The padded sequences; keys are those of the queries.
    pub grid: Grid,
    /// The row of each padded row, −1 for padding, and the padded row of each row.
    indices: [Arc<[i32]>; 2],
    on_device: Arc<OnceLock<[Tensor<1, Int>; 2]>>,
}

impl PaddedRows {
    /// `None` where a sequence has keys other than its queries, or where more than half would be
    /// padding.
    fn new(segments: &[Segment]) -> Option<Self> {
        let is_whole = |s: &Segment| s.prefix.is_empty() && s.own.is_none() && s.keys == s.queries;
        let tokens = segments.iter().map(|segment| segment.queries.len()).max()?;
        let (batch, num_rows) = (segments.len(), segments.last()?.queries.end);
        if !segments.iter().all(is_whole) || batch * tokens > 2 * num_rows {
            return None;
        }
        let (mut to, mut from) = (vec![-1; batch * tokens], vec![0; num_rows]);
        for (sequence, segment) in segments.iter().enumerate() {
            for (row, place) in segment.queries.clone().zip(sequence * tokens..) {
                to[place] = row as i32;
                from[row] = place as i32;
            }
        }
        let grid = Grid { batch, tokens, kv_len: tokens, capacity: tokens };
        Some(Self { grid, indices: [to.into(), from.into()], on_device: Arc::default() })
    }

    /// The row of each padded row, −1 for padding, and the padded row of each row, on `device`;
    /// they are uploaded once.
    #[must_use]
    pub fn indices(&self, device: &Device) -> [Tensor<1, Int>; 2] {
        let upload = || self.indices.each_ref().map(|rows| Tensor::from_ints(&**rows, device));
        self.on_device.get_or_init(upload).clone()
    }
}

/// Attention score of a query and a key, and the sliding window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// Factor of the dot product.
    pub scale: f32,
    /// Soft cap `c` in `c·tanh(s/c)`.
    pub softcap: Option<f32>,
    /// Sliding window: a query attends to its own position and the `window − 1` before it.
    pub window: Option<usize>,
}

impl Scoring {
    /// Scale `1/√H`, without a soft cap or a window.
    #[must_use]
    pub fn plain(head_dim: usize) -> Self {
        Self { scale: 1.0 / (head_dim as f32).sqrt(), softcap: None, window: None }
    }
}

/// Attention layout of a forward pass, in segments.
#[derive(Clone, Debug)]
pub struct Layout {
    segments: Arc<[Segment]>,
    grid: Option<Grid>,
    /// Rows of equal length that the segments fill, if they do.
    rows: Option<PackedRows>,
    /// Own keys of all queries, in place of those of the segments, if a device has selected the
    /// queries.
    own: Option<RowSet>,
    padded: Arc<OnceLock<Option<PaddedRows>>>,
    /// Where the keys lie, if not one behind the other.
    pages: Option<Pages>,
}

impl Layout {
    /// `batch` sequences of `tokens` rows each.
    #[must_use]
    pub fn batch(batch: usize, tokens: usize) -> Self {
        Self::cached(Grid { batch, tokens, kv_len: tokens, capacity: tokens })
    }

    /// Sequences of equal length that continue keys in a cache.
    ///
    /// # Panics
    /// When there are more queries than keys, or more keys than the capacity.
    #[must_use]
    pub fn cached(grid: Grid) -> Self {
        let Grid { batch, tokens, kv_len, capacity } = grid;
        assert!(tokens <= kv_len && kv_len <= capacity, "{tokens} queries, {kv_len} keys, room for {capacity}");
        let segments = (0..batch)
            .map(|row| Segment::last(row * tokens..(row + 1) * tokens, 0..0, row * capacity..row * capacity + kv_len));
        Self {
            segments: segments.collect(),
            grid: Some(grid),
            rows: None,
            own: None,
            padded: Arc::default(),
            pages: None,
        }
    }

    /// Packed runs of rows, without padding. A run is its number of rows, and the rows of an
    /// earlier run without a prefix that it continues (`0..0` for none). Several runs may share a
    /// prefix; they do not attend to one another otherwise.
    ///
    /// # Panics
    /// When a prefix does not lie before its run.
    #[must_use]
    pub fn packed(runs: impl IntoIterator<Item = (usize, Range<usize>)>) -> Self {
        let mut start = 0;
        let mut segments = Vec::new();
        for (rows, prefix) in runs {
            assert!(prefix.end <= start, "the prefix {prefix:?} of a run that starts at row {start}");
            let queries = start..start + rows;
            start += rows;
            if rows > 0 {
                segments.push(Segment::last(queries.clone(), prefix, queries));
            }
        }
        Self { segments: segments.into(), grid: None, rows: None, own: None, padded: Arc::default(), pages: None }
    }

    /// [`Layout::packed`] runs without prefixes, which fill rows of `length` tokens; where one goes
    /// on in the next row, or a row is shorter, this is no more than the runs.
    #[must_use]
    pub fn packed_in_rows(runs: &[usize], length: usize) -> Self {
        let layout = Self::packed(runs.iter().map(|rows| (*rows, 0..0)));
        let num_rows = layout.num_rows();
        let (mut first, mut start) = (Vec::with_capacity(num_rows), 0);
        for run in runs {
            if start + run > length {
                return layout;
            }
            first.resize(first.len() + run, start);
            start = (start + run) % length;
        }
        if start != 0 || first.is_empty() {
            return layout;
        }
        let grid = Grid { batch: num_rows / length, tokens: length, kv_len: length, capacity: length };
        Self { rows: Some(PackedRows { grid, first: first.into(), on_device: Arc::default() }), ..layout }
    }

    /// Ragged segments: each has its own keys anywhere in the key rows, and its own length.
    ///
    /// # Panics
    /// When the queries are not consecutive, or outnumber their keys.
    #[must_use]
    pub fn ragged(segments: Vec<Segment>) -> Self {
        let mut start = 0;
        for segment in &segments {
            assert!(segment.queries.start == start && segment.queries.len() <= segment.keys.len(), "{segment:?}");
            start = segment.queries.end;
        }
        Self { segments: segments.into(), grid: None, rows: None, own: None, padded: Arc::default(), pages: None }
    }

    /// Sequences of this layout with only the queries that a device has selected, `per_sequence` of
    /// each, in consecutive rows. `own` has the index of each query's own key among the keys of its
    /// sequence.
    ///
    /// # Panics
    /// When there is not a number for each sequence.
    #[must_use]
    pub fn with_queries(&self, per_sequence: &[usize], own: RowSet) -> Self {
        assert_eq!(per_sequence.len(), self.segments.len(), "one number for each sequence");
        let mut start = 0;
        let segments = self.segments.iter().zip(per_sequence).filter_map(|(segment, count)| {
            let queries = start..start + count;
            start = queries.end;
            (*count > 0).then(|| Segment { queries, own: None, ..segment.clone() })
        });
        let segments = segments.collect();
        let tokens = per_sequence.first().copied().filter(|first| per_sequence.iter().all(|count| count == first));
        let grid = self.grid.zip(tokens).map(|(grid, tokens)| Grid { tokens, ..grid });
        Self { segments, grid, rows: None, own: Some(own), padded: Arc::default(), pages: self.pages.clone() }
    }

    /// This layout with keys in `pages`, if any: without prefixes, each segment with keys of one
    /// sequence of these.
    #[must_use]
    pub fn in_pages(self, pages: Option<Pages>) -> Self {
        Self { pages, ..self }
    }

    /// Where the keys lie, if not one behind the other.
    #[must_use]
    pub fn pages(&self) -> Option<&Pages> {
        self.pages.as_ref()
    }

    /// Row of the keys that key row `row` of a segment is.
    #[must_use]
    pub fn key_row(&self, row: usize) -> usize {
        self.pages.as_ref().map_or(row, |pages| pages.row(row))
    }

    /// Rows of the keys that key rows `rows` of a segment are, as runs of consecutive ones.
    pub fn key_runs(&self, rows: Range<usize>) -> Runs<'_> {
        Runs::of(self.pages.as_ref(), rows)
    }

    /// This layout with `first` in place of the first key that each query of its
    /// [packed rows](Layout::packed_rows) attends to, `[M]`.
    #[must_use]
    pub(crate) fn with_first_keys(mut self, first: Tensor<1, Int>) -> Self {
        if let Some(rows) = &mut self.rows {
            rows.on_device = Arc::new(OnceLock::from(first));
        }
        self
    }

    /// Own keys of all queries, if a device has selected the queries.
    #[must_use]
    pub fn own_keys(&self) -> Option<&RowSet> {
        self.own.as_ref()
    }

    /// Number of pairs of a query and a key that it attends to, as [`Segment::num_pairs`].
    #[must_use]
    pub fn num_pairs(&self, window: Option<usize>) -> usize {
        match &self.own {
            None => self.segments.iter().map(|segment| segment.num_pairs(window)).sum(),
            Some(own) => own.host().iter().map(|own| (own + 1).min(window.unwrap_or(usize::MAX))).sum(),
        }
    }

    /// Segments in the order of their rows.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Sizes of the sequences, if all are equal.
    #[must_use]
    pub fn grid(&self) -> Option<Grid> {
        self.grid
    }

    /// Sequences of equal length that the segments fill, if they do.
    #[must_use]
    pub fn packed_rows(&self) -> Option<&PackedRows> {
        self.rows.as_ref()
    }

    /// The sequences as ones of equal length, where that is not mostly padding and each attends to
    /// itself alone.
    #[must_use]
    pub fn padded_rows(&self) -> Option<&PaddedRows> {
        let is_whole = self.own.is_none() && self.pages.is_none();
        let padded = || is_whole.then(|| PaddedRows::new(&self.segments)).flatten();
        self.padded.get_or_init(padded).as_ref()
    }

    /// Number of query rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.segments.last().map_or(0, |segment| segment.queries.end)
    }

    /// Repetitions of the positions over the rows, and the positions themselves.
    #[must_use]
    pub fn positions(&self) -> (usize, Vec<usize>) {
        match self.grid {
            Some(Grid { batch, tokens, kv_len, .. }) => (batch, (kv_len - tokens..kv_len).collect()),
            None => (1, self.segments.iter().flat_map(Segment::positions).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_behind_a_prefix_go_on_from_its_positions() {
        let layout = Layout::packed([(3, 0..0), (2, 0..3), (0, 0..3), (1, 0..3), (2, 0..0)]);
        assert_eq!(layout.num_rows(), 8);
        assert_eq!(layout.segments().len(), 4);
        assert_eq!(layout.positions(), (1, vec![0, 1, 2, 3, 4, 3, 0, 1]));
    }

    #[test]
    fn runs_that_fill_rows_know_where_they_begin_in_them() {
        let layout = Layout::packed_in_rows(&[2, 3, 5, 4, 1], 5);
        let rows = layout.packed_rows().unwrap();
        assert_eq!(rows.grid, Grid { batch: 3, tokens: 5, kv_len: 5, capacity: 5 });
        assert_eq!(rows.first.host()[..], [0, 0, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4]);
        assert_eq!(
            layout.segments(),
            Layout::packed([(2, 0..0), (3, 0..0), (5, 0..0), (4, 0..0), (1, 0..0)]).segments()
        );
        for other in [&[2, 4, 4][..], &[5, 4], &[]] {
            assert!(Layout::packed_in_rows(other, 5).packed_rows().is_none(), "{other:?}");
        }
    }

    #[test]
    fn runs_of_unequal_lengths_are_padded_where_most_of_it_is_rows() {
        let layout = Layout::packed([(2, 0..0), (3, 0..0), (1, 0..0)]);
        let padded = layout.padded_rows().unwrap();
        assert_eq!(padded.grid, Grid { batch: 3, tokens: 3, kv_len: 3, capacity: 3 });
        assert_eq!(*padded.indices[0], [0, 1, -1, 2, 3, 4, 5, -1, -1]);
        assert_eq!(*padded.indices[1], [0, 1, 3, 4, 5, 6]);
        for other in [
            Layout::packed([(9, 0..0), (1, 0..0), (1, 0..0)]),
            Layout::packed([(3, 0..0), (2, 0..3)]),
            Layout::packed([]),
        ] {
            assert!(other.padded_rows().is_none(), "{other:?}");
        }
    }

    #[test]
    fn rows_of_a_cache_stand_at_its_end() {
        let layout = Layout::cached(Grid { batch: 2, tokens: 3, kv_len: 10, capacity: 16 });
        assert_eq!(layout.positions(), (2, vec![7, 8, 9]));
        assert_eq!(layout.segments()[1], Segment::last(3..6, 0..0, 16..26));
    }

    #[test]
    fn some_queries_of_a_run_keep_their_own_keys() {
        let run = Segment::last(10..14, 0..3, 20..26);
        assert_eq!(run.positions().collect::<Vec<_>>(), [5, 6, 7, 8]);
        let some = run.only(&[10, 13], 1);
        assert_eq!((some.queries.clone(), some.keys.clone(), some.num_keys()), (1..3, 20..26, 9));
        assert_eq!(some.positions().collect::<Vec<_>>(), [5, 8]);
        assert_eq!([some.num_pairs(None), some.num_pairs(Some(7))], [6 + 9, 6 + 7]);
    }

    #[test]
    #[should_panic(expected = "the prefix 0..4 of a run that starts at row 3")]
    fn a_prefix_that_is_not_there_yet_is_refused() {
        let _ = Layout::packed([(3, 0..0), (1, 0..4)]);
    }
}
