//! Token choice: each token selects its recursion count (Mixture-of-Recursions, §2.2.1).

use super::{
    Gating, IntermediateState, RouterInput, RouterNeeds, RouterNetwork, RouterNetworks, RouterSettings, RouterSpec,
    RouterWarmup, TokenChoiceScore, TrainingSelection,
};
use crate::RecursionConfig;
use serde::{Deserialize, Serialize};

/// Parameters of [`RouterConfig::TokenChoice`](super::RouterConfig). The router reads each token
/// before the first recursion and has one logit `u_i` for each of `R` recursion counts,
/// `p = α·score(u)`. The token goes through recursions `0 … i` where `p_i + b_i` is largest; the
/// largest count wins a tie. Training and inference select alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenChoiceConfig {
    /// Network that computes `u`.
    pub network: RouterNetwork,
    /// Input of the network.
    pub input: RouterInput,
    /// Function from `u` to scores.
    pub score: TokenChoiceScore,
    /// Factor on the scores.
    pub alpha: f64,
    /// Combination of a token's hidden state with the block's output in its last recursion; the
    /// hidden state `x` is that before the loop.
    pub gating: Gating,
    /// State of a token after the recursions before its last.
    pub intermediate: IntermediateState,
    /// Biases `b`, one per recursion count, added for the selection only: the result of loss-free
    /// balancing. `None` means zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub biases: Option<Vec<f32>>,
}

/// The paper's router: linear, with a softmax as the gate.
impl Default for TokenChoiceConfig {
    fn default() -> Self {
        Self {
            network: RouterNetwork::Linear,
            input: RouterInput::Raw,
            score: TokenChoiceScore::Softmax,
            alpha: 1.0,
            gating: Gating::Weighted,
            intermediate: IntermediateState::Plain,
            biases: None,
        }
    }
}

impl TokenChoiceConfig {
    /// Fraction of the tokens that goes through every recursion in training step `step` (counted
    /// from 1) regardless of the router, `½(1 + cos(π·min(1, step/warmup_steps)))`.
    #[must_use]
    pub fn full_recursion_fraction_at(step: u64, warmup_steps: u64) -> f64 {
        if step >= warmup_steps {
            return 0.0;
        }
        0.5 * (1.0 + (std::f64::consts::PI * step as f64 / warmup_steps as f64).cos())
    }
}

impl RouterSpec for TokenChoiceConfig {
    fn from_settings(num_recursions: usize, settings: &mut RouterSettings) -> Result<Self, String> {
        let gating = settings.name("gating")?.unwrap_or(Gating::StraightThrough);
        let default = Self::default();
        let score: TokenChoiceScore = settings.name("score")?.unwrap_or(default.score);
        Ok(Self {
            network: settings.name("network")?.unwrap_or(default.network),
            input: settings.name("input")?.unwrap_or(RouterInput::Normalized),
            score,
            alpha: settings.number("alpha").unwrap_or_else(|| score.default_alpha(gating, num_recursions)),
            gating,
            intermediate: settings.name("intermediate")?.unwrap_or(default.intermediate),
            biases: None,
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
        RouterNetworks { count: 1, outputs: num_recursions, network: self.network }
    }

    fn auxiliary_routers(&self, _: usize) -> Option<RouterNetworks> {
        None
    }

    /// Estimate for evenly distributed recursion counts.
    fn inference_fraction(&self, recursion: usize, num_recursions: usize) -> Option<f64> {
        (recursion > 0).then(|| num_recursions.saturating_sub(recursion) as f64 / num_recursions as f64)
    }

    fn training_fraction(&self, recursion: usize, num_recursions: usize) -> f64 {
        self.inference_fraction(recursion, num_recursions).unwrap_or(1.0)
    }

    fn takes_all(&self, recursion: usize) -> bool {
        recursion == 0
    }

    fn inputs_per_token(&self, _: &dyn Fn(usize) -> f64) -> f64 {
        1.0
    }

    /// With these gatings a router with zero logits, under which every token goes through all
    /// recursions, keeps the output of the block.
    fn starts_at_zero(&self) -> bool {
        matches!(self.gating, Gating::Delta | Gating::StraightThrough)
    }

    fn starts_as_without(&self, num_recursions: usize) -> bool {
        self.gating.keeps_output(self.alpha == self.score.default_alpha(Gating::Delta, num_recursions))
    }

    fn select_all(&mut self, num_recursions: usize) {
        // A bias above every score.
        let bias = |recursion| if recursion + 1 == num_recursions { f32::MAX } else { 0.0 };
        self.biases = Some((0..num_recursions).map(bias).collect());
    }

    fn skips(&self) -> bool {
        true
    }

    /// The largest count wins a tie.
    fn zero_takes_all(&self) -> bool {
        true
    }

    fn meets(&self, needs: RouterNeeds) -> bool {
        matches!(needs, RouterNeeds::Any | RouterNeeds::TokenChoice)
    }

    fn count_score(&self) -> Option<(TokenChoiceScore, f64)> {
        Some((self.score, self.alpha))
    }

    fn training_selection(&self, step: u64, warmup: RouterWarmup) -> TrainingSelection {
        match Self::full_recursion_fraction_at(step, warmup.full_recursion_steps) {
            0.0 => TrainingSelection::Causal,
            fraction => TrainingSelection::FullRecursion(fraction),
        }
    }

    fn title(&self, num_recursions: usize) -> String {
        format!("a router of {num_recursions} recursion counts")
    }

    fn advice(&self) -> &'static str {
        "a warm-up at full depth and balanced recursion counts"
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        vec![("intermediate", self.intermediate.to_string())]
    }

    fn fitted_rows(&self) -> Vec<(&'static str, String)> {
        let list = |biases: &Vec<f32>| biases.iter().map(|bias| format!("{bias:.3}")).collect::<Vec<_>>().join(", ");
        self.biases.iter().map(|biases| ("biases", list(biases))).collect()
    }

    fn add_problems(&self, recursion: &RecursionConfig, problems: &mut Vec<String>) {
        let num_recursions = recursion.num_recursions;
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            problems.push(format!("`alpha` is `{}`, expected a finite number above 0", self.alpha));
        }
        if self.gating == Gating::Additive && self.intermediate == IntermediateState::Gated {
            problems.push("gating `additive` has no gate that `intermediate: gated` could be".to_owned());
        }
        let Some(biases) = &self.biases else { return };
        if biases.len() != num_recursions {
            problems.push(format!("{} biases for {num_recursions} recursions, expected one for each", biases.len()));
        }
        if let Some(bias) = biases.iter().find(|bias| !bias.is_finite()) {
            problems.push(format!("a bias is `{bias}`, expected a finite number"));
        }
    }
}
