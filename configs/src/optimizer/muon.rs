//! Settings of Muon (<https://kellerjordan.github.io/posts/muon/>).

use super::RuleSettings;
use crate::{document::Checks, named::named};
use serde::{Deserialize, Serialize};

/// Settings of [`OptimizerKind::Muon`](super::OptimizerKind).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MuonConfig {
    /// Decay rate of the momentum, the running mean of the gradient.
    pub momentum: f64,
    /// Iterations of the orthogonalisation.
    pub ns_steps: u32,
    /// Size of an update.
    pub adjust_lr: AdjustLr,
    /// Whether the factors of LoRA are matrices of Muon too.
    pub lora: bool,
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self { momentum: 0.95, ns_steps: 5, adjust_lr: AdjustLr::default(), lora: false }
    }
}

impl RuleSettings for MuonConfig {
    fn check(&self, key: &str, checks: &mut Checks) {
        let Self { momentum, ns_steps, .. } = *self;
        let fits = (0.0..1.0).contains(&momentum);
        checks.require(fits, format!("{key}.momentum"), momentum, "a number from 0 to below 1");
        let fits = (1..=100).contains(&ns_steps);
        checks.require(fits, format!("{key}.ns_steps"), ns_steps, "a number from 1 to 100");
    }
}

named! {
    /// Factor on the learning rate of a matrix `[rows, columns]`, by its shape; the names are those
    /// of `torch.optim.Muon`.
    #[derive(Default)]
    AdjustLr, "adjustment of the rate" {
        /// `√max(1, rows / columns)`: Muon's own, with rates of some 0.02.
        Original = "original",
        /// `0.2 · √max(rows, columns)`: updates as large as AdamW's, with AdamW's rates
        /// (<https://arxiv.org/abs/2502.16982>, Eq. 4).
        #[default]
        MatchRmsAdamW = "match_rms_adamw",
    }
}

impl AdjustLr {
    /// The factor for a matrix of `rows × columns`.
    #[must_use]
    pub fn factor(self, [rows, columns]: [usize; 2]) -> f64 {
        match self {
            Self::Original => (rows as f64 / columns as f64).max(1.0).sqrt(),
            Self::MatchRmsAdamW => 0.2 * (rows.max(columns) as f64).sqrt(),
        }
    }
}
