//! The baseline: an embedding of single facts, DistMult (Yang et al. 2015,
//! <https://arxiv.org/abs/1412.6575>) or ComplEx (Trouillon et al. 2016,
//! <https://arxiv.org/abs/1606.06357>), fitted to the same facts as the encoder, and composed over
//! a query without being fitted to one:
//!
//! | composition | path | intersection | union | negation |
//! |---|---|---|---|---|
//! | [`Composition::Vectors`] | `e ∘ r₁ ∘ r₂ …` | product | the largest | `1 - p` |
//! | [`Composition::Sets`] | `max_s v(s) · p(s, r, o)` | product | `a + b - ab` | `1 - v` |
//!
//! Vectors go as in GQE (<https://arxiv.org/abs/1806.01445>), where an intersection inside of a
//! path is the mean of the vectors that are not negated; sets as in CQD
//! (<https://arxiv.org/abs/2011.03459>), over the likeliest `s`.
//!
//! where `p(s, r, o) = σ(⟨s ∘ r, o⟩)`.

use super::{disjuncts, encoder::indices};
use crate::LabError;
use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, activation::log_sigmoid},
};
use burn_nn::{Embedding, EmbeddingConfig, Initializer};
use retie_tasks::graph::Query;

/// Which product of a subject and a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Of real numbers: subject and object can be exchanged.
    DistMult,
    /// Of complex numbers, whose real parts are the first half of a vector.
    ComplEx,
}

/// How the embedding of single facts answers a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Composition {
    /// By one vector for each path.
    Vectors,
    /// By fuzzy sets of entities.
    Sets,
}

/// Entities that a hop of [`Composition::Sets`] starts from, at most.
const BEAM: usize = 512;

/// What embeddings count as of their parameters, which start from `N(0, 1)`. Scores are divided by
/// it once, so that those of vectors of 64 start at about 0.1.
const SCALE: f64 = 0.1;

/// The embedding.
#[derive(Module, Debug)]
pub struct Links {
    entity: Embedding,
    relation: Embedding,
    #[module(skip)]
    kind: LinkKind,
}

impl Links {
    /// An embedding in vectors of `width`, for so many entities and relations;
    /// [`seeded`](crate::seeded) draws its parameters.
    #[must_use]
    pub fn new(size: [usize; 2], width: usize, kind: LinkKind, device: &Device) -> Self {
        let [num_entities, num_relations] = size;
        let zeros = |count: usize| EmbeddingConfig::new(count, width).with_initializer(Initializer::Zeros).init(device);
        Self { entity: zeros(num_entities), relation: zeros(num_relations), kind }
    }

    /// `s ∘ r` of rows, `[B, D]`.
    fn product(&self, subject: Tensor<2>, relation: Tensor<2>) -> Tensor<2> {
        match self.kind {
            LinkKind::DistMult => subject * relation,
            LinkKind::ComplEx => {
                let [_, width] = subject.dims();
                let halves = |x: Tensor<2>| (x.clone().narrow(1, 0, width / 2), x.narrow(1, width / 2, width / 2));
                let ((a, b), (c, d)) = (halves(subject), halves(relation));
                Tensor::cat(vec![a.clone() * c.clone() - b.clone() * d.clone(), a * d + b * c], 1)
            }
        }
    }

    /// Embeddings of a batch.
    fn rows(embedding: &Embedding, of: &[usize], device: &Device) -> Tensor<2> {
        embedding.weight.val().select(0, indices(of, device)) * SCALE
    }

    /// `-log p` of the objects, each times `answers` `[B, 1]`, and `-Σ log(1 - p)` of `others` `[B,
    /// K]` that `counted` has a weight for; the mean over facts.
    pub(super) fn loss(
        &self,
        facts: [&[usize]; 3],
        others: Tensor<2, Int>,
        counted: Tensor<2>,
        answers: Tensor<2>,
    ) -> Tensor<1> {
        let [subjects, relations, objects] = facts;
        let device = others.device();
        let of = |embedding: &Embedding, rows: &[usize]| Self::rows(embedding, rows, &device);
        let product = self.product(of(&self.entity, subjects), of(&self.relation, relations)); // [B, D]
        let [batch, width] = product.dims();
        let right = (product.clone() * of(&self.entity, objects)).sum_dim(1) / SCALE;
        let [_, count] = others.dims();
        let [num_entities, _] = self.entity.weight.val().dims();
        let wrong = if batch * count >= num_entities {
            (product * SCALE).matmul(self.entity.weight.val().swap_dims(0, 1)).gather(1, others)
        } else {
            let others = self.entity.forward(others) * SCALE; // [B, K, D]
            others.matmul(product.reshape([batch, width, 1])).reshape([batch, count])
        };
        let wrong = wrong / SCALE;
        let loss = log_sigmoid(right).neg() * answers + (log_sigmoid(wrong.neg()).neg() * counted).sum_dim(1);
        loss.mean()
    }

