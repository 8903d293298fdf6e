//! Parameters of the early exits: losses of what each recursion but the last leaves.

use super::{
    LossNeeds, LossParameters,
    distill::{Divergence, check_softened, default_temperature},
};
use crate::document::Checks;
use serde::{Deserialize, Serialize};

/// Parameters of [`super::LossKind::EarlyExit`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EarlyExitConfig {
    /// Factors of the exits within the term.
    pub weights: ExitWeights,
    /// Distillation of the exits; without it they learn from the text.
    pub distill: Option<ExitDistillConfig>,
    /// Draws a recursion count `1 … R` for each sequence, which has the losses of that exit alone,
    /// times `R`; none if it draws `R`. The mean over draws is the loss without it.
    pub sample: bool,
}

/// Factors of the exits after recursions `1 … R − 1`, of `R`; that of the last recursion, whose
/// losses are the other terms, is 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ExitWeights {
    /// `i/R` after recursion `i`: RRT's `i / Σ j`, divided by that of the last recursion.
    Weighted,
    /// `c` for each.
    Aggressive {
        /// `c`.
        c: f64,
    },
    /// One for each.
    Each(Vec<f64>),
}

/// Distillation of an exit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitDistillConfig {
    /// References.
    pub from: Vec<ExitReference>,
    /// Use of the exit's cross-entropy.
    #[serde(default)]
    pub cross_entropy: ExitCrossEntropy,
    /// Divergence from their distributions.
    #[serde(default)]
    pub divergence: Divergence,
    /// Both distributions are softmax(logits / temperature).
    #[serde(default = "default_temperature")]
    pub temperature: f64,
}

/// Logits that an exit is distilled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReference {
    /// The student's own after the last recursion, without a gradient.
    Final,
    /// The teacher's.
    Teacher,
}

/// Use of an exit's cross-entropy beside a distillation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitCrossEntropy {
    /// The divergences stand in its place.
    #[default]
    Replace,
    /// The divergences are added to it.
    Keep,
}

impl Default for ExitWeights {
    /// The one that RRT chose.
    fn default() -> Self {
        Self::Aggressive { c: 0.1 }
    }
}

impl ExitWeights {
    /// The factor of each exit of a model with `num_recursions`.
    #[must_use]
    pub fn factors(&self, num_recursions: usize) -> Vec<f64> {
        match self {
            Self::Weighted => (1..num_recursions).map(|i| i as f64 / num_recursions as f64).collect(),
            Self::Aggressive { c } => vec![*c; num_recursions.saturating_sub(1)],
            Self::Each(factors) => factors.clone(),
        }
    }
}

impl EarlyExitConfig {
    /// The distillation from `reference`, if there is one.
    #[must_use]
    pub fn distill_from(&self, reference: ExitReference) -> Option<&ExitDistillConfig> {
        self.distill.as_ref().filter(|distill| distill.from.contains(&reference))
    }

    /// Whether an exit learns from the text.
    #[must_use]
    pub fn has_cross_entropy(&self) -> bool {
        self.distill.as_ref().is_none_or(|distill| distill.cross_entropy == ExitCrossEntropy::Keep)
    }
}

impl LossParameters for EarlyExitConfig {
    fn needs(&self) -> LossNeeds {
        match self.distill_from(ExitReference::Teacher) {
            Some(distill) => LossNeeds::TeacherLogits { temperature: distill.temperature },
            None => LossNeeds::Student,
        }
    }

    fn check(&self, key: &str, checks: &mut Checks) {
        let fits = |factor: f64| factor.is_finite() && factor >= 0.0;
        let expected = "a finite number, 0 or more";
        match &self.weights {
            ExitWeights::Weighted => {}
            ExitWeights::Aggressive { c } => {
                checks.require(fits(*c), format!("{key}.weights.aggressive.c"), c, expected);
            }
            ExitWeights::Each(factors) => {
                for (index, factor) in factors.iter().enumerate() {
                    checks.require(fits(*factor), format!("{key}.weights.each.{index}"), factor, expected);
                }
            }
        }
        let Some(ExitDistillConfig { from, divergence, temperature, .. }) = &self.distill else { return };
        let key = format!("{key}.distill");
        check_softened(&key, *divergence, *temperature, checks);
        match from.as_slice() {
            [] => {
                checks.problem(format!("{key}.from"), format!("`{key}.from` is empty, expected `final` or `teacher`"));
            }
            [first, rest @ ..] if rest.contains(first) => {
                checks.problem(format!("{key}.from.1"), format!("`{key}.from` names the same twice"));
            }
            _ => {}
        }
    }
}
