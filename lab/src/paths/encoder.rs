//! The recursive path encoder.

use super::{Plan, disjuncts, plan::Form};
use crate::{LabError, Noise, drive::drive};
use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, TensorData},
};
use burn_nn::{
    Embedding, EmbeddingConfig,
    transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput},
};
use retie_tasks::graph::Query;

/// Sizes of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct PathformerConfig {
    /// Width of embeddings and encoders.
    pub hidden_size: usize,
    /// Width of the feed-forward networks.
    pub intermediate_size: usize,
    /// Heads of attention.
    pub num_attention_heads: usize,
    /// Layers of the encoder of paths; that of branches has one.
    pub num_hidden_layers: usize,
    /// Most relations on a path.
    pub longest_path: usize,
    /// What similarities are divided by.
    pub temperature: f64,
    /// Part of the elements of what is encoded that dropout puts to 0.
    pub dropout: f64,
}

impl Default for PathformerConfig {
    fn default() -> Self {
        Self {
            hidden_size: 64,
            intermediate_size: 128,
            num_attention_heads: 8,
            num_hidden_layers: 2,
            longest_path: 3,
            temperature: 0.05,
            dropout: 0.1,
        }
    }
}

impl PathformerConfig {
    /// Refuses sizes that no network has.
    ///
    /// # Errors
    /// A size of 0, heads that do not divide the width, a temperature that is not positive, a
    /// dropout outside of 0 to below 1.
    pub fn check(&self) -> Result<(), LabError> {
        let bad = |found: String, expected: &str| Err(LabError::Setting { found, expected: expected.to_owned() });
        let sizes = [self.hidden_size, self.intermediate_size, self.num_hidden_layers, self.longest_path];
        if sizes.contains(&0) {
            return bad(format!("a size of 0 in {sizes:?}"), "at least 1");
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let found = format!("{} heads in a width of {}", self.num_attention_heads, self.hidden_size);
            return bad(found, "a width that they divide");
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return bad(format!("a temperature of {}", self.temperature), "a positive number");
        }
        match (0.0..1.0).contains(&self.dropout) {
            true => Ok(()),
            false => bad(format!("a dropout of {}", self.dropout), "a number from 0 to below 1"),
        }
    }
}

/// The network.
#[derive(Module, Debug)]
pub struct Pathformer {
    /// `[entities, D]`.
    pub(super) entity: Embedding,
    relation: Embedding,
    /// NEG and VAR.
    sign: Embedding,
    position: Embedding,
    path: TransformerEncoder,
    branch: TransformerEncoder,
    temperature: f64,
}

/// Added to lengths that divide.
const LENGTH_EPS: f64 = 1e-12;

/// Rows of [`Pathformer::sign`].
const NEGATION: usize = 0;
const VARIABLE: usize = 1;

impl Pathformer {
    /// A network for so many entities and relations; [`seeded`](crate::seeded) draws its weights.
    #[must_use]
    pub fn new(num_entities: usize, num_relations: usize, config: &PathformerConfig, device: &Device) -> Self {
        let width = config.hidden_size;
        let embedding = |count: usize| EmbeddingConfig::new(count, width).init(device);
        let encoder = |layers: usize| {
            let sizes =
                TransformerEncoderConfig::new(width, config.intermediate_size, config.num_attention_heads, layers);
            // Dropout is of a stream of its own.
            sizes.with_dropout(0.0).init(device)
        };
        Self {
            entity: embedding(num_entities),
            relation: embedding(num_relations),
            sign: embedding(2),
            // Of the source, relations, NEG and VAR.
            position: embedding(config.longest_path + 3),
            path: encoder(config.num_hidden_layers),
            branch: encoder(1),
            temperature: config.temperature,
        }
    }

    /// Encodes queries without alternatives, `[B, D]`.
    ///
    /// # Errors
    /// Those of [`Plan::new`]; a path with more relations than there are positions for.
    pub fn encode(&self, queries: &[&Query], noise: &mut Noise<'_>) -> Result<Tensor<2>, LabError> {
        let rows = |embedding: &Embedding| embedding.weight.lazy_shape()[0];
        let plan = Plan::new(queries, rows(&self.entity), rows(&self.relation))?;
        let longest = rows(&self.position) - 3;
        for form in &plan.forms {
            let Form::Paths { relations, .. } = form else { continue };
            let found = relations.first().map_or(0, Vec::len);
            if found > longest {
                let (found, expected) = (format!("a path of {found} relations"), format!("at most {longest}"));
                return Err(LabError::Setting { found, expected });
            }
        }
        let device = self.entity.weight.val().device();
        let anchors = self.entity.weight.val().select(0, indices(&plan.anchors, &device));
        let [table] = drive([anchors], &plan.schedule, |step, inputs| match &plan.forms[step] {
            Form::Paths { relations, negated } => [self.paths(inputs.get(0, 0), relations, *negated, noise)],
            Form::Branches(parts) => {
                let parts: Vec<Tensor<3>> = (0..*parts).map(|part| wide(inputs.get(0, part))).collect();
                [self.branches(Tensor::cat(parts, 1), noise)]
            }
        })?;
        Ok(table.select(0, indices(&plan.roots, &device)))
    }

