//! A pruned chart: which spans of a sentence have a cell, and where each of them may be split.
//!
//! All spans of a sentence of `n` tokens are `n (n + 1) / 2` cells with up to `n - 1` splits. The
//! pruned chart of Fast-R2D2 (Hu et al. 2022, <https://arxiv.org/abs/2203.00281>), which ReCAT
//! uses, has `O(n)` of them. A window of `m` splits goes over a list of constituents, at first the
//! tokens:
//!
//! 1. Every run of up to `m + 1` constituents has a cell, with a split between each two of them.
//! 2. The two constituents beside the split with the lowest score become one. The cells below it
//!    fall: they are split only where they were. Runs of `m + 1` constituents with the new one in
//!    them, of which there are at most `m + 1`, get a cell.
//! 3. Step 2 is repeated until `m + 1` constituents are left, which are the whole sentence.
//!
//! Step 1 makes at most `(m + 1) n` cells and step 2 at most `m + 1` for each of fewer than `n`
//! merges: below `2 (m + 1) n` in all, each with `m` splits at most. With `n <= m + 1` the chart is
//! complete. Cells that are in no tree of the whole sentence are left out.
//!
//! Tokens are counted from 0; a span `start..end` has the tokens from `start` to before `end`, and
//! a split `k` of it is the pair `start..k` and `k..end`.

use super::error::TreesError;
use std::collections::HashMap;

/// A span with its splits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// First token.
    pub start: usize,
    /// First token behind it.
    pub end: usize,
    /// Cells of its parts, left and right, as indices of [`Chart::cells`]. None for a token.
    pub splits: Vec<(usize, usize)>,
    /// 0 for a token, else one more than the highest level of its parts.
    pub level: usize,
}

/// The cells of a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chart {
    len: usize,
    cells: Vec<Cell>,
}

impl Chart {
    /// The chart of a sentence with one token more than there are `scores` of splits. `window` is
    /// the `m` of splits that a cell has at most; `scores[k - 1]` belongs to split `k`, and those
    /// with low scores are merged first.
    ///
    /// # Errors
    /// A window of 0 and a sentence of one token.
    pub fn new(scores: &[f32], window: usize) -> Result<Self, TreesError> {
        if window == 0 {
            return Err(TreesError::Window);
        }
        let len = scores.len() + 1;
        if len < 2 {
            return Err(TreesError::Short { place: "a sentence".to_owned(), found: len });
        }
        let mut made = Making::new(len);
        let widest = (window + 1).min(len);
        for width in 1..=widest {
            (0..=len - width).for_each(|start| made.add(start, width));
        }
        let mut order: Vec<usize> = (1..len).collect();
        order.sort_by(|a, b| scores[a - 1].total_cmp(&scores[b - 1]));
        for split in order.into_iter().take(len - widest) {
            made.merge(split, window);
        }
        Ok(Self { len, cells: made.in_a_tree() })
    }

    /// Tokens of the sentence.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.len
    }

    /// The cells by level: first the tokens in their order, last the whole sentence.
    #[must_use]
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Pairs of parts, over all cells.
    #[must_use]
    pub fn num_splits(&self) -> usize {
        self.cells.iter().map(|cell| cell.splits.len()).sum()
    }

    /// The tree of the whole sentence in which `choose` picks the split of every cell, given its
    /// index: the cells of two tokens or more with their splits, from the root down.
    ///
    /// # Panics
    /// Where a split is picked that the cell does not have.
    pub fn tree(&self, mut choose: impl FnMut(usize) -> usize) -> Vec<(usize, (usize, usize))> {
        let mut tree = Vec::with_capacity(self.len);
        let mut open = vec![self.cells.len() - 1];
        while let Some(index) = open.pop() {
            let splits = &self.cells[index].splits;
            if !splits.is_empty() {
                let split = splits[choose(index)];
                tree.push((index, split));
                open.extend([split.1, split.0]);
            }
        }
        tree
    }
}

