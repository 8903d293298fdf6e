//! A model that induces trees: contextual inside-outside layers over the tokens of a sentence,
//! whose charts a parser prunes, and a head that says which words were masked.
//!
//! The head reads the outside states of the tokens. ReCAT has Transformer layers over all `2n - 1`
//! nodes in between; without them what a token learns of the others comes through the tree alone,
//! and the words have no other way to depend on each other.

use super::{
    block::{Block, Scorers},
    chart::Chart,
    error::TreesError,
    layer::{Layer, States},
    parser::{Parser, starts, tree_loss},
    plan::Plan,
    tree::{Tree, tree_of_scores, tree_of_weights},
};
use crate::drive::rows_tensor;
use burn::{
    module::{Module, Param},
    tensor::{Device, Int, Tensor, TensorData, activation::log_softmax},
};
use burn_nn::{Embedding, EmbeddingConfig, Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use retie_tasks::Random;

/// Sizes of a model.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ModelSettings {
    /// Features of a cell.
    pub hidden_size: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Features in the network of a block.
    pub intermediate_size: usize,
    /// Numbers in the products that score splits.
    pub score_size: usize,
    /// Contextual inside-outside layers.
    pub num_layers: usize,
    /// Most splits of a cell.
    pub window: usize,
    /// Features of the parser in each direction.
    pub parser_size: usize,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            hidden_size: 32,
            num_attention_heads: 4,
            intermediate_size: 64,
            score_size: 32,
            num_layers: 2,
            window: 4,
            parser_size: 32,
        }
    }
}

impl ModelSettings {
    /// # Errors
    /// A size of 0, and heads that do not divide the hidden size.
    pub fn check(&self) -> Result<(), TreesError> {
        if self.window == 0 {
            return Err(TreesError::Window);
        }
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("score_size", self.score_size),
            ("num_layers", self.num_layers),
            ("parser_size", self.parser_size),
        ];
        let wrong =
            |name, found: usize, expected: String| TreesError::Setting { name, found: found.to_string(), expected };
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(wrong(name, 0, "1 or more".to_owned()));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let expected = format!("a divisor of the hidden size {}", self.hidden_size);
            return Err(wrong("num_attention_heads", self.num_attention_heads, expected));
        }
        Ok(())
    }
}

/// What a model reads of each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Words of a vocabulary of this size, whose vectors it learns.
    Words(usize),
    /// States of so many features, and words of a vocabulary of this size to predict.
    States {
        /// Features.
        width: usize,
        /// Words.
        vocabulary: usize,
    },
}

/// How tokens become vectors.
#[derive(Module, Debug)]
enum Input {
    Words(Embedding),
    States(Linear),
}

/// The model.
#[derive(Module, Debug)]
pub struct TreeModel {
    input: Input,
    /// In the place of a masked token: `[1, D]`.
    mask: Param<Tensor<2>>,
    input_norm: LayerNorm,
    layers: Vec<Block>,
    scorers: Scorers,
    /// What the layer before the first one makes of every cell: `[1, D]`.
    empty_cell: Param<Tensor<2>>,
    parser: Parser,
    head: Linear,
    window: usize,
}

/// Tokens of a batch, one sentence after another.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Tokens of each sentence.
    pub lengths: Vec<usize>,
    /// All words.
    pub words: Vec<u32>,
    /// States of all tokens, `[L, width]`, for a model that reads such.
    pub states: Option<Tensor<2>>,
}

/// What the layers make of a batch.
struct Encoded {
    charts: Vec<Chart>,
    plan: Plan,
    /// Of the last layer.
    states: States,
    /// `[L - S, 1]`.
    split_scores: Tensor<2>,
}

/// The trees of a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Induced {
    /// Best splits of the chart in the last layer.
    pub chart: Tree,
    /// Best splits of the parser.
    pub parser: Tree,
}

/// Losses of a batch.
#[derive(Debug)]
pub struct Losses {
    /// Mean cross-entropy of the masked words.
    pub words: Tensor<1>,
    /// Mean cross-entropy of the parser's splits, if a span has a choice.
    pub parser: Option<Tensor<1>>,
}

impl TreeModel {
    /// A model with random weights.
    ///
    /// # Errors
    /// Settings that no model has.
    pub fn new(settings: &ModelSettings, source: Source, device: &Device) -> Result<Self, TreesError> {
        settings.check()?;
        let hidden = settings.hidden_size;
        let (input, vocabulary) = match source {
            Source::Words(vocabulary) => {
                (Input::Words(EmbeddingConfig::new(vocabulary, hidden).init(device)), vocabulary)
            }
            Source::States { width, vocabulary } => {
                (Input::States(LinearConfig::new(width, hidden).init(device)), vocabulary)
            }
        };
        let noise = || Initializer::Normal { mean: 0.0, std: 1.0 }.init([1, hidden], device);
        let block = |_| Block::new(hidden, settings.num_attention_heads, settings.intermediate_size, device);
        Ok(Self {
            input,
            mask: noise(),
            input_norm: LayerNormConfig::new(hidden).init(device),
            layers: (0..settings.num_layers).map(block).collect(),
            scorers: Scorers::new(hidden, settings.score_size, device),
            empty_cell: noise(),
            parser: Parser::new(hidden, settings.parser_size, device),
            head: LinearConfig::new(hidden, vocabulary).init(device),
            window: settings.window,
        })
    }

