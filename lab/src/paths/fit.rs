//! Fitting, from the facts to train on alone. The encoder sees queries of [`TRAINING_TYPES`], each
//! step a batch of random ones with a random answer each, against entities that are no answers:
//! `-log(exp(⟨h, a⟩) / Σ exp(⟨h, e⟩))` (InfoNCE). The baseline sees single facts.

use super::{LinkKind, Links, Pathformer, PathformerConfig, Question, TRAINING_TYPES, sample::training_queries};
use crate::{AdamW, AdamWConfig, LabError, Noise, seeded};
use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, TensorData, activation::log_softmax},
};
use retie_tasks::{
    Random,
    graph::{EntitySet, Graph, Query, QueryType},
};

/// What is added to the scores of entities that are answers too.
const LEFT_OUT: f32 = -1e9;

/// How a network is fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct FitSettings {
    /// Steps.
    pub steps: usize,
    /// Queries, or facts, of a step.
    pub batch_size: usize,
    /// Learning rate at the start; it falls to 0 along a line.
    pub learning_rate: f64,
    /// Entities that each answer is held against.
    pub negatives: usize,
    /// Queries of each type to choose from.
    pub queries: usize,
    /// Seed of weights, queries, orders and dropout.
    pub seed: u64,
}

impl FitSettings {
    fn check(&self) -> Result<(), LabError> {
        let bad = |found: String, expected: &str| Err(LabError::Setting { found, expected: expected.to_owned() });
        if [self.steps, self.batch_size, self.negatives, self.queries].contains(&0) {
            return bad("0 steps, queries or negatives".to_owned(), "at least 1 of each");
        }
        match self.learning_rate > 0.0 && self.learning_rate.is_finite() {
            true => Ok(()),
            false => bad(format!("a learning rate of {}", self.learning_rate), "a positive number"),
        }
    }

    fn learning_rate(&self, step: usize) -> f64 {
        self.learning_rate * (1.0 - step as f64 / self.steps as f64)
    }
}

/// Draws entities for each row; of those that are answers `mask` has `left_out`, of others 0.
fn negatives(
    answers: &[&EntitySet],
    settings: &FitSettings,
    num_entities: usize,
    random: &mut Random,
) -> (Vec<i64>, Vec<bool>) {
    let count = answers.len() * settings.negatives;
    let (mut drawn, mut is_answer) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for answers in answers {
        for _ in 0..settings.negatives {
            let entity = random.below(num_entities);
            drawn.push(entity as i64);
            is_answer.push(answers.contains(entity));
        }
    }
    (drawn, is_answer)
}

/// Fits an encoder to the queries of a graph, and returns it with the mean loss of each tenth of
/// the steps. `device` has autodiff; the encoder that is returned has none.
///
/// # Errors
/// Settings of 0, those of [`PathformerConfig::check`]; a graph without queries of a type; a loss
/// that is not finite.
pub fn fit_pathformer(
    graph: &Graph,
    config: &PathformerConfig,
    settings: &FitSettings,
    device: &Device,
) -> Result<(Pathformer, Vec<f64>), LabError> {
    config.check()?;
    settings.check()?;
    let mut random = Random::new(settings.seed, "pathformer queries", 0);
    let mut types: Vec<Vec<Question>> = Vec::with_capacity(TRAINING_TYPES.len());
    for kind in TRAINING_TYPES.into_iter().filter_map(QueryType::named) {
        types.push(training_queries(kind, graph, settings.queries, &mut random)?);
    }
    let (num_entities, num_relations) = (graph.entities.len(), graph.relations.len());
    let network = Pathformer::new(num_entities, num_relations, config, device);
    let mut network = seeded(network, &mut Random::new(settings.seed, "pathformer weights", 0));
    let mut optimizer = AdamW::new(AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() });
    let mut random = Random::new(settings.seed, "pathformer steps", 0);
    let mut losses = Losses::new(settings.steps);
    for step in 0..settings.steps {
        let chosen: Vec<&Question> = (0..settings.batch_size)
            .map(|_| {
                let questions = random.below(types.len());
                random.choose(&types[questions])
            })
            .collect();
        let queries: Vec<&Query> = chosen.iter().map(|question| &question.query).collect();
        let right: Vec<i64> = chosen.iter().map(|question| *random.choose(&question.wanted) as i64).collect();
        let answers: Vec<&EntitySet> = chosen.iter().map(|question| &question.answers).collect();
        let (drawn, is_answer) = negatives(&answers, settings, num_entities, &mut random);
        let (batch, count) = (chosen.len(), settings.negatives);
        let left_out: Vec<f32> = is_answer.into_iter().map(|is| if is { LEFT_OUT } else { 0.0 }).collect();
        let right = Tensor::<2, Int>::from_data(TensorData::new(right, [batch, 1]), device);
        let drawn = Tensor::<2, Int>::from_data(TensorData::new(drawn, [batch, count]), device);
        let left_out = Tensor::<2>::from_data(TensorData::new(left_out, [batch, count]), device);

        let encoded = network.encode(&queries, &mut Noise::new(&mut random, config.dropout))?;
        let scores = network.similarities_of(encoded, Tensor::cat(vec![right, drawn], 1)); // [B, 1+K]
        let scores = Tensor::cat(vec![scores.clone().narrow(1, 0, 1), scores.narrow(1, 1, count) + left_out], 1);
        let loss = log_softmax(scores, 1).narrow(1, 0, 1).neg().mean();
        losses.add(step, f64::from(loss.clone().into_scalar::<f32>()), settings)?;
        network = optimizer.step(network, loss.backward(), settings.learning_rate(step));
    }
    Ok((network.valid(), losses.tenths))
}

