//! Values of the losses of a step.

use super::TermScale;
use std::collections::BTreeMap;

/// Losses of a step: means over its tokens, in nats per token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossValues {
    /// The minimised sum of the weighted terms.
    pub loss: f64,
    /// Next-token cross-entropy of the plain text, whatever the terms are; `None` where no term
    /// needs the student's logits.
    pub cross_entropy: Option<f64>,
    /// Each column of the terms by name, unweighted.
    pub terms: BTreeMap<String, f64>,
    /// Part of the step's targets that each column of a drawn loss was computed on, by name.
    pub drawn: BTreeMap<String, f64>,
}

impl LossValues {
    /// The values of one term.
    pub fn term(&mut self, scale: TermScale) -> TermValues<'_> {
        TermValues { values: self, scale }
    }

    /// Adds the cross-entropy of the plain text of a micro-batch with the part `share` of the step.
    pub fn add_cross_entropy(&mut self, share: f64, value: f64) {
        *self.cross_entropy.get_or_insert_default() += share * value;
    }

    /// Every value.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut f64> {
        let columns = self.terms.values_mut().chain(self.drawn.values_mut());
        columns.chain([&mut self.loss]).chain(&mut self.cross_entropy)
    }

    /// Columns of the step, once all micro-batches are summed: those of drawn losses are means over
    /// the tokens that drew them, and absent if none did.
    #[must_use]
    pub fn columns(self) -> BTreeMap<String, f64> {
        let Self { mut terms, drawn, .. } = self;
        for (name, share) in drawn {
            match terms.get_mut(&name).filter(|_| share > 0.0) {
                Some(value) => *value /= share,
                None => _ = terms.remove(&name),
            }
        }
        terms
    }
}

/// Values of one term; its scale is applied to them.
#[derive(Debug)]
pub struct TermValues<'a> {
    values: &'a mut LossValues,
    scale: TermScale,
}

impl TermValues<'_> {
    /// Adds `value` to the column `name`; it stands with `factor` in the term.
    pub fn add(&mut self, name: &str, factor: f64, value: f64) {
        self.values.loss += self.scale.value(factor) * value;
        *self.values.terms.entry(name.to_owned()).or_default() += self.scale.share() * value;
    }

    /// As [`TermValues::add`], for a loss that only some sequences draw: the part of the
    /// micro-batch's targets that they have, and the mean over these; `None` if no sequence drew
    /// it. Every micro-batch adds every column, so that all ranks have the same ones.
    pub fn add_drawn(&mut self, name: &str, factor: f64, found: Option<(f64, f64)>) {
        let (part, value) = found.unwrap_or_default();
        *self.values.drawn.entry(name.to_owned()).or_default() += part * self.scale.share();
        self.add(name, factor, part * value);
    }
}
