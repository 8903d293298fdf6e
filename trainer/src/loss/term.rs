//! Terms of the objective in one micro-batch. The factors that all losses share, weight, schedule
//! and share, are applied here and nowhere else.

use super::{Loss, loss_for};
use retie_config::LossTerm;

/// Factor of a term in one micro-batch: its weight in the step, times the micro-batch's share.
#[derive(Clone, Copy, Debug)]
pub struct TermScale {
    weight: f64,
    share: f64,
}

impl TermScale {
    /// Scale of a gradient that stands with `factor` in its term.
    pub fn gradient(self, factor: f64) -> f64 {
        self.weight * factor * self.share
    }

    /// Scale of a value that stands with `factor` in its term.
    pub fn value(self, factor: f64) -> f64 {
        self.share * (self.weight * factor)
    }

    /// Share of the micro-batch.
    pub fn share(self) -> f64 {
        self.share
    }
}

/// A loss and its scale.
#[derive(Clone, Copy)]
pub struct ScaledTerm<'a> {
    /// Name in configurations and in metrics.
    pub name: &'static str,
    /// Whether the loss needs no pass through the student's stack.
    pub is_local: bool,
    /// The loss.
    pub loss: &'a dyn Loss,
    /// Its factor.
    pub scale: TermScale,
}

impl<'a> ScaledTerm<'a> {
    /// The term `term` in optimizer step `step`, counted from 1, for a micro-batch with the part
    /// `share` of the step's tokens.
    pub fn new(term: &'a LossTerm, step: u64, share: f64) -> Self {
        let scale = TermScale { weight: term.weight_at(step), share };
        Self { name: term.name(), is_local: term.needs().is_local(), loss: loss_for(&term.kind), scale }
    }
}