/// Cells in the order in which they are made.
struct Making {
    cells: Vec<Cell>,
    by_span: HashMap<(usize, usize), usize>,
    /// Boundaries between constituents beside each that is still one: the token before which it
    /// is, with 0 and the length of the sentence as the outermost ones.
    before: Vec<usize>,
    after: Vec<usize>,
}

impl Making {
    fn new(len: usize) -> Self {
        let before = (0..=len).map(|boundary| boundary.saturating_sub(1)).collect();
        let after = (0..=len).map(|boundary| (boundary + 1).min(len)).collect();
        Self { cells: Vec::new(), by_span: HashMap::new(), before, after }
    }

    /// Makes the cell of the `width` constituents from `start` on.
    fn add(&mut self, start: usize, width: usize) {
        let mut inner = Vec::with_capacity(width);
        let mut end = self.after[start];
        for _ in 1..width {
            inner.push(end);
            end = self.after[end];
        }
        let part = |start, end| self.by_span[&(start, end)];
        let splits: Vec<_> = inner.iter().map(|k| (part(start, *k), part(*k, end))).collect();
        let level = splits.iter().map(|(l, r)| 1 + self.cells[*l].level.max(self.cells[*r].level)).max().unwrap_or(0);
        self.by_span.insert((start, end), self.cells.len());
        self.cells.push(Cell { start, end, splits, level });
    }

    /// Makes one constituent of the two beside `split`, with the cells that have it in them.
    fn merge(&mut self, split: usize, window: usize) {
        let (before, after) = (self.before[split], self.after[split]);
        (self.after[before], self.before[after]) = (after, before);
        let (end, mut start) = (self.after.len() - 1, before);
        for back in 0..=window {
            let mut last = start;
            let mut width = 0;
            while width < window + 1 && last < end {
                last = self.after[last];
                width += 1;
            }
            if width == window + 1 {
                self.add(start, width);
            }
            if start == 0 || back == window {
                break;
            }
            start = self.before[start];
        }
    }

    /// The cells that are in a tree of the whole sentence, by level.
    fn in_a_tree(mut self) -> Vec<Cell> {
        let mut used = vec![false; self.cells.len()];
        let mut open = vec![self.cells.len() - 1];
        if let Some(root) = self.by_span.get(&(0, self.after.len() - 1)) {
            open[0] = *root;
        }
        while let Some(index) = open.pop() {
            if !std::mem::replace(&mut used[index], true) {
                open.extend(self.cells[index].splits.iter().flat_map(|(l, r)| [*l, *r]));
            }
        }
        let mut order: Vec<usize> = (0..self.cells.len()).filter(|index| used[*index]).collect();
        order.sort_by_key(|index| self.cells[*index].level);
        let mut places = vec![0; self.cells.len()];
        order.iter().enumerate().for_each(|(place, index)| places[*index] = place);
        let mut sorted = Vec::with_capacity(order.len());
        for index in order {
            let Cell { start, end, splits, level } = &mut self.cells[index];
            let splits = std::mem::take(splits).into_iter().map(|(l, r)| (places[l], places[r])).collect();
            sorted.push(Cell { start: *start, end: *end, splits, level: *level });
        }
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_tasks::Random;

    fn scores(len: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed, "chart", len as u64);
        (1..len).map(|_| random.below(1_000_000) as f32).collect()
    }

    fn spans(chart: &Chart) -> Vec<(usize, usize)> {
        chart.cells().iter().map(|cell| (cell.start, cell.end)).collect()
    }

    #[test]
    fn a_window_as_long_as_the_sentence_has_every_span_with_every_split() {
        for len in 2..=9 {
            for window in len - 1..len + 3 {
                let chart = Chart::new(&scores(len, 0), window).unwrap();
                assert_eq!(chart.cells().len(), len * (len + 1) / 2);
                assert_eq!(chart.num_splits(), len * (len * len - 1) / 6);
                assert!(chart.cells().iter().all(|cell| cell.level == cell.end - cell.start - 1));
            }
        }
    }