/// Fits the baseline to the facts of a graph, as [`fit_pathformer`] does an encoder.
///
/// # Errors
/// Settings or a width of 0, an odd width of complex numbers; a loss that is not finite.
pub fn fit_links(
    graph: &Graph,
    width: usize,
    kind: LinkKind,
    settings: &FitSettings,
    device: &Device,
) -> Result<(Links, Vec<f64>), LabError> {
    settings.check()?;
    if width == 0 || !width.is_multiple_of(2) {
        return Err(LabError::Setting { found: format!("a width of {width}"), expected: "an even number".to_owned() });
    }
    let (num_entities, num_relations) = (graph.entities.len(), graph.relations.len());
    let mut answers = std::collections::HashMap::new();
    for fact in graph.facts() {
        let known = answers.entry((fact.subject, fact.relation));
        known.or_insert_with(|| EntitySet::empty(num_entities)).insert(fact.object);
    }
    let mut random = Random::new(settings.seed, "links steps", 0);
    let network = Links::new([num_entities, num_relations], width, kind, device);
    let mut network = seeded(network, &mut Random::new(settings.seed, "links weights", 0));
    let mut optimizer = AdamW::new(AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() });
    let mut losses = Losses::new(settings.steps);
    // As if all answers of a subject and a relation were there, and all other entities: the fact
    // and what it is held against are samples of them.
    let weight = (num_entities as f64 / settings.negatives as f64) as f32;
    for step in 0..settings.steps {
        let chosen: Vec<_> = (0..settings.batch_size).map(|_| *random.choose(graph.facts())).collect();
        let [subjects, relations, objects]: [Vec<usize>; 3] = [
            chosen.iter().map(|fact| fact.subject).collect(),
            chosen.iter().map(|fact| fact.relation).collect(),
            chosen.iter().map(|fact| fact.object).collect(),
        ];
        let known: Vec<&EntitySet> =
            chosen.iter().filter_map(|fact| answers.get(&(fact.subject, fact.relation))).collect();
        let (drawn, is_answer) = negatives(&known, settings, num_entities, &mut random);
        let shape = [chosen.len(), settings.negatives];
        let drawn = Tensor::<2, Int>::from_data(TensorData::new(drawn, shape), device);
        let counted: Vec<f32> = is_answer.into_iter().map(|is| if is { 0.0 } else { weight }).collect();
        let counted = Tensor::<2>::from_data(TensorData::new(counted, shape), device);
        let count: Vec<f32> = known.iter().map(|answers| answers.iter().count() as f32).collect();
        let count = Tensor::<2>::from_data(TensorData::new(count, [chosen.len(), 1]), device);
        let loss = network.loss([&subjects, &relations, &objects], drawn, counted, count);
        losses.add(step, f64::from(loss.clone().into_scalar::<f32>()), settings)?;
        network = optimizer.step(network, loss.backward(), settings.learning_rate(step));
    }
    Ok((network.valid(), losses.tenths))
}

/// Mean losses of tenths of the steps.
struct Losses {
    tenths: Vec<f64>,
    sum: f64,
    since: usize,
    steps: usize,
}

impl Losses {
    fn new(steps: usize) -> Self {
        Self { tenths: Vec::new(), sum: 0.0, since: 0, steps }
    }

    fn add(&mut self, step: usize, loss: f64, settings: &FitSettings) -> Result<(), LabError> {
        if !loss.is_finite() {
            return Err(LabError::Diverged { step: step + 1, learning_rate: settings.learning_rate(step) });
        }
        self.sum += loss;
        self.since += 1;
        if (step + 1) * 10 / self.steps > self.tenths.len() {
            self.tenths.push(self.sum / self.since as f64);
            (self.sum, self.since) = (0.0, 0);
        }
        Ok(())
    }
}