    /// Vectors of the tokens, of which those at `masked` are not shown: `[L, D]`.
    fn tokens(&self, batch: &Batch, masked: &[usize]) -> Result<Tensor<2>, TreesError> {
        let (device, len) = (self.mask.val().device(), batch.words.len());
        let tokens = match (&self.input, &batch.states) {
            (Input::Words(embedding), _) => {
                let words: Vec<i32> = batch.words.iter().map(|word| *word as i32).collect();
                let words = Tensor::<1, Int>::from_ints(words.as_slice(), &device).reshape([1, len]);
                embedding.forward(words).squeeze_dim::<2>(0)
            }
            (Input::States(input), Some(states)) => {
                let [found, _] = states.dims();
                if found != len {
                    return Err(TreesError::States { len, found });
                }
                input.forward(states.clone())
            }
            (Input::States(_), None) => return Err(TreesError::States { len, found: 0 }),
        };
        let tokens = if masked.is_empty() {
            tokens
        } else {
            let mut kept = vec![1.0_f32; len];
            masked.iter().for_each(|token| kept[*token] = 0.0);
            let kept = Tensor::<2>::from_data(TensorData::new(kept, [len, 1]), &device);
            let hidden = kept.clone().neg().add_scalar(1.0).matmul(self.mask.val()); // [L, D]
            tokens * kept + hidden
        };
        Ok(self.input_norm.forward(tokens))
    }

    /// Runs all layers. With `noise`, which training has, the parser's scores get Gumbel noise
    /// before the charts are merged in their order.
    fn encode(&self, tokens: Tensor<2>, lengths: &[usize], noise: Option<&mut Random>) -> Result<Encoded, TreesError> {
        let split_scores = self.parser.forward(tokens.clone(), lengths);
        let mut scores = values(split_scores.clone());
        if let Some(random) = noise {
            scores.iter_mut().for_each(|score| *score += gumbel(random));
        }
        let splits = starts(lengths.iter().map(|len| len - 1));
        let chart = |(first, len): (&usize, &usize)| Chart::new(&scores[*first..first + len - 1], self.window);
        let charts = splits.iter().zip(lengths).map(chart).collect::<Result<Vec<_>, _>>()?;
        let plan = Plan::new(&charts, &tokens.device())?;
        let [len, _] = tokens.dims();
        let mut before = self.empty_cell.val().repeat_dim(0, plan.inside.rows());
        let (mut tokens, mut made) = (tokens, None);
        for block in &self.layers {
            let states = Layer { block, scorers: &self.scorers }.forward(&plan, tokens, before)?;
            before = states.outside.clone();
            tokens = before.clone().narrow(0, 0, len);
            made = Some(states);
        }
        match made {
            Some(states) => Ok(Encoded { charts, plan, states, split_scores }),
            None => {
                Err(TreesError::Setting { name: "num_layers", found: "0".to_owned(), expected: "1 or more".to_owned() })
            }
        }
    }

    /// Losses of a batch of which the words at `masked`, one or more, are not shown.
    ///
    /// # Errors
    /// States of another number of tokens, sentences of one token.
    pub fn losses(&self, batch: &Batch, masked: &[usize], noise: &mut Random) -> Result<Losses, TreesError> {
        check(&batch.lengths)?;
        let tokens = self.tokens(batch, masked)?;
        let encoded = self.encode(tokens, &batch.lengths, Some(noise))?;
        let device = encoded.states.outside.device();
        let states = encoded.states.outside.clone().select(0, rows_tensor(masked, &device));
        let logits = self.head.forward(states); // [M, V]
        let [count, vocabulary] = logits.dims();
        let logs = log_softmax(logits, 1).reshape([count * vocabulary, 1]);
        let right = masked.iter().enumerate().map(|(row, token)| row * vocabulary + batch.words[*token] as usize);
        let words = logs.select(0, rows_tensor(&right.collect::<Vec<_>>(), &device)).mean().neg();
        let trees = encoded.chart_trees();
        Ok(Losses { words, parser: tree_loss(encoded.split_scores, &trees) })
    }

    /// The trees of the sentences of a batch, without masks and noise.
    ///
    /// # Errors
    /// States of another number of tokens, sentences of one token.
    pub fn induce(&self, batch: &Batch) -> Result<Vec<Induced>, TreesError> {
        check(&batch.lengths)?;
        let encoded = self.encode(self.tokens(batch, &[])?, &batch.lengths, None)?;
        let scores = values(encoded.split_scores.clone());
        let splits = starts(batch.lengths.iter().map(|len| len - 1));
        let parsers =
            splits.iter().zip(&batch.lengths).map(|(first, len)| tree_of_scores(&scores[*first..first + len - 1]));
        Ok(encoded.chart_trees().into_iter().zip(parsers).map(|(chart, parser)| Induced { chart, parser }).collect())
    }
}

impl Encoded {
    fn chart_trees(&self) -> Vec<Tree> {
        let weights: Vec<f32> =
            self.states.weights.iter().flat_map(|weights| values(weights.clone().detach())).collect();
        let of_sentence = |(sentence, chart): (usize, &Chart)| {
            let rows = self.plan.rows(sentence);
            tree_of_weights(chart, |cell| {
                let first = self.plan.first_pair(rows[cell]);
                &weights[first..first + chart.cells()[cell].splits.len()]
            })
        };
        self.charts.iter().enumerate().map(of_sentence).collect()
    }
}

fn check(lengths: &[usize]) -> Result<(), TreesError> {
    match lengths.iter().position(|len| *len < 2) {
        Some(index) => Err(TreesError::Short { place: format!("sentence {index} of a batch"), found: lengths[index] }),
        None => Ok(()),
    }
}

fn values(x: Tensor<2>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// A number of the Gumbel distribution: −ln(−ln u).
fn gumbel(random: &mut Random) -> f32 {
    // In the middle of one of 2⁵³ parts of the interval, so that neither end is met.
    let u = ((random.bits() >> 11) as f64 + 0.5) / 2_f64.powi(53);
    -(-u.ln()).ln() as f32
}
