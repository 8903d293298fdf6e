//! Parameters of the next-token cross-entropy.

use super::{LossNeeds, LossParameters};
use crate::document::Checks;
use serde::{Deserialize, Serialize};

/// Parameters of [`super::LossKind::CrossEntropy`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrossEntropyConfig {
    /// Part of a label that is spread evenly over the vocabulary.
    pub label_smoothing: f64,
    /// Factor of the squared logarithm of the softmax's normaliser, within this term.
    pub z_loss: f64,
}

impl LossParameters for CrossEntropyConfig {
    fn needs(&self) -> LossNeeds {
        LossNeeds::Student
    }

    fn check(&self, key: &str, checks: &mut Checks) {
        let Self { label_smoothing, z_loss } = self;
        let fits = (0.0..1.0).contains(label_smoothing);
        checks.require(fits, format!("{key}.label_smoothing"), label_smoothing, "a number from 0 to below 1");
        let fits = z_loss.is_finite() && *z_loss >= 0.0;
        checks.require(fits, format!("{key}.z_loss"), z_loss, "a finite number, 0 or more");
    }
}
