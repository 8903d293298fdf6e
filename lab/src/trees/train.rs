//! Training of a model that induces trees by masked words, and its figures.

use super::{
    data::{Corpus, Sentence},
    error::TreesError,
    model::{Batch, Induced, Losses, ModelSettings, Source, TreeModel},
    scores::{Figures, figures, figures_of_rule},
    tree::{Rule, Tree},
};
use crate::{AdamW, AdamWConfig};
use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};
use retie_tasks::Random;
use serde::Serialize;

/// Settings of a training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainSettings {
    /// Sizes of the model.
    pub model: ModelSettings,
    /// Steps of the optimizer.
    pub steps: usize,
    /// Sentences of a step.
    pub batch_sentences: usize,
    /// Highest learning rate: it goes up over the first tenth of the steps and down to 0 over the
    /// others, both on a line.
    pub learning_rate: f64,
    /// Part of the words that are masked.
    pub mask: f64,
    /// Seed of weights, batches, masks and noise.
    pub seed: u64,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            model: ModelSettings::default(),
            steps: 400,
            batch_sentences: 32,
            learning_rate: 4e-3,
            mask: 0.15,
            seed: 0,
        }
    }
}

/// States of the tokens of each sentence, `n · width` numbers a sentence.
#[derive(Clone, Copy, Debug)]
pub struct TokenStates<'a> {
    /// Features of a token.
    pub width: usize,
    /// Of the sentences to train on.
    pub train: &'a [Vec<f32>],
    /// Of those that are held out.
    pub held_out: &'a [Vec<f32>],
}

/// Figures of the induced trees of held-out sentences.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TreeFigures {
    /// Those of the charts.
    pub chart: Figures,
    /// Those of the parser.
    pub parser: Figures,
    /// Mean loss of masked words in the last tenth of training, in nats.
    pub loss: f64,
}

/// Figures of the trees of rules.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleFigures {
    /// Right-branching trees.
    pub right_branching: Figures,
    /// Left-branching trees.
    pub left_branching: Figures,
    /// Balanced trees.
    pub balanced: Figures,
    /// Trees with random splits.
    pub random: Figures,
}

impl RuleFigures {
    /// Figures over the held-out sentences.
    #[must_use]
    pub fn of(sentences: &[Sentence]) -> Self {
        let of = |rule| figures_of_rule(sentences, rule);
        Self {
            right_branching: of(Rule::RightBranching),
            left_branching: of(Rule::LeftBranching),
            balanced: of(Rule::Balanced),
            random: of(Rule::Random(0)),
        }
    }
}

/// What a training gives.
#[derive(Debug)]
pub struct Trained {
    /// Figures over the held-out sentences.
    pub figures: TreeFigures,
    /// Trees of the held-out sentences.
    pub trees: Vec<Induced>,
}

/// Trains a model on a corpus and induces the trees of its held-out sentences. Without `states` it
/// reads the words, otherwise the states. `progress` gets the number of steps that are done and the
/// loss of the words.
///
/// # Errors
/// Settings that no model has, states of other sentences, and a loss that is not finite.
pub fn train(
    corpus: &Corpus,
    states: Option<TokenStates<'_>>,
    settings: &TrainSettings,
    mut progress: impl FnMut(usize, f64),
) -> Result<Trained, TreesError> {
    check(corpus, states, settings)?;
    let device = Device::flex().autodiff();
    device.seed(settings.seed);
    let vocabulary = corpus.vocabulary.len();
    let source = match states {
        Some(TokenStates { width, .. }) => Source::States { width, vocabulary },
        None => Source::Words(vocabulary),
    };
    let mut model = TreeModel::new(&settings.model, source, &device)?;
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let mut batches = Batches::new(&corpus.train, settings);
    let (mut sum, mut counted) = (0.0, 0);
    for step in 0..settings.steps {
        let chosen = batches.next();
        let of_states = states.map(|TokenStates { width, train, .. }| (width, train));
        let batch = batch(&corpus.train, &chosen, of_states, &device);
        let mut random = Random::new(settings.seed, "tree masks", step as u64);
        let masked = masked(batch.words.len(), settings.mask, &mut random);
        let Losses { words, parser } = model.losses(&batch, &masked, &mut random)?;
        let loss = words.clone().into_data().iter::<f64>().next().unwrap_or(f64::NAN);
        if !loss.is_finite() {
            return Err(TreesError::Diverged { step, learning_rate: settings.learning_rate });
        }
        let total = parser.map_or_else(|| words.clone(), |parser| words.clone() + parser);
        let gradients = total.backward();
        model = optimizer.step(model, gradients, learning_rate(settings, step));
        if step >= settings.steps - settings.steps.div_ceil(10) {
            sum += loss;
            counted += 1;
        }
        progress(step + 1, loss);
    }
    let of_states = states.map(|TokenStates { width, held_out, .. }| (width, held_out));
    let trees = induce(&model.valid(), &corpus.held_out, of_states, settings.batch_sentences)?;
    let of = |tree: fn(&Induced) -> &Tree| figures(corpus.held_out.iter().zip(trees.iter().map(tree)));
    let figures = TreeFigures {
        chart: of(|induced| &induced.chart),
        parser: of(|induced| &induced.parser),
        loss: sum / f64::from(counted.max(1)),
    };
    Ok(Trained { figures, trees })
}

