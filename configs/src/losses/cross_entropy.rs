//! Parameters of the next-token cross-entropy.

use super::WeightPoint;
use crate::document::Checks;
use serde::{Deserialize, Serialize};

/// Parameters of [`super::LossConfig::CrossEntropy`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossEntropyConfig {
    /// Factor of this term.
    pub weight: f64,
    /// Factor of the weight over the run; by default 1 throughout.
    #[serde(default)]
    pub weight_schedule: Vec<WeightPoint>,
    /// Part of a label that is spread evenly over the vocabulary.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Factor of the squared logarithm of the softmax's normaliser, within this term.
    #[serde(default)]
    pub z_loss: f64,
}

impl CrossEntropyConfig {
    /// The term with this weight, and the other settings as they are by default.
    #[must_use]
    pub fn new(weight: f64) -> Self {
        Self { weight, weight_schedule: Vec::new(), label_smoothing: 0.0, z_loss: 0.0 }
    }

    pub(super) fn check(&self, key: &str, checks: &mut Checks) {
        let Self { label_smoothing, z_loss, .. } = self;
        let fits = (0.0..1.0).contains(label_smoothing);
        checks.require(fits, format!("{key}.label_smoothing"), label_smoothing, "a number from 0 to below 1");
        let fits = z_loss.is_finite() && *z_loss >= 0.0;
        checks.require(fits, format!("{key}.z_loss"), z_loss, "a finite number, 0 or more");
    }
}
