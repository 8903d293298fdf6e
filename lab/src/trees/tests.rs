//! Both passes beside what they are by definition: all bracketings of a sentence, and the equations
//! of one cell after another.

use super::{
    Chart, Corpus, ModelSettings, Selection, TrainSettings,
    block::{Block, Pass, Scorers, product},
    layer::{Layer, inside},
    plan::Plan,
    train,
};
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use retie_tasks::{Random, TaskSpec};
use std::collections::HashMap;

fn values(x: Tensor<2>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

fn charts(lengths: &[usize], window: usize) -> Vec<Chart> {
    let chart = |len: &usize| {
        let mut random = Random::new(7, "scores", *len as u64);
        let scores: Vec<f32> = (1..*len).map(|_| random.below(1000) as f32).collect();
        Chart::new(&scores, window).unwrap()
    };
    lengths.iter().map(chart).collect()
}

/// Numbers between -1 and 1.
fn numbers(name: &str, index: usize, count: usize) -> Vec<f64> {
    let mut random = Random::new(3, name, index as u64);
    (0..count).map(|_| random.below(2001) as f64 / 1000.0 - 1.0).collect()
}

/// A composition that is linear, with scores that depend on start, split and end alone.
struct Linear {
    tokens: Vec<Vec<f64>>,
    left: Vec<Vec<f64>>,
    right: Vec<Vec<f64>>,
}

const SIZE: usize = 3;

impl Linear {
    fn new(len: usize) -> Self {
        let rows = |name: &str, count| (0..count).map(|row| numbers(name, row, SIZE)).collect();
        Self { tokens: rows("token", len), left: rows("left", SIZE), right: rows("right", SIZE) }
    }

    fn local(start: usize, split: usize, end: usize) -> f64 {
        numbers("local", (start * 10 + split) * 10 + end, 1)[0]
    }

    /// Weights of the splits of a span, and its score.
    fn weights(&self, start: usize, end: usize) -> (Vec<f64>, f64) {
        let score = |split| Self::local(start, split, end) + self.weights(start, split).1 + self.weights(split, end).1;
        let scores: Vec<f64> = (start + 1..end).map(score).collect();
        let sum: f64 = scores.iter().map(|score| score.exp()).sum();
        let weights: Vec<f64> = scores.iter().map(|score| score.exp() / sum).collect();
        let score = scores.iter().zip(&weights).map(|(score, weight)| score * weight).sum();
        (weights, score)
    }

    /// Every bracketing of a span: the product of the weights of its splits, and its value.
    fn bracketings(&self, start: usize, end: usize) -> Vec<(f64, Vec<f64>)> {
        if end - start == 1 {
            return vec![(1.0, self.tokens[start].clone())];
        }
        let (weights, _) = self.weights(start, end);
        let mut all = Vec::new();
        for (split, weight) in (start + 1..end).zip(weights) {
            for (left_weight, left) in self.bracketings(start, split) {
                for (right_weight, right) in self.bracketings(split, end) {
                    let times = |x: &[f64], a: &[Vec<f64>], to: usize| (0..SIZE).map(|i| x[i] * a[i][to]).sum::<f64>();
                    let value = (0..SIZE).map(|to| times(&left, &self.left, to) + times(&right, &self.right, to));
                    all.push((weight * left_weight * right_weight, value.collect()));
                }
            }
        }
        all
    }
}

fn matrix(rows: &[Vec<f64>]) -> Tensor<2> {
    let values: Vec<f32> = rows.concat().iter().map(|x| *x as f32).collect();
    Tensor::from_data(TensorData::new(values, [rows.len(), SIZE]), &Device::flex())
}

#[test]
fn the_root_of_a_linear_composition_is_the_sum_over_all_bracketings() {
    for (len, catalan) in [(2, 1), (3, 2), (4, 5), (5, 14), (6, 42)] {
        let (device, linear) = (Device::flex(), Linear::new(len));
        let charts = charts(&[len], len);
        let plan = Plan::new(&charts, &device).unwrap();
        let mut spans = vec![(0, 0); charts[0].cells().len()];
        for (cell, row) in charts[0].cells().iter().zip(plan.rows(0)) {
            spans[*row] = (cell.start, cell.end);
        }
        let (left, right) = (matrix(&linear.left), matrix(&linear.right));
        let start = [matrix(&linear.tokens), Tensor::zeros([len, 1], &device)];
        let passed = inside(
            &plan,
            start,
            |step, inputs, _| {
                let lists = &plan.inside.steps()[step].inputs;
                let local = lists[0].iter().zip(&lists[1]).map(|(l, r)| {
                    let ((start, split), (_, end)) = (spans[*l], spans[*r]);
                    Linear::local(start, split, end) as f32
                });
                let local: Vec<f32> = local.collect();
                let pairs = local.len();
                let local = Tensor::<2>::from_data(TensorData::new(local, [pairs, 1]), &device);
                let values = inputs.get(0, 0).matmul(left.clone()) + inputs.get(0, 1).matmul(right.clone());
                [local + inputs.get(1, 0) + inputs.get(1, 1), values]
            },
            |values, scores| [values, scores],
        )
        .unwrap();
        let [table, _] = passed.table;
        let root = values(table.narrow(0, spans.len() - 1, 1));
        let all = linear.bracketings(0, len);
        assert_eq!(all.len(), catalan);
        for (to, found) in root.iter().enumerate() {
            let expected: f64 = all.iter().map(|(weight, value)| weight * value[to]).sum();
            // 1e-5: f32 beside f64 over a few sums.
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{len} tokens: {found} {expected}");
        }
    }
}

const HIDDEN: usize = 8;

/// States of the spans of one sentence.
type BySpan = HashMap<(usize, usize), (Tensor<2>, Tensor<2>)>;

/// The equations of a layer, one cell after another.
struct AsDefined<'a> {
    block: &'a Block,
    scorers: &'a Scorers,
    chart: &'a Chart,
    /// What the layer before makes of each cell.
    before: Vec<Tensor<2>>,
}