    /// Scores of every entity for a query.
    ///
    /// # Errors
    /// An entity or a relation that the graph does not have; a branch of no path.
    pub fn scores(&self, query: &Query, how: Composition) -> Result<Vec<f32>, LabError> {
        match how {
            Composition::Sets => {
                sets(query, &|subject, relation| self.likelihoods(&self.hop(&self.anchor(subject)?, relation)?))
            }
            Composition::Vectors => {
                let parts = disjuncts(query).iter().map(|part| self.by_vectors(part)).collect::<Result<Vec<_>, _>>()?;
                let most = |a: Vec<f32>, b: Vec<f32>| a.into_iter().zip(b).map(|(a, b)| a.max(b)).collect();
                Ok(parts.into_iter().reduce(most).unwrap_or_default())
            }
        }
    }

    fn by_vectors(&self, query: &Query) -> Result<Vec<f32>, LabError> {
        match query {
            Query::And(parts) => product(parts.iter().map(|part| self.by_vectors(part))),
            Query::Not(inner) => Ok(complement(self.by_vectors(inner)?)),
            _ => self.likelihoods(&self.vector(query)?),
        }
    }

    /// The vector of a query's end.
    fn vector(&self, query: &Query) -> Result<Tensor<2>, LabError> {
        match query {
            Query::Anchor(entity) => self.anchor(*entity),
            Query::Hop(relation, inner) => self.hop(&self.vector(inner)?, *relation),
            // Negated vectors are left out.
            Query::Not(inner) => self.vector(inner),
            Query::And(parts) | Query::Or(parts) => {
                let positive = parts.iter().filter(|part| !matches!(part, Query::Not(_)));
                let vectors = positive.map(|part| self.vector(part)).collect::<Result<Vec<_>, _>>()?;
                match vectors.is_empty() {
                    true => Err(no_path()),
                    false => Ok(Tensor::cat(vectors, 0).mean_dim(0)),
                }
            }
        }
    }

    fn anchor(&self, entity: usize) -> Result<Tensor<2>, LabError> {
        row(&self.entity, entity, "entity")
    }

    fn hop(&self, from: &Tensor<2>, relation: usize) -> Result<Tensor<2>, LabError> {
        Ok(self.product(from.clone(), row(&self.relation, relation, "relation")?))
    }

    /// `p` of every entity for a vector `[1, D]`.
    fn likelihoods(&self, vector: &Tensor<2>) -> Result<Vec<f32>, LabError> {
        let entities = self.entity.weight.val() * SCALE;
        let scores: Vec<f32> = (vector.clone().matmul(entities.swap_dims(0, 1)) / SCALE).into_data().iter().collect();
        Ok(scores.into_iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect())
    }
}

fn row(embedding: &Embedding, index: usize, what: &'static str) -> Result<Tensor<2>, LabError> {
    let weight = embedding.weight.val();
    let [known, _] = weight.dims();
    match index < known {
        true => Ok(weight.narrow(0, index, 1) * SCALE),
        false => Err(LabError::Unknown { what, index, known }),
    }
}

fn no_path() -> LabError {
    LabError::Setting { found: "a branch without a path".to_owned(), expected: "one that is not negated".to_owned() }
}

fn complement(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|value| 1.0 - value).collect()
}

fn product(parts: impl Iterator<Item = Result<Vec<f32>, LabError>>) -> Result<Vec<f32>, LabError> {
    let with = |a: Vec<f32>, b: Vec<f32>| a.into_iter().zip(b).map(|(a, b)| a * b).collect();
    parts.collect::<Result<Vec<_>, _>>()?.into_iter().reduce(with).ok_or_else(no_path)
}

/// What a subject and a relation lead to: a number of 0 to 1 for each entity.
type Hops<'h> = dyn Fn(usize, usize) -> Result<Vec<f32>, LabError> + 'h;