    /// `from` `[n, D]`; returns `[n, D]`.
    fn paths(&self, from: Tensor<2>, relations: &[Vec<usize>], negated: bool, noise: &mut Noise<'_>) -> Tensor<2> {
        let [count, width] = from.dims();
        let device = from.device();
        let mut tokens = vec![wide(from)];
        let length = relations.first().map_or(0, Vec::len);
        if length > 0 {
            let flat: Vec<usize> = relations.concat();
            tokens.push(self.relation.weight.val().select(0, indices(&flat, &device)).reshape([count, length, width]));
        }
        let signs: &[usize] = if negated { &[NEGATION, VARIABLE] } else { &[VARIABLE] };
        for sign in signs {
            let token = self.sign.weight.val().narrow(0, *sign, 1).reshape([1, 1, width]);
            tokens.push(token.expand([count, 1, width]));
        }
        let tokens = Tensor::cat(tokens, 1); // [n, T, D]
        let [_, length, _] = tokens.dims();
        let positions = self.position.weight.val().narrow(0, 0, length).reshape([1, length, width]);
        let encoded = self.path.forward(TransformerEncoderInput::new(noise.apply(tokens + positions)));
        encoded.narrow(1, length - 1, 1).reshape([count, width])
    }

    /// `parts` `[n, m, D]`; returns `[n, D]`.
    fn branches(&self, parts: Tensor<3>, noise: &mut Noise<'_>) -> Tensor<2> {
        let [count, _, width] = parts.dims();
        self.branch.forward(TransformerEncoderInput::new(noise.apply(parts))).mean_dim(1).reshape([count, width])
    }

    /// Scores of every entity for encoded queries `[B, D]`: `[B, entities]`.
    pub fn similarities(&self, encoded: Tensor<2>) -> Tensor<2> {
        unit(encoded).matmul(unit(self.entity.weight.val()).swap_dims(0, 1)) / self.temperature
    }

    /// Scores of the entities `chosen` `[B, K]` for encoded queries `[B, D]`: `[B, K]`.
    pub fn similarities_of(&self, encoded: Tensor<2>, chosen: Tensor<2, Int>) -> Tensor<2> {
        let [batch, count] = chosen.dims();
        let [num_entities, width] = self.entity.weight.val().dims();
        if batch * count >= num_entities {
            return self.similarities(encoded).gather(1, chosen);
        }
        let entities = self.entity.forward(chosen).reshape([batch * count, width]);
        let entities = unit(entities).reshape([batch, count, width]);
        let encoded = unit(encoded).reshape([batch, width, 1]);
        entities.matmul(encoded).reshape([batch, count]) / self.temperature
    }

    /// Scores of every entity for queries, with alternatives or without.
    ///
    /// # Errors
    /// Those of [`Pathformer::encode`].
    pub fn scores(&self, queries: &[&Query]) -> Result<Vec<Vec<f32>>, LabError> {
        let parts: Vec<Vec<Query>> = queries.iter().map(|query| disjuncts(query)).collect();
        let flat: Vec<&Query> = parts.iter().flatten().collect();
        if flat.is_empty() {
            return Ok(Vec::new());
        }
        let similarities = self.similarities(self.encode(&flat, &mut Noise::default())?);
        let [_, num_entities] = similarities.dims();
        let flat: Vec<f32> = similarities.into_data().iter().collect();
        let mut rows = flat.chunks(num_entities);
        let most = |mut row: Vec<f32>, other: &[f32]| {
            row.iter_mut().zip(other).for_each(|(score, other)| *score = score.max(*other));
            row
        };
        let lowest = || vec![f32::NEG_INFINITY; num_entities];
        Ok(parts.iter().map(|parts| rows.by_ref().take(parts.len()).fold(lowest(), most)).collect())
    }
}

/// A row as a sequence of one.
fn wide(rows: Tensor<2>) -> Tensor<3> {
    let [count, width] = rows.dims();
    rows.reshape([count, 1, width])
}

/// Rows of length 1.
fn unit(rows: Tensor<2>) -> Tensor<2> {
    let length = rows.clone().square().sum_dim(1).add_scalar(LENGTH_EPS).sqrt();
    rows / length
}

pub(super) fn indices(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}
