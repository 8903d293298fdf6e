//! Non-linear projection of SReT (<https://arxiv.org/abs/2111.05297>) after the last depth of a
//! pass over the shared block:
//!
//! ```text
//! y ← β₁·y + β₂·(W₂ GELU(W₁ LayerNorm(y) + b₁) + b₂)
//! ```
//!
//! with `ratio·D` hidden units. `W₂` and `b₂` start at 0, so that it starts as the identity.

use super::*;
use crate::TensorInit;

/// Parameters of `nll`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NllConfig {
    /// Hidden units as a factor of the hidden size.
    pub ratio: f64,
}

impl Default for NllConfig {
    fn default() -> Self {
        Self { ratio: 1.0 }
    }
}

/// Largest `ratio`.
const MOST: f64 = 16.0;

impl NllConfig {
    /// Number of hidden units for hidden states of `hidden_size`.
    #[must_use]
    pub fn width(&self, hidden_size: usize) -> usize {
        (self.ratio * hidden_size as f64).round() as usize
    }
}

impl StepMechanism for NllConfig {
    fn slot(&self) -> Slot {
        Slot::Transition
    }

    fn problems(&self, place: &Place<'_>) -> Vec<String> {
        let (ratio, hidden) = (self.ratio, place.model.hidden_size);
        let fits = ratio.is_finite() && ratio <= MOST && self.width(hidden) > 0;
        let least = 1.0 / hidden as f64;
        (!fits).then(|| format!("`ratio` is {ratio}, expected {least} to {MOST}")).into_iter().collect()
    }

    fn tensors(&self, place: &Place<'_>) -> Vec<StepTensor> {
        if !place.ends_pass() {
            return Vec::new();
        }
        let hidden = place.model.hidden_size;
        let width = self.width(hidden);
        let zero = TensorInit::Constant(0.0);
        vec![
            StepTensor::weight("nll.norm.weight", &[hidden], TensorInit::Constant(1.0)),
            StepTensor::bias("nll.norm.bias", hidden),
            StepTensor::weight("nll.up_proj.weight", &[width, hidden], place.model.drawn()),
            StepTensor::bias("nll.up_proj.bias", width),
            StepTensor::weight("nll.down_proj.weight", &[hidden, width], zero),
            StepTensor::bias("nll.down_proj.bias", hidden),
            StepTensor::weight("nll.scales", &[2], TensorInit::Constant(1.0)),
        ]
    }
}