fn check(corpus: &Corpus, states: Option<TokenStates<'_>>, settings: &TrainSettings) -> Result<(), TreesError> {
    let wrong =
        |name, found: String, expected: &str| TreesError::Setting { name, found, expected: expected.to_owned() };
    if settings.steps == 0 {
        return Err(wrong("steps", "0".to_owned(), "1 or more"));
    }
    if settings.batch_sentences == 0 {
        return Err(wrong("batch_sentences", "0".to_owned(), "1 or more"));
    }
    if !(settings.mask > 0.0 && settings.mask < 1.0) {
        return Err(wrong("mask", settings.mask.to_string(), "a number between 0 and 1"));
    }
    let Some(TokenStates { width, train, held_out }) = states else { return Ok(()) };
    for (sentences, states) in [(&corpus.train, train), (&corpus.held_out, held_out)] {
        if sentences.len() != states.len() {
            let expected = format!("{}, one a sentence", sentences.len());
            return Err(wrong("lists of states", states.len().to_string(), &expected));
        }
        for (sentence, states) in sentences.iter().zip(states) {
            if states.len() != sentence.len() * width {
                return Err(TreesError::States { len: sentence.len(), found: states.len() / width.max(1) });
            }
        }
    }
    Ok(())
}

fn learning_rate(settings: &TrainSettings, step: usize) -> f64 {
    let warm = settings.steps.div_ceil(10);
    let done = step as f64 + 1.0;
    let part = match step < warm {
        true => done / warm as f64,
        false => (settings.steps - step) as f64 / (settings.steps - warm) as f64,
    };
    settings.learning_rate * part
}

/// Words that are not shown, one or more.
fn masked(len: usize, mask: f64, random: &mut Random) -> Vec<usize> {
    let mut masked: Vec<usize> = (0..len).filter(|_| random.chance(mask)).collect();
    if masked.is_empty() {
        masked.push(random.below(len));
    }
    masked
}

/// Batches of sentences of about one length, in random order, every sentence once a pass.
struct Batches {
    lengths: Vec<usize>,
    batch_sentences: usize,
    seed: u64,
    passes: u64,
    left: Vec<Vec<usize>>,
}

impl Batches {
    fn new(sentences: &[Sentence], settings: &TrainSettings) -> Self {
        let (batch_sentences, seed) = (settings.batch_sentences, settings.seed);
        Self {
            lengths: sentences.iter().map(Sentence::len).collect(),
            batch_sentences,
            seed,
            passes: 0,
            left: Vec::new(),
        }
    }

    fn next(&mut self) -> Vec<usize> {
        if let Some(batch) = self.left.pop() {
            return batch;
        }
        let mut random = Random::new(self.seed, "tree batches", self.passes);
        self.passes += 1;
        let mut order: Vec<usize> = (0..self.lengths.len()).collect();
        random.shuffle(&mut order);
        order.sort_by_key(|sentence| self.lengths[*sentence]);
        self.left = order.chunks(self.batch_sentences).map(<[usize]>::to_vec).collect();
        random.shuffle(&mut self.left);
        self.left.pop().unwrap_or_default()
    }
}

/// Sentences number `chosen` as a batch; `states` has their width and those of all sentences.
fn batch(sentences: &[Sentence], chosen: &[usize], states: Option<(usize, &[Vec<f32>])>, device: &Device) -> Batch {
    let lengths: Vec<usize> = chosen.iter().map(|index| sentences[*index].len()).collect();
    let words: Vec<u32> = chosen.iter().flat_map(|index| &sentences[*index].words).copied().collect();
    let states = states.map(|(width, states)| {
        let values: Vec<f32> = chosen.iter().flat_map(|index| &states[*index]).copied().collect();
        Tensor::from_data(TensorData::new(values, [words.len(), width]), device)
    });
    Batch { lengths, words, states }
}

/// The trees of all sentences, in their order.
fn induce(
    model: &TreeModel,
    sentences: &[Sentence],
    states: Option<(usize, &[Vec<f32>])>,
    batch_sentences: usize,
) -> Result<Vec<Induced>, TreesError> {
    let mut order: Vec<usize> = (0..sentences.len()).collect();
    order.sort_by_key(|sentence| sentences[*sentence].len());
    let mut found: Vec<Option<Induced>> = vec![None; sentences.len()];
    for chosen in order.chunks(batch_sentences) {
        let batch = batch(sentences, chosen, states, &Device::flex());
        for (index, induced) in chosen.iter().zip(model.induce(&batch)?) {
            found[*index] = Some(induced);
        }
    }
    Ok(found.into_iter().flatten().collect())
}
