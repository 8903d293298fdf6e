//! The parser that says in which order a chart is merged: scores of the splits of a sentence from a
//! BiLSTM over its tokens. It learns from the trees that the charts choose, and nothing flows back
//! through it: its input is detached, and a chart is a matter of indices.

use super::tree::Tree;
use crate::drive::rows_tensor;
use burn::{
    module::Module,
    tensor::{
        Device, Tensor, TensorData,
        activation::{gelu, log_softmax},
    },
};
use burn_nn::{BiLstm, BiLstmConfig, Linear, LinearConfig};
use std::collections::BTreeMap;

/// Below every score, for places without a split.
const NO_SPLIT: f32 = -1e30;

/// Scores of splits from the tokens on both sides.
#[derive(Module, Debug)]
pub struct Parser {
    input: Linear,
    lstm: BiLstm,
    hidden: Linear,
    score: Linear,
}

impl Parser {
    /// A parser of tokens of `hidden` features, with `size` in each direction.
    #[must_use]
    pub fn new(hidden: usize, size: usize, device: &Device) -> Self {
        Self {
            input: LinearConfig::new(hidden, size).init(device),
            lstm: BiLstmConfig::new(size, size, true).init(device),
            hidden: LinearConfig::new(4 * size, size).init(device),
            score: LinearConfig::new(size, 1).init(device),
        }
    }

    /// Scores of the `n - 1` splits of every sentence, one sentence after another: `tokens [L, D]`
    /// of sentences of `lengths` → `[L - S, 1]`. Sentences of one length are one batch.
    #[must_use]
    pub fn forward(&self, tokens: Tensor<2>, lengths: &[usize]) -> Tensor<2> {
        let device = tokens.device();
        let tokens = self.input.forward(tokens.detach());
        let [_, size] = tokens.dims();
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        lengths.iter().enumerate().for_each(|(sentence, len)| by_length.entry(*len).or_default().push(sentence));
        let (token_starts, split_starts) = (starts(lengths.iter().copied()), starts(lengths.iter().map(|len| len - 1)));
        let (mut scores, mut order) = (Vec::new(), Vec::new());
        for (len, sentences) in by_length {
            let rows: Vec<usize> = sentences.iter().flat_map(|s| token_starts[*s]..token_starts[*s] + len).collect();
            let batch = tokens.clone().select(0, rows_tensor(&rows, &device));
            let (states, _) = self.lstm.forward(batch.reshape([sentences.len(), len, size]), None); // [B, n, 2·size]
            let side = |from, to| states.clone().slice([0..sentences.len(), from..to]);
            let both = Tensor::cat(vec![side(0, len - 1), side(1, len)], 2); // [B, n - 1, 4·size]
            let of_batch = self.score.forward(gelu(self.hidden.forward(both)));
            scores.push(of_batch.reshape([sentences.len() * (len - 1), 1]));
            order.extend(sentences.iter().flat_map(|s| split_starts[*s]..split_starts[*s] + len - 1));
        }
        let mut rows = vec![0; order.len()];
        order.iter().enumerate().for_each(|(row, split)| rows[*split] = row);
        Tensor::cat(scores, 0).select(0, rows_tensor(&rows, &device))
    }
}

/// Where each of the parts begins.
pub fn starts(sizes: impl Iterator<Item = usize>) -> Vec<usize> {
    sizes
        .scan(0, |next, size| {
            let start = *next;
            *next += size;
            Some(start)
        })
        .collect()
}

/// Mean cross-entropy of the splits of trees, each among the splits of its span: `scores` as
/// [`Parser::forward`] gives them, a tree a sentence. `None` if no span has a choice.
#[must_use]
pub fn tree_loss(scores: Tensor<2>, trees: &[Tree]) -> Option<Tensor<1>> {
    let splits = starts(trees.iter().map(Vec::len));
    let (mut spans, mut width) = (Vec::new(), 0);
    for (first, tree) in splits.iter().zip(trees) {
        for node in tree.iter().filter(|node| node.end - node.start > 2) {
            // Split k has the score k - 1 of its sentence.
            let inner = first + node.start..first + node.end - 1;
            width = width.max(inner.len());
            spans.push((inner, node.split - node.start - 1));
        }
    }
    if spans.is_empty() {
        return None;
    }
    let device = scores.device();
    let (mut slots, mut gaps) = (vec![0; spans.len() * width], vec![NO_SPLIT; spans.len() * width]);
    let mut chosen = Vec::with_capacity(spans.len());
    for (row, (inner, choice)) in spans.iter().enumerate() {
        for (place, split) in inner.clone().enumerate() {
            (slots[row * width + place], gaps[row * width + place]) = (split, 0.0);
        }
        chosen.push(row * width + choice);
    }
    let padded = scores.select(0, rows_tensor(&slots, &device)).reshape([spans.len(), width]);
    let gaps = Tensor::<2>::from_data(TensorData::new(gaps, [spans.len(), width]), &device);
    let logs = log_softmax(padded + gaps, 1).reshape([spans.len() * width, 1]);
    Some(logs.select(0, rows_tensor(&chosen, &device)).mean().neg())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trees::tree::Node;

    #[test]
    fn scores_of_a_sentence_do_not_depend_on_the_others() {
        let device = Device::flex();
        let parser = Parser::new(6, 4, &device);
        let tokens = Tensor::<2>::random([9, 6], burn::tensor::Distribution::Default, &device);
        let values = |x: Tensor<2>| x.into_data().iter::<f32>().collect::<Vec<_>>();
        let all = values(parser.forward(tokens.clone(), &[3, 2, 4]));
        let mut alone = Vec::new();
        for (start, len) in [(0, 3), (3, 2), (5, 4)] {
            alone.extend(values(parser.forward(tokens.clone().narrow(0, start, len), &[len])));
        }
        // 1e-5: sums in another order.
        assert!(all.len() == 6 && all.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-5), "{all:?} {alone:?}");
    }

    #[test]
    fn the_loss_is_that_of_the_splits_of_each_span() {
        let node = |start, end, split| Node { start, end, split };
        // Scores of the splits of a sentence of four tokens and of one of two.
        let scores = Tensor::<2>::from_floats([[0.0], [2_f32.ln()], [3_f32.ln()], [9.0]], &Device::flex());
        let trees = [vec![node(0, 4, 1), node(1, 4, 3), node(1, 3, 2)], vec![node(0, 2, 1)]];
        let loss: f32 = tree_loss(scores.clone(), &trees).unwrap().into_scalar();
        // −(ln 1/6 + ln 3/5) / 2
        let expected = (6_f32.ln() + (5.0_f32 / 3.0).ln()) / 2.0;
        assert!((loss - expected).abs() < 1e-6, "{loss} {expected}");
        assert!(tree_loss(scores, &trees[1..]).is_none());
    }
}