impl AsDefined<'_> {
    fn span(&self, cell: usize) -> (usize, usize) {
        (self.chart.cells()[cell].start, self.chart.cells()[cell].end)
    }

    fn inside(&self, tokens: &Tensor<2>) -> BySpan {
        let mut found = BySpan::new();
        for (index, cell) in self.chart.cells().iter().enumerate() {
            if cell.splits.is_empty() {
                let token = tokens.clone().narrow(0, cell.start, 1);
                found.insert(self.span(index), (token, Tensor::zeros([1, 1], &tokens.device())));
                continue;
            }
            let (mut states, mut scores) = (Vec::new(), Vec::new());
            for (left, right) in &cell.splits {
                let ((e_left, s_left), (e_right, s_right)) = (&found[&self.span(*left)], &found[&self.span(*right)]);
                let above = self.before[index].clone();
                let context = [above.clone(), e_left.clone(), e_right.clone()];
                states.push(self.block.as_defined(Pass::Inside, (above, 0), context));
                let left = self.scorers.inside_left.forward(e_left.clone());
                let right = self.scorers.inside_right.forward(e_right.clone());
                scores.push(product(left, right) + s_left.clone() + s_right.clone());
            }
            found.insert(self.span(index), running(&states, &scores));
        }
        found
    }

    fn outside(&self, inside: &BySpan) -> BySpan {
        let root = self.span(self.chart.cells().len() - 1);
        let state = inside[&root].0.clone();
        let mut found = BySpan::from([(root, (state.clone(), Tensor::zeros([1, 1], &state.device())))]);
        let mut from_above: HashMap<(usize, usize), (Vec<Tensor<2>>, Vec<Tensor<2>>)> = HashMap::new();
        for index in (0..self.chart.cells().len()).rev() {
            let span = self.span(index);
            if let Some((states, scores)) = from_above.get(&span) {
                found.insert(span, running(states, scores));
            }
            let (o, b) = found[&span].clone();
            for (left, right) in &self.chart.cells()[index].splits {
                let (left, right) = (self.span(*left), self.span(*right));
                let ((e_left, s_left), (e_right, s_right)) = (inside[&left].clone(), inside[&right].clone());
                let context = [e_left.clone(), e_right.clone(), o.clone()];
                let parent = self.scorers.outside_parent.forward(o.clone());
                let by_right = self.scorers.outside_right.forward(e_right.clone());
                let by_left = self.scorers.outside_left.forward(e_left.clone());
                for (to, source, score) in [
                    (left, (e_left, 0), product(parent.clone(), by_right) + b.clone() + s_right),
                    (right, (e_right, 1), product(parent.clone(), by_left) + b.clone() + s_left),
                ] {
                    let (states, scores) = from_above.entry(to).or_default();
                    states.push(self.block.as_defined(Pass::Outside, source, context.clone()));
                    scores.push(score);
                }
            }
        }
        found
    }
}

