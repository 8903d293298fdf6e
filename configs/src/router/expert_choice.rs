//! Expert choice: each recursion selects its tokens (Mixture-of-Recursions, §2.2.1).

use super::{
    Gating, RouterInput, RouterNeeds, RouterNetwork, RouterNetworks, RouterScore, RouterSettings, RouterSpec,
    RouterWarmup, TrainingSelection,
};
use crate::{KvSharing, RecursionConfig};
use serde::{Deserialize, Serialize};

/// Parameters of [`RouterConfig::ExpertChoice`](super::RouterConfig). In training, recursion `r`
/// selects the `⌊c_r·S⌋` (at least one) tokens with the highest `u` of a sequence of `S` tokens. In
/// inference, which has to be causal, it selects every token whose `u` is above the recursion's
/// threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertChoiceConfig {
    /// Network that computes `u`.
    pub network: RouterNetwork,
    /// Input of the network.
    pub input: RouterInput,
    /// Function from `u` to a score.
    pub score: RouterScore,
    /// Factor on the score.
    pub alpha: f64,
    /// Combination of a selected token's hidden state with the block's output.
    pub gating: Gating,
    /// Capacity of each recursion: the fraction of a sequence's tokens that it selects in training;
    /// never rising.
    pub capacities: Vec<f64>,
    /// Network of the auxiliary routers, if inference uses them: they learn to predict the top-k
    /// selection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auxiliary: Option<RouterNetwork>,
    /// Thresholds for inference, one per recursion, on `u` or on the auxiliary router's logit,
    /// calibrated to the capacities; `null` selects every token. Without thresholds a token is
    /// selected if `u > 0`, which is what the auxiliary loss trains, and a recursion of capacity 1
    /// selects every token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<Vec<Option<f64>>>,
}

impl ExpertChoiceConfig {
    /// The paper's routers for `num_recursions` recursions: linear, a sigmoid times 0.1 as the
    /// gate, and [`Self::default_capacities`].
    #[must_use]
    pub fn new(num_recursions: usize) -> Self {
        Self {
            network: RouterNetwork::Linear,
            input: RouterInput::Raw,
            score: RouterScore::Sigmoid,
            alpha: Gating::Weighted.default_alpha(),
            gating: Gating::Weighted,
            capacities: Self::default_capacities(num_recursions),
            auxiliary: None,
            thresholds: None,
        }
    }

    /// The paper's capacities, `(R − r) / R`.
    #[must_use]
    pub fn default_capacities(num_recursions: usize) -> Vec<f64> {
        (0..num_recursions).map(|r| (num_recursions - r) as f64 / num_recursions as f64).collect()
    }

    /// Problems of the first recursion where later ones read its keys and values.
    fn kv_problems(&self, kv_sharing: KvSharing, problems: &mut Vec<String>) {
        let Self { capacities, thresholds, .. } = self;
        if !kv_sharing.reads_first_recursion() {
            return;
        }
        let reason = format!(
            "with kv_sharing `{kv_sharing}` later recursions read the keys and values that the first computes of every token"
        );
        if let Some(capacity) = capacities.first().filter(|capacity| **capacity < 1.0) {
            problems.push(format!("the capacity of recursion 0 is `{capacity}`, expected 1: {reason}"));
        }
        if let Some(threshold) = thresholds.as_ref().and_then(|thresholds| *thresholds.first()?) {
            problems.push(format!("the threshold of recursion 0 is `{threshold}`, expected null: {reason}"));
        }
    }

    /// Number of tokens that a recursion of capacity `capacity` selects from a sequence of
    /// `tokens`: `max(1, ⌊capacity·tokens⌋)`.
    #[must_use]
    pub fn tokens(capacity: f64, tokens: usize) -> usize {
        ((capacity * tokens as f64).floor() as usize).clamp(1, tokens.max(1))
    }

    /// Threshold on `u` in recursion `recursion`; `None` selects every token.
    #[must_use]
    pub fn threshold(&self, recursion: usize) -> Option<f64> {
        match &self.thresholds {
            Some(thresholds) => thresholds.get(recursion).copied().flatten(),
            None => self.capacities.get(recursion).filter(|capacity| **capacity < 1.0).map(|_| 0.0),
        }
    }

    /// Capacities in step `step` of a warm-up over `warmup_steps` training steps: each falls from 1
    /// to its own along half a cosine, `c + (1 − c)·½(1 + cos(π·min(1, step/warmup_steps)))`.
    #[must_use]
    pub fn capacities_at(&self, step: u64, warmup_steps: u64) -> Vec<f64> {
        let done = if warmup_steps == 0 { 1.0 } else { (step as f64 / warmup_steps as f64).min(1.0) };
        let rest = if done < 1.0 { 0.5 * (1.0 + (std::f64::consts::PI * done).cos()) } else { 0.0 };
        self.capacities.iter().map(|c| c + (1.0 - c) * rest).collect()
    }
}

