//! How much of a gold tree a binary tree has.
//!
//! Unlabelled F1 of the spans of a sentence of `n` tokens. Spans of one token and of the whole
//! sentence are left out of both trees: every tree has them. The binary tree has `n - 2` others;
//! the gold tree, whose nodes can have many children, has `g`, each counted once. With `c` spans in
//! common, precision is `c / (n - 2)`, recall `c / g` and F1 `2 c / (n - 2 + g)`. Figures are means
//! over sentences with `g > 0`; the others are not counted. A binary tree that has all gold spans
//! has the F1 `2 g / (n - 2 + g)`, which is below 1 where gold nodes have more than two children:
//! the ceiling.

use super::{
    data::Sentence,
    tree::{Rule, Tree},
};
use serde::Serialize;
use std::collections::BTreeSet;

/// Figures of the trees of many sentences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Mean F1.
    pub f1: f64,
    /// Mean recall: part of the gold spans that the trees have.
    pub recall: f64,
    /// Mean F1 of binary trees with all gold spans.
    pub ceiling: f64,
    /// Sentences that are counted.
    pub sentences: usize,
}

/// The gold spans of a sentence that count.
fn gold(sentence: &Sentence) -> BTreeSet<(usize, usize)> {
    let counts = |(start, end): &(usize, usize)| end - start > 1 && end - start < sentence.len();
    sentence.spans.iter().copied().filter(counts).collect()
}

/// Figures of one tree a sentence.
#[must_use]
pub fn figures<'a>(sentences: impl IntoIterator<Item = (&'a Sentence, &'a Tree)>) -> Figures {
    let mut sums = Figures::default();
    for (sentence, tree) in sentences {
        let gold = gold(sentence);
        if gold.is_empty() {
            continue;
        }
        let common = tree.iter().filter(|node| gold.contains(&(node.start, node.end))).count();
        let both = (sentence.len() - 2 + gold.len()) as f64;
        sums.f1 += 2.0 * common as f64 / both;
        sums.recall += common as f64 / gold.len() as f64;
        sums.ceiling += 2.0 * gold.len() as f64 / both;
        sums.sentences += 1;
    }
    let count = sums.sentences.max(1) as f64;
    Figures { f1: sums.f1 / count, recall: sums.recall / count, ceiling: sums.ceiling / count, ..sums }
}

/// Figures of a rule's trees.
#[must_use]
pub fn figures_of_rule(sentences: &[Sentence], rule: Rule) -> Figures {
    let trees: Vec<Tree> = sentences.iter().enumerate().map(|(index, s)| rule.tree(s.len(), index)).collect();
    figures(sentences.iter().zip(&trees))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(len: u32, spans: &[(usize, usize)]) -> Sentence {
        let tokens = (0..len).map(|token| token.to_string()).collect();
        Sentence { tokens, words: (0..len).collect(), spans: spans.to_vec() }
    }

    #[test]
    fn trivial_spans_are_left_out_and_spans_count_once() {
        let gold = sentence(5, &[(0, 5), (1, 4), (1, 4), (2, 3), (3, 5)]);
        // The right-branching tree has 1..5, 2..5 and 3..5 besides the sentence.
        let found = figures_of_rule(&[gold], Rule::RightBranching);
        assert_eq!(found, Figures { f1: 2.0 / 5.0, recall: 0.5, ceiling: 4.0 / 5.0, sentences: 1 });
    }

    #[test]
    fn figures_are_means_over_sentences_with_gold_spans() {
        let sentences = [sentence(3, &[(1, 3)]), sentence(3, &[(0, 2)]), sentence(4, &[(0, 4)]), sentence(2, &[])];
        let found = figures_of_rule(&sentences, Rule::RightBranching);
        assert_eq!(found, Figures { f1: 0.5, recall: 0.5, ceiling: 1.0, sentences: 2 });
        assert_eq!(figures_of_rule(&sentences[2..], Rule::Balanced), Figures::default());
    }
}