/// Sums weighted by a softmax, one term after another from the last one on: the sum so far is
/// scaled whenever a term is added.
fn running(states: &[Tensor<2>], scores: &[Tensor<2>]) -> (Tensor<2>, Tensor<2>) {
    let mut so_far: Option<(f64, Tensor<2>, f64)> = None;
    for (state, score) in states.iter().zip(scores).rev() {
        let score = f64::from(values(score.clone())[0]);
        let weight = score.exp();
        so_far = Some(match so_far {
            None => (weight, state.clone(), score),
            Some((sum, state_sum, score_sum)) => {
                let (old, new) = (sum / (sum + weight), weight / (sum + weight));
                let state = state_sum.mul_scalar(old) + state.clone().mul_scalar(new);
                (sum + weight, state, score_sum * old + score * new)
            }
        });
    }
    let (_, state, score) = so_far.unwrap();
    (state, Tensor::from_floats([[score as f32]], &Device::flex()))
}

#[test]
fn both_passes_of_a_batch_are_those_of_one_cell_after_another() {
    let device = Device::flex();
    let (block, scorers) = (Block::new(HIDDEN, 2, 12, &device), Scorers::new(HIDDEN, 5, &device));
    for window in [1, 2, 6] {
        let lengths = [6, 2, 9];
        let charts = charts(&lengths, window);
        let plan = Plan::new(&charts, &device).unwrap();
        // Large states, so that weights differ.
        let normal = |rows| Tensor::<2>::random([rows, HIDDEN], Distribution::Normal(0.0, 3.0), &device);
        let (tokens, before) = (normal(17), normal(plan.inside.rows()));
        let layer = Layer { block: &block, scorers: &scorers };
        let passed = layer.inside(&plan, tokens.clone(), before.clone()).unwrap();
        let outside = layer.outside(&plan, &passed.table).unwrap();
        let [e, s, ..] = passed.table;
        let mut first = 0;
        for (sentence, chart) in charts.iter().enumerate() {
            let row = |x: &Tensor<2>, row: usize| x.clone().narrow(0, row, 1);
            let before = plan.rows(sentence).iter().map(|cell| row(&before, *cell)).collect();
            let defined = AsDefined { block: &block, scorers: &scorers, chart, before };
            let inside = defined.inside(&tokens.clone().narrow(0, first, lengths[sentence]));
            let above = defined.outside(&inside);
            for (cell, place) in plan.rows(sentence).iter().enumerate() {
                let span = defined.span(cell);
                let pairs = [(&e, &inside[&span].0), (&s, &inside[&span].1), (&outside, &above[&span].0)];
                for (found, expected) in pairs {
                    let difference = (row(found, *place) - expected.clone()).abs().max().into_scalar::<f32>();
                    // 1e-4: sums in another order, through up to 8 levels of normalised states.
                    assert!(difference < 1e-4, "window {window}, {span:?}: {difference}");
                }
            }
            first += lengths[sentence];
        }
    }
}

#[test]
fn gradients_of_both_passes_are_those_of_differences() {
    let device = Device::flex().autodiff();
    let (block, scorers) = (Block::new(HIDDEN, 2, 12, &device), Scorers::new(HIDDEN, 5, &device));
    let charts = charts(&[5, 3], 2);
    let plan = Plan::new(&charts, &device).unwrap();
    let normal = |rows| Tensor::<2>::random([rows, HIDDEN], Distribution::Normal(0.0, 1.0), &device);
    let (before, direction, weights) = (normal(plan.inside.rows()), normal(8), normal(plan.inside.rows()));
    let value = |tokens: Tensor<2>| {
        let states = Layer { block: &block, scorers: &scorers }.forward(&plan, tokens, before.clone()).unwrap();
        (states.outside * weights.clone()).sum()
    };
    let tokens = normal(8).require_grad();
    let gradients = value(tokens.clone()).backward();
    let slope = (tokens.grad(&gradients).unwrap() * direction.clone().inner()).sum().into_scalar::<f32>();
    let step = 1e-2;
    let at = |by: f64| value(tokens.clone() + direction.clone().mul_scalar(by)).into_scalar::<f32>();
    let difference = (at(step) - at(-step)) / (2.0 * step as f32);
    // 2 %: the third derivative and f32 roundings of a difference.
    assert!((slope - difference).abs() < 0.02 * slope.abs().max(5.0), "{slope} {difference}");
}