impl RouterSpec for ExpertChoiceConfig {
    fn from_settings(num_recursions: usize, settings: &mut RouterSettings) -> Result<Self, String> {
        let gating = settings.name("gating")?.unwrap_or(Gating::StraightThrough);
        let default = Self::new(num_recursions);
        Ok(Self {
            network: settings.name("network")?.unwrap_or(default.network),
            input: settings.name("input")?.unwrap_or(RouterInput::Normalized),
            score: settings.name("score")?.unwrap_or(default.score),
            alpha: settings.number("alpha").unwrap_or_else(|| gating.default_alpha()),
            gating,
            capacities: settings.numbers("capacities").unwrap_or(default.capacities),
            auxiliary: settings.name("auxiliary")?,
            thresholds: None,
        })
    }

    fn network(&self) -> RouterNetwork {
        self.network
    }

    fn input(&self) -> RouterInput {
        self.input
    }

    fn gating(&self) -> Gating {
        self.gating
    }

    fn score(&self) -> (&'static str, f64) {
        (self.score.name(), self.alpha)
    }

    fn routers(&self, num_recursions: usize) -> RouterNetworks {
        RouterNetworks { count: num_recursions, outputs: 1, network: self.network }
    }

    fn auxiliary_routers(&self, num_recursions: usize) -> Option<RouterNetworks> {
        self.auxiliary.map(|network| RouterNetworks { count: num_recursions, outputs: 1, network })
    }

    fn inference_fraction(&self, recursion: usize, _: usize) -> Option<f64> {
        self.capacities.get(recursion).copied().filter(|_| !self.takes_all(recursion))
    }

    fn training_fraction(&self, recursion: usize, _: usize) -> f64 {
        self.capacities.get(recursion).copied().unwrap_or(1.0)
    }

    fn takes_all(&self, recursion: usize) -> bool {
        (0..=recursion).all(|r| self.threshold(r).is_none())
    }

    /// Each router reads the tokens selected by the previous recursion.
    fn inputs_per_token(&self, fraction: &dyn Fn(usize) -> f64) -> f64 {
        (0..self.capacities.len()).map(|r| if r == 0 { 1.0 } else { fraction(r - 1) }).sum()
    }

    fn starts_at_zero(&self) -> bool {
        self.gating == Gating::Delta
    }

    fn starts_as_without(&self, _: usize) -> bool {
        self.gating.keeps_output(self.score == RouterScore::Sigmoid && self.alpha == 2.0)
    }

    fn select_all(&mut self, num_recursions: usize) {
        self.thresholds = Some(vec![None; num_recursions]);
    }

    fn skips(&self) -> bool {
        self.capacities.iter().any(|capacity| *capacity < 1.0)
    }

    fn meets(&self, needs: RouterNeeds) -> bool {
        match needs {
            RouterNeeds::Any | RouterNeeds::ExpertChoice => true,
            RouterNeeds::Auxiliary => self.auxiliary.is_some(),
            RouterNeeds::TokenChoice => false,
        }
    }

    fn training_selection(&self, step: u64, warmup: RouterWarmup) -> TrainingSelection {
        TrainingSelection::TopK(self.capacities_at(step, warmup.capacity_steps))
    }

    fn title(&self, num_recursions: usize) -> String {
        format!("a router for each of {num_recursions} recursions")
    }

    fn advice(&self) -> &'static str {
        "a capacity warm-up from 1"
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let capacities: Vec<_> = self.capacities.iter().map(|capacity| format!("{capacity:.4}")).collect();
        let auxiliary = self.auxiliary.map(|network| ("auxiliary", network.to_string()));
        [("capacities", capacities.join(", "))].into_iter().chain(auxiliary).collect()
    }

    fn fitted_rows(&self) -> Vec<(&'static str, String)> {
        let state = if self.thresholds.is_some() { "calibrated" } else { "0, not calibrated" };
        vec![("thresholds", state.to_owned())]
    }

    fn add_problems(&self, recursion: &RecursionConfig, problems: &mut Vec<String>) {
        let num_recursions = recursion.num_recursions;
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
        self.kv_problems(recursion.kv_sharing, problems);
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            problems.push(format!("`alpha` is `{}`, expected a finite number above 0", self.alpha));
        }
        if let Some(network) = self.auxiliary {
            if !network.has_weights() {
                problems.push(format!("`auxiliary` is `{network}`, expected a network that learns"));
            }
            if !self.network.has_weights() {
                problems.push(format!(
                    "`auxiliary` predicts what a router chooses, and `{}` chooses at random",
                    self.network
                ));
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
}
