//! Recursions that choose tokens (Mixture-of-Recursions, §2.2.1, expert choice).

use super::{Gating, KvStrategy, RouterInput, RouterNetwork, RouterScore};
use serde::{Deserialize, Serialize};

/// Parameters of [`RouterConfig::ExpertChoice`](super::RouterConfig). In training, recursion `r` takes the `⌊c_r·S⌋` (at least one) highest of a sequence
/// of `S` tokens; in inference, which has to be causal, every token whose `u` is above the recursion's threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertChoiceConfig {
    /// What computes `u`.
    pub network: RouterNetwork,
    /// What the network reads.
    pub input: RouterInput,
    /// From `u` to a score.
    pub score: RouterScore,
    /// Factor of the score.
    pub alpha: f64,
    /// What a chosen token becomes.
    pub gating: Gating,
    /// Part of a sequence's tokens that goes through each recursion; never rising.
    pub capacities: Vec<f64>,
    /// What attention sees within a recursion.
    pub kv: KvStrategy,
    /// Network of the auxiliary routers, where inference goes by them: they learn to predict what the highest `u` choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auxiliary: Option<RouterNetwork>,
    /// Thresholds of `u`, or of the auxiliary router's, for inference, one a recursion, calibrated to the capacities; `null` lets every token through. Without them a
    /// token passes if `u > 0`, which is what the auxiliary loss trains, and every token a recursion of capacity 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<Vec<Option<f64>>>,
}

impl ExpertChoiceConfig {
    /// The paper's capacities, `(R − r) / R`.
    #[must_use]
    pub fn default_capacities(num_recursions: usize) -> Vec<f64> {
        (0..num_recursions).map(|r| (num_recursions - r) as f64 / num_recursions as f64).collect()
    }

    pub(super) fn problems(&self, num_recursions: usize, problems: &mut Vec<String>) {
        let capacities = &self.capacities;
        if capacities.len() != num_recursions {
            problems.push(format!(
                "{} capacities for {num_recursions} recursions, expected one for each",
                capacities.len()
            ));
        }
        for (r, capacity) in capacities.iter().enumerate() {
            if !(*capacity > 0.0 && *capacity <= 1.0) {
                problems.push(format!("the capacity of recursion {r} is `{capacity}`, expected above 0, up to 1"));
            }
        }
        for (r, pair) in capacities.windows(2).enumerate() {
            if pair[1] > pair[0] {
                problems.push(format!(
                    "the capacity rises from `{}` to `{}` at recursion {}: a recursion chooses among the tokens of the one before",
                    pair[0],
                    pair[1],
                    r + 1
                ));
            }
        }
        self.kv_problems(problems);
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            problems.push(format!("`alpha` is `{}`, expected a finite number above 0", self.alpha));
        }
        if let Some(network) = self.auxiliary {
            if !network.has_weights() {
                problems.push(format!("`auxiliary` is `{network}`, expected a network that learns"));
            }
            if !self.network.has_weights() {
                problems.push(format!("`auxiliary` predicts what a router chooses, and `{}` draws lots", self.network));
            }
        }
        let Some(thresholds) = &self.thresholds else { return };
        if thresholds.len() != num_recursions {
            problems.push(format!(
                "{} thresholds for {num_recursions} recursions, expected one for each",
                thresholds.len()
            ));
        }
        for threshold in thresholds.iter().flatten().filter(|threshold| !(**threshold as f32).is_finite()) {
            problems.push(format!("a threshold is `{threshold}`, expected a finite number of f32 or null"));
        }
    }

    /// What is wrong with the first recursion where later ones read its keys and values.
    fn kv_problems(&self, problems: &mut Vec<String>) {
        let Self { kv, capacities, thresholds, .. } = self;
        if !kv.reads_the_first() {
            return;
        }
        let reason =
            format!("with kv `{kv}` later recursions read the keys and values that the first makes of every token");
        if let Some(capacity) = capacities.first().filter(|capacity| **capacity < 1.0) {
            problems.push(format!("the capacity of recursion 0 is `{capacity}`, expected 1: {reason}"));
        }
        if let Some(threshold) = thresholds.as_ref().and_then(|thresholds| *thresholds.first()?) {
            problems.push(format!("the threshold of recursion 0 is `{threshold}`, expected null: {reason}"));
        }
    }

    /// Tokens that recursion `recursion` takes of a sequence of `tokens`, when its capacity is `capacity`: `max(1, ⌊capacity·tokens⌋)`.
    #[must_use]
    pub fn tokens(capacity: f64, tokens: usize) -> usize {
        ((capacity * tokens as f64).floor() as usize).clamp(1, tokens.max(1))
    }

    /// The threshold of `u` in recursion `recursion`; `None` lets every token through.
    #[must_use]
    pub fn threshold(&self, recursion: usize) -> Option<f64> {
        match &self.thresholds {
            Some(thresholds) => thresholds.get(recursion).copied().flatten(),
            None => self.capacities.get(recursion).filter(|capacity| **capacity < 1.0).map(|_| 0.0),
        }
    }

    /// Whether recursion `recursion` of an inference gets every token, so that its keys and values are those of all.
    #[must_use]
    pub fn takes_all(&self, recursion: usize) -> bool {
        (0..=recursion).all(|r| self.threshold(r).is_none())
    }

    /// Capacities after `step` of `warmup_steps` training steps: each falls from 1 to its own along half a cosine,
    /// `c + (1 − c)·½(1 + cos(π·min(1, step/warmup_steps)))`.
    #[must_use]
    pub fn capacities_at(&self, step: u64, warmup_steps: u64) -> Vec<f64> {
        let done = if warmup_steps == 0 { 1.0 } else { (step as f64 / warmup_steps as f64).min(1.0) };
        let rest = if done < 1.0 { 0.5 * (1.0 + (std::f64::consts::PI * done).cos()) } else { 0.0 };
        self.capacities.iter().map(|c| c + (1.0 - c) * rest).collect()
    }
}