fn small() -> (Corpus, TrainSettings) {
    let selection = Selection { tokens: 4..=10, train: 64, held_out: 20 };
    let corpus = Corpus::of_task(&TaskSpec::parse("listops?length=2..4").unwrap(), &selection).unwrap();
    let model = ModelSettings {
        hidden_size: 16,
        num_attention_heads: 2,
        intermediate_size: 16,
        score_size: 8,
        num_layers: 2,
        window: 2,
        parser_size: 8,
    };
    (corpus, TrainSettings { model, steps: 12, batch_sentences: 16, ..TrainSettings::default() })
}

#[test]
fn a_model_is_trained_and_gives_a_tree_of_every_sentence() {
    let (corpus, settings) = small();
    let mut losses = Vec::new();
    let trained = train(&corpus, None, &settings, |_, loss| losses.push(loss)).unwrap();
    assert_eq!((losses.len(), trained.trees.len()), (12, 20));
    assert!(losses[9..].iter().sum::<f64>() < losses[..3].iter().sum::<f64>(), "{losses:?}");
    let is_inner =
        |sentence: &super::Sentence, (start, end): &(usize, usize)| end - start > 1 && end - start < sentence.len();
    let counted = corpus.held_out.iter().filter(|s| s.spans.iter().any(|span| is_inner(s, span))).count();
    assert!(counted > 0 && trained.figures.chart.sentences == counted, "{counted}");
    for (sentence, induced) in corpus.held_out.iter().zip(&trained.trees) {
        for tree in [&induced.chart, &induced.parser] {
            assert_eq!(tree.len(), sentence.len() - 1);
            assert!(tree.iter().all(|node| node.start < node.split && node.split < node.end));
        }
    }
}

#[test]
fn states_of_other_sentences_are_refused() {
    use super::TokenStates;
    let (corpus, settings) = small();
    let states = |sentences: &[super::Sentence], more| -> Vec<Vec<f32>> {
        sentences.iter().map(|sentence| vec![0.5; (sentence.len() + more) * 3]).collect()
    };
    let (train_states, held_out) = (states(&corpus.train, 0), states(&corpus.held_out, 1));
    let of = |held_out| Some(TokenStates { width: 3, train: &train_states, held_out });
    let message = train(&corpus, of(&held_out), &settings, |_, _| {}).unwrap_err().to_string();
    assert!(message.contains("states for") && message.contains("those of another tokenisation"), "{message}");
    let message = train(&corpus, of(&held_out[1..]), &settings, |_, _| {}).unwrap_err().to_string();
    assert!(message.contains("`lists of states` is 19, expected 20"), "{message}");
    let right = states(&corpus.held_out, 0);
    assert!(train(&corpus, of(&right), &TrainSettings { steps: 1, ..settings }, |_, _| {}).is_ok());
}

#[test]
fn settings_that_no_model_has_are_refused() {
    let (corpus, settings) = small();
    let message = |change: fn(&mut TrainSettings)| {
        let mut settings = settings.clone();
        change(&mut settings);
        train(&corpus, None, &settings, |_, _| {}).unwrap_err().to_string()
    };
    assert!(message(|s| s.model.window = 0).starts_with("the window is 0"));
    assert_eq!(message(|s| s.model.num_layers = 0), "`num_layers` is 0, expected 1 or more");
    assert_eq!(
        message(|s| s.model.num_attention_heads = 3),
        "`num_attention_heads` is 3, expected a divisor of the hidden size 16"
    );
    assert_eq!(message(|s| s.mask = 1.0), "`mask` is 1, expected a number between 0 and 1");
    assert_eq!(message(|s| s.steps = 0), "`steps` is 0, expected 1 or more");
    let diverged = |s: &mut TrainSettings| s.learning_rate = 1e30;
    assert!(message(diverged).starts_with("the loss is not finite after step"));
}
