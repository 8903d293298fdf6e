//! Binary trees over a sentence: those that are induced, and those of rules.

use super::chart::Chart;
use retie_tasks::Random;

/// A span of two tokens or more with its split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Node {
    /// First token.
    pub start: usize,
    /// First token behind.
    pub end: usize,
    /// First token of the right part.
    pub split: usize,
}

/// The `n - 1` nodes of a binary tree over `n` tokens, from the root down.
pub type Tree = Vec<Node>;

/// A rule that makes a tree of any sentence without looking at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The first token and the rest, which is split so too.
    RightBranching,
    /// The last token and what is before.
    LeftBranching,
    /// Halves, of which the left one has the odd token.
    Balanced,
    /// Every split as likely, from this seed.
    Random(u64),
}

impl Rule {
    /// The tree of sentence number `index` of `len` tokens. The index makes a difference to random
    /// trees alone.
    #[must_use]
    pub fn tree(self, len: usize, index: usize) -> Tree {
        let mut random = match self {
            Self::Random(seed) => Random::new(seed, "random trees", index as u64),
            _ => Random::new(0, "", 0),
        };
        split_down(len, |start, end| match self {
            Self::RightBranching => start + 1,
            Self::LeftBranching => end - 1,
            Self::Balanced => start + (end - start).div_ceil(2),
            Self::Random(_) => start + 1 + random.below(end - start - 1),
        })
    }
}

/// The tree whose spans `choose` splits: it gets start and end and gives the first token of the
/// right part.
fn split_down(len: usize, mut choose: impl FnMut(usize, usize) -> usize) -> Tree {
    let mut tree = Vec::with_capacity(len.saturating_sub(1));
    let mut open = vec![(0, len)];
    while let Some((start, end)) = open.pop() {
        if end - start > 1 {
            let split = choose(start, end);
            tree.push(Node { start, end, split });
            open.extend([(split, end), (start, split)]);
        }
    }
    tree
}

/// The tree in which every span is split where its score is highest, the first one of equals:
/// `scores[k - 1]` belongs to split `k`.
#[must_use]
pub fn tree_of_scores(scores: &[f32]) -> Tree {
    split_down(scores.len() + 1, |start, end| {
        let inner = start + 1..end;
        inner.rev().max_by(|a, b| scores[a - 1].total_cmp(&scores[b - 1])).unwrap_or(start + 1)
    })
}

/// The tree of a chart in which every cell is split where its weight is highest. `weights` are
/// those of the splits of a cell, given its index.
pub fn tree_of_weights<'w>(chart: &Chart, weights: impl Fn(usize) -> &'w [f32]) -> Tree {
    let best = |cell: usize| {
        let splits = weights(cell).iter().enumerate().rev();
        splits.max_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(0, |(split, _)| split)
    };
    let cells = chart.cells();
    let node = |(cell, (left, _)): (usize, (usize, usize))| Node {
        start: cells[cell].start,
        end: cells[cell].end,
        split: cells[left].end,
    };
    chart.tree(best).into_iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(tree: &Tree) -> Vec<(usize, usize)> {
        tree.iter().map(|node| (node.start, node.end)).collect()
    }

    #[test]
    fn rules_give_the_trees_of_their_names() {
        assert_eq!(spans(&Rule::RightBranching.tree(4, 0)), [(0, 4), (1, 4), (2, 4)]);
        assert_eq!(spans(&Rule::LeftBranching.tree(4, 0)), [(0, 4), (0, 3), (0, 2)]);
        assert_eq!(spans(&Rule::Balanced.tree(5, 0)), [(0, 5), (0, 3), (0, 2), (3, 5)]);
        for index in 0..20 {
            let tree = Rule::Random(1).tree(9, index);
            assert_eq!(tree.len(), 8);
            assert!(tree.iter().all(|node| node.start < node.split && node.split < node.end));
        }
        assert_ne!(Rule::Random(1).tree(9, 0), Rule::Random(1).tree(9, 1));
    }

    #[test]
    fn spans_are_split_at_the_highest_score() {
        let tree = tree_of_scores(&[1.0, 5.0, 2.0, 3.0]);
        assert_eq!(spans(&tree), [(0, 5), (0, 2), (2, 5), (2, 4)]);
        // As a chart with one split a cell has it, which merges from the lowest score on.
        let chart = Chart::new(&[1.0, 5.0, 2.0, 3.0], 1).unwrap();
        assert_eq!(tree_of_weights(&chart, |_| &[1.0]), tree);
        assert_eq!(tree_of_scores(&[0.0, 0.0])[0].split, 1);
    }

    #[test]
    fn cells_are_split_at_the_highest_weight() {
        let chart = Chart::new(&[0.0, 0.0], 2).unwrap();
        let root = chart.cells().len() - 1;
        let tree =
            |weights: &'static [f32]| tree_of_weights(&chart, |cell| if cell == root { weights } else { &[1.0] });
        assert_eq!(spans(&tree(&[0.4, 0.6])), [(0, 3), (0, 2)]);
        assert_eq!(spans(&tree(&[0.5, 0.5])), [(0, 3), (1, 3)]);
    }
}