    #[test]
    fn cells_grow_with_the_length_alone() {
        for window in [1, 2, 4, 8] {
            for len in [16, 64, 256, 1024] {
                for seed in 0..3 {
                    let chart = Chart::new(&scores(len, seed), window).unwrap();
                    assert!(chart.cells().len() <= 2 * (window + 1) * len, "{window} {len}");
                    assert!(chart.cells().iter().all(|cell| cell.splits.len() <= window));
                }
            }
        }
    }

    #[test]
    fn cells_stand_by_level_and_their_parts_meet() {
        for (len, window, seed) in [(2, 1, 0), (7, 1, 1), (12, 2, 2), (40, 3, 3), (40, 5, 4)] {
            let chart = Chart::new(&scores(len, seed), window).unwrap();
            let cells = chart.cells();
            assert!(cells.is_sorted_by_key(|cell| cell.level));
            assert_eq!(&spans(&chart)[..len], (0..len).map(|token| (token, token + 1)).collect::<Vec<_>>());
            assert_eq!(spans(&chart).last(), Some(&(0, len)));
            for (index, cell) in cells.iter().enumerate() {
                assert_eq!(cell.splits.is_empty(), cell.end - cell.start == 1);
                for (l, r) in &cell.splits {
                    assert!(*l < index && *r < index);
                    assert_eq!((cells[*l].start, cells[*r].end), (cell.start, cell.end));
                    assert_eq!(cells[*l].end, cells[*r].start);
                }
            }
            let mut unique = spans(&chart);
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), cells.len());
        }
    }

    #[test]
    fn a_window_of_one_split_has_the_tree_of_the_merges_alone() {
        // The highest score is the split of the root, and so on down.
        let chart = Chart::new(&[1.0, 5.0, 2.0, 3.0], 1).unwrap();
        let mut found = spans(&chart);
        found.sort_unstable();
        assert_eq!(found, [(0, 1), (0, 2), (0, 5), (1, 2), (2, 3), (2, 4), (2, 5), (3, 4), (4, 5)]);
        let tree = chart.tree(|_| 0);
        let tree: Vec<_> = tree.iter().map(|(cell, _)| spans(&chart)[*cell]).collect();
        assert_eq!(tree, [(0, 5), (0, 2), (2, 5), (2, 4)]);
    }

    #[test]
    fn cells_of_a_window_are_those_that_the_rule_gives_by_hand() {
        // Window 2, five tokens: all runs of three. Split 4 is merged, which makes 1|2|34, then
        // split 3, which makes 0|1|234. The run 0|1|2 is in no tree of the sentence.
        let chart = Chart::new(&[3.0, 2.0, 1.0, 0.0], 2).unwrap();
        let mut found = spans(&chart);
        found.sort_unstable();
        let all = [(0, 1), (0, 2), (0, 5), (1, 2), (1, 3), (1, 5), (2, 3), (2, 4), (2, 5), (3, 4), (3, 5), (4, 5)];
        assert_eq!(found, all);
        let splits_of = |start, end| {
            let cell = chart.cells().iter().find(|cell| (cell.start, cell.end) == (start, end)).unwrap();
            cell.splits.iter().map(|(left, _)| chart.cells()[*left].end).collect::<Vec<_>>()
        };
        assert_eq!(splits_of(1, 5), [2, 3]);
        assert_eq!(splits_of(2, 5), [3, 4]);
        assert_eq!(splits_of(0, 5), [1, 2]);
    }

    #[test]
    fn what_has_no_chart_is_refused() {
        assert_eq!(
            Chart::new(&[1.0], 0).unwrap_err().to_string(),
            "the window is 0, expected 1 or more splits of a cell"
        );
        assert_eq!(Chart::new(&[], 2).unwrap_err().to_string(), "a sentence has 1 tokens, expected 2 or more");
    }
}
