//! Parameters of the local fit of each block to the teacher's.

use super::WeightPoint;
use serde::{Deserialize, Serialize};

/// Parameters of [`super::LossConfig::Blockwise`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockwiseConfig {
    /// Factor of this term.
    pub weight: f64,
    /// Factor of the weight over the run; by default 1 throughout.
    #[serde(default)]
    pub weight_schedule: Vec<WeightPoint>,
}

impl BlockwiseConfig {
    /// The term with this weight throughout.
    #[must_use]
    pub fn new(weight: f64) -> Self {
        Self { weight, weight_schedule: Vec::new() }
    }
}
