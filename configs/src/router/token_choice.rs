//! Tokens that choose a depth (Mixture-of-Recursions, §2.2.1, token choice).

use super::{DepthScore, Gating, IntermediateState, KvStrategy, RouterInput, RouterNetwork};
use serde::{Deserialize, Serialize};

/// Parameters of [`RouterConfig::TokenChoice`](super::RouterConfig). The router reads each token before the first recursion and has one
/// logit `u_i` for each of `R` depths, `p = α·score(u)`; the token goes through recursions `0 … i` where `p_i + b_i` is largest, of equals
/// the deepest. Training and inference choose alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenChoiceConfig {
    /// What computes `u`.
    pub network: RouterNetwork,
    /// What the network reads.
    pub input: RouterInput,
    /// From `u` to scores.
    pub score: DepthScore,
    /// Factor of the scores.
    pub alpha: f64,
    /// What a token becomes in the recursion that it leaves after; the hidden state `x` is that of the loop's entry.
    pub gating: Gating,
    /// What it becomes in those before.
    pub intermediate: IntermediateState,
    /// What attention sees within a recursion.
    pub kv: KvStrategy,
    /// `b`, one a depth, added for the choice alone: what loss-free balancing has come to. None are zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub biases: Option<Vec<f32>>,
}

impl TokenChoiceConfig {
    pub(super) fn problems(&self, num_recursions: usize, problems: &mut Vec<String>) {
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

    /// Part of the tokens that goes through every recursion in training step `step` (counted from 1) whatever the router says,
    /// `½(1 + cos(π·min(1, step/warmup_steps)))`.
    #[must_use]
    pub fn full_depth_at(step: u64, warmup_steps: u64) -> f64 {
        if step >= warmup_steps {
            return 0.0;
        }
        0.5 * (1.0 + (std::f64::consts::PI * step as f64 / warmup_steps as f64).cos())
    }
}
