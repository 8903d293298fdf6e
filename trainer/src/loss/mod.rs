//! The terms of the objective, one a file. A term says what it asks of the logits, and takes its values out of what was found.
//!
//! A configuration's entry is the term: [`Loss`] is implemented by the parameter structs of `losses`.

mod cross_entropy;
mod distill;

use retie_config::LossConfig;
use retie_model::kernels::{HeadTerms, HeadValues};
use std::collections::BTreeMap;

/// A term of the objective.
pub trait Loss {
    /// Adds what it asks of the logits, its weight times `share`: a micro-batch's part of the step.
    fn ask(&self, share: f64, terms: &mut HeadTerms);

    /// Adds its values.
    fn record(&self, found: &HeadValues, losses: &mut Part<'_>);
}

/// The term that an entry of the configuration is.
pub fn of(config: &LossConfig) -> &dyn Loss {
    match config {
        LossConfig::CrossEntropy(config) => config,
        LossConfig::Distill(config) => config,
    }
}

/// Losses of a step: means over its tokens, in nats per token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// What was minimised: the sum of the terms, weighted.
    pub loss: f64,
    /// Next-token cross-entropy of the plain text, whatever the terms are.
    pub cross_entropy: f64,
    /// Each term by name, unweighted.
    pub terms: BTreeMap<String, f64>,
}

impl Losses {
    /// Where a micro-batch adds its part, `share`, of the step.
    pub fn part(&mut self, share: f64) -> Part<'_> {
        Part { losses: self, share }
    }
}

/// A micro-batch's part of the losses of a step.
#[derive(Debug)]
pub struct Part<'a> {
    losses: &'a mut Losses,
    share: f64,
}

impl Part<'_> {
    /// Adds the value of the term `name`; the objective has `factor · value`.
    pub fn add(&mut self, name: &str, factor: f64, value: f64) {
        self.losses.loss += self.share * factor * value;
        *self.losses.terms.entry(name.to_owned()).or_default() += self.share * value;
    }

    /// Adds the cross-entropy of the plain text.
    pub fn add_cross_entropy(&mut self, value: f64) {
        self.losses.cross_entropy += self.share * value;
    }
}
