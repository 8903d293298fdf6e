//! Parameters of what is asked of routers.

use super::WeightPoint;
use serde::{Deserialize, Serialize};

/// Parameters of [`super::LossConfig::RouterBce`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterBceConfig {
    /// Factor of this term.
    pub weight: f64,
    /// Factor of the weight over the run; by default 1 throughout.
    #[serde(default)]
    pub weight_schedule: Vec<WeightPoint>,
}

/// Parameters of [`super::LossConfig::RouterZLoss`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterZLossConfig {
    /// Factor of this term.
    pub weight: f64,
    /// Factor of the weight over the run; by default 1 throughout.
    #[serde(default)]
    pub weight_schedule: Vec<WeightPoint>,
}