/// A query by fuzzy sets, for what single hops lead to.
fn sets(query: &Query, hops: &Hops<'_>) -> Result<Vec<f32>, LabError> {
    match query {
        // Of a lone entity no set is known yet.
        Query::Anchor(_) => Err(no_path()),
        Query::Hop(relation, inner) => match inner.as_ref() {
            Query::Anchor(subject) => hops(*subject, *relation),
            inner => {
                let from = sets(inner, hops)?;
                let mut order: Vec<usize> = (0..from.len()).collect();
                order.sort_by(|a, b| from[*b].total_cmp(&from[*a]));
                let mut most = vec![0.0_f32; from.len()];
                for subject in order.into_iter().take(BEAM).filter(|subject| from[*subject] > 0.0) {
                    let reached = hops(subject, *relation)?;
                    most.iter_mut().zip(reached).for_each(|(most, p)| *most = most.max(from[subject] * p));
                }
                Ok(most)
            }
        },
        Query::And(parts) => product(parts.iter().map(|part| sets(part, hops))),
        Query::Or(parts) => {
            let with = |a: Vec<f32>, b: Vec<f32>| a.into_iter().zip(b).map(|(a, b)| a + b - a * b).collect();
            let parts = parts.iter().map(|part| sets(part, hops)).collect::<Result<Vec<_>, _>>()?;
            parts.into_iter().reduce(with).ok_or_else(no_path)
        }
        Query::Not(inner) => Ok(complement(sets(inner, hops)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded;
    use retie_tasks::{
        Random,
        graph::{EntitySet, Graph, QueryType},
    };

    fn graph(random: &mut Random) -> Graph {
        let names = |count: usize| (0..count).map(|index| index.to_string()).collect();
        Graph::random(names(15), names(3), 60, random)
    }

    #[test]
    fn sets_of_known_facts_are_exact() {
        for seed in 0..30 {
            let mut random = Random::new(seed, "sets", 0);
            let graph = graph(&mut random);
            let hops = |subject: usize, relation: usize| {
                let mut from = EntitySet::empty(15);
                from.insert(subject);
                let to = graph.hop(relation, &from);
                Ok((0..15).map(|entity| f32::from(u8::from(to.contains(entity)))).collect())
            };
            for kind in QueryType::ALL {
                let query = kind.random_query(&graph, &mut random);
                let found = sets(&query, &hops).unwrap();
                let answers = query.answers(&graph);
                for (entity, value) in found.into_iter().enumerate() {
                    assert_eq!(value, f32::from(u8::from(answers.contains(entity))), "{} {query:?}", kind.name);
                }
            }
        }
    }

    #[test]
    fn a_hop_is_the_product_of_its_kind() {
        let device = Device::flex();
        for kind in [LinkKind::DistMult, LinkKind::ComplEx] {
            let links = seeded(Links::new([4, 2], 6, kind, &device), &mut Random::new(1, "links", 0));
            let rows = |embedding: &Embedding| -> Vec<f32> { embedding.weight.val().into_data().try_to_vec().unwrap() };
            let (entity, relation) = (rows(&links.entity), rows(&links.relation));
            let number = |of: &[f32], row: usize, at: usize| f64::from(of[6 * row + at]) * SCALE;
            let complex = |of: &[f32], row: usize, at: usize| (number(of, row, at), number(of, row, at + 3));
            let query = Query::Hop(1, Box::new(Query::Anchor(2)));
            let found = links.scores(&query, Composition::Sets).unwrap();
            assert_eq!(found, links.scores(&query, Composition::Vectors).unwrap());
            for (object, p) in found.into_iter().enumerate() {
                let score: f64 = match kind {
                    LinkKind::DistMult => (0..6)
                        .map(|at| number(&entity, 2, at) * number(&relation, 1, at) * number(&entity, object, at))
                        .sum(),
                    // The real part of s · r · conj(o).
                    LinkKind::ComplEx => (0..3)
                        .map(|at| {
                            let ((a, b), (c, d)) = (complex(&entity, 2, at), complex(&relation, 1, at));
                            let (e, f) = complex(&entity, object, at);
                            (a * c - b * d) * e + (a * d + b * c) * f
                        })
                        .sum(),
                };
                let expected = 1.0 / (1.0 + (-score / SCALE).exp());
                // f32 roundings.
                assert!((f64::from(p) - expected).abs() < 1e-6, "{kind:?} {object}: {p} {expected}");
            }
        }
    }

    #[test]
    fn what_the_graph_does_not_have_is_refused() {
        let links = Links::new([4, 2], 6, LinkKind::DistMult, &Device::flex());
        let query = |relation: usize, entity: usize| Query::Hop(relation, Box::new(Query::Anchor(entity)));
        for how in [Composition::Vectors, Composition::Sets] {
            let message = |query: Query| links.scores(&query, how).unwrap_err().to_string();
            assert_eq!(message(query(2, 0)), "a query has relation number 2, expected one below 2");
            assert_eq!(message(query(0, 4)), "a query has entity number 4, expected one below 4");
            assert!(message(Query::And(vec![])).contains("a branch without a path"));
        }
    }
}
