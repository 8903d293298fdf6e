//! Parameters of the distillation from a teacher's logits.

use super::{LossNeeds, LossParameters};
use crate::document::Checks;
use serde::{Deserialize, Serialize};

/// Parameters of [`super::LossKind::Distill`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistillConfig {
    /// Divergence from the teacher's distribution.
    pub divergence: Divergence,
    /// Both distributions are softmax(logits / temperature).
    pub temperature: f64,
}

/// Divergence between teacher `p` and student `q`; the formulas are those of
/// `retie_model::kernels`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Divergence {
    /// KL(p ‖ q), the one that RRT chose.
    #[default]
    ForwardKl,
    /// KL(q ‖ p).
    ReverseKl,
    /// β KL(p ‖ m) + (1 − β) KL(q ‖ m) with m = βp + (1 − β)q (GKD).
    Jsd {
        /// β.
        #[serde(default = "default_beta")]
        beta: f64,
    },
    /// Total variation, ½ Σ |p − q|.
    Tvd,
    /// KL(p ‖ αp + (1 − α)q) (DistiLLM).
    SkewKl {
        /// α.
        #[serde(default = "default_alpha")]
        alpha: f64,
    },
}

pub(super) fn default_temperature() -> f64 {
    1.0
}

fn default_beta() -> f64 {
    0.5
}

/// DistiLLM's.
fn default_alpha() -> f64 {
    0.1
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self { divergence: Divergence::default(), temperature: default_temperature() }
    }
}

impl LossParameters for DistillConfig {
    fn needs(&self) -> LossNeeds {
        LossNeeds::TeacherLogits { temperature: self.temperature }
    }

    fn check(&self, key: &str, checks: &mut Checks) {
        check_softened(key, self.divergence, self.temperature, checks);
    }
}

/// Checks a divergence at a temperature; the term stands at `key`.
pub(super) fn check_softened(key: &str, divergence: Divergence, temperature: f64, checks: &mut Checks) {
    match divergence {
        Divergence::Jsd { beta } => {
            let fits = beta > 0.0 && beta < 1.0;
            checks.require(fits, format!("{key}.divergence.jsd.beta"), beta, "a number between 0 and 1");
        }
        Divergence::SkewKl { alpha } => {
            let fits = (0.0..1.0).contains(&alpha);
            checks.require(fits, format!("{key}.divergence.skew_kl.alpha"), alpha, "a number from 0 to below 1");
        }
        Divergence::ForwardKl | Divergence::ReverseKl | Divergence::Tvd => {}
    }
    let fits = temperature.is_finite() && temperature > 0.0;
    checks.require(fits, format!("{key}.temperature"), temperature, "a finite number above 0");
}
