//! The `router` of a recursion: how each token gets its own recursion depth (Mixture-of-Recursions, §2.2,
//! <https://arxiv.org/abs/2507.10524>).
//!
//! A recursion `r` (0-based) reads the tokens that went through recursion `r − 1`; its router scores each of them from its hidden
//! state, `u = router(x)`, `p = α·score(u)`, and some go through the block. The others keep their hidden state.

use crate::{ConfigError, Sharing};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Who chooses, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterConfig {
    /// Each recursion chooses its tokens.
    ExpertChoice(ExpertChoiceConfig),
}

/// Parameters of [`RouterConfig::ExpertChoice`]. In training, recursion `r` takes the `⌊c_r·S⌋` (at least one) highest of a sequence
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
    /// Thresholds of `u` for inference, one a recursion, calibrated to the capacities; `null` lets every token through. Without them a
    /// token passes if `u > 0`, which is what the auxiliary loss trains, and every token a recursion of capacity 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<Vec<Option<f64>>>,
}

/// A choice that has a name in configurations and on the command line.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $type {
            $($(#[$variant_doc])* #[serde(rename = $name)] $variant),+
        }

        impl $type {
            /// Every one, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in configurations and on the command line.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                let known = [$($name),+].join(", ");
                Self::ALL
                    .iter()
                    .copied()
                    .find(|x| x.name() == name)
                    .ok_or_else(|| format!(concat!("unknown ", $what, " `{}`, expected one of {}"), name, known))
            }
        }
    };
}

named! {
    /// Layers of a router, none with a bias.
    RouterNetwork, "router network" {
        /// `D → 1`.
        Linear = "linear",
        /// `D → 2D`, exact GELU, `2D → 1`.
        Mlp = "mlp",
        /// `D → 4D`, exact GELU, `4D → 1`: the width that the paper states.
        WideMlp = "wide_mlp",
        /// None: a number is drawn for each token and position. A baseline.
        Random = "random",
    }
}

impl RouterNetwork {
    /// Width of the hidden layer for hidden states of `hidden_size`; `None` without one.
    #[must_use]
    pub fn width(self, hidden_size: usize) -> Option<usize> {
        match self {
            Self::Linear | Self::Random => None,
            Self::Mlp => Some(2 * hidden_size),
            Self::WideMlp => Some(4 * hidden_size),
        }
    }

    /// Whether there is something to train.
    #[must_use]
    pub fn has_weights(self) -> bool {
        self != Self::Random
    }
}

named! {
    /// What a router reads of a token.
    RouterInput, "router input" {
        /// The hidden state, as in the reference.
        Raw = "raw",
        /// The hidden state divided by its root mean square.
        Normalized = "normalized",
    }
}

named! {
    /// From the network's output `u` to a score.
    RouterScore, "router score" {
        /// `1 / (1 + e^−u)`.
        Sigmoid = "sigmoid",
        /// `tanh u`.
        Tanh = "tanh",
        /// `u`.
        None = "none",
    }
}

named! {
    /// What the hidden state `x` of a chosen token becomes, with `y = block(x)` (its residual stream included) and `p` its score.
    Gating, "gating" {
        /// `x + (y − x)`, that is `y`; the router's gradient is that of [`Gating::Delta`] at `p = 1`.
        StraightThrough = "straight_through",
        /// `(1 − p)·x + p·y`.
        Delta = "delta",
        /// `x + p·y`, Eq. 2.1 of the paper.
        Weighted = "weighted",
        /// `x + y`.
        Additive = "additive",
    }
}

impl Gating {
    /// The factor `alpha` that goes with it, unless another is asked for: the paper's 0.1 for the paper's gatings, 2 for
    /// [`Gating::Delta`], so that a sigmoid at 0 is a gate of 1.
    #[must_use]
    pub fn default_alpha(self) -> f64 {
        match self {
            Self::StraightThrough => 1.0,
            Self::Delta => 2.0,
            Self::Weighted | Self::Additive => 0.1,
        }
    }
}

named! {
    /// Keys and values of a recursion.
    KvStrategy, "KV strategy" {
        /// Of the tokens that the recursion chose, which see one another.
        RecursionWise = "recursion_wise",
    }
}

impl RouterConfig {
    /// The name of its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ExpertChoice(_) => "expert_choice",
        }
    }

    /// Everything that is wrong with it for a model of `num_recursions` in the pattern `sharing`.
    #[must_use]
    pub fn problems(&self, num_recursions: usize, sharing: Sharing) -> Vec<String> {
        let mut problems = Vec::new();
        if !matches!(sharing, Sharing::Cycle | Sharing::MiddleCycle) {
            problems
                .push(format!("`{sharing}` has no loop that a token could leave, expected `cycle` or `middle_cycle`"));
        }
        if num_recursions < 2 {
            problems.push(format!("{num_recursions} recursion leaves nothing to choose, expected at least 2"));
        }
        match self {
            Self::ExpertChoice(config) => config.problems(num_recursions, &mut problems),
        }
        problems
    }

    pub(crate) fn check(&self, num_recursions: usize, sharing: Sharing) -> Result<(), ConfigError> {
        let problems = self.problems(num_recursions, sharing);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::BadRouter { problems }) }
    }
}

impl ExpertChoiceConfig {
    /// The paper's capacities, `(R − r) / R`.
    #[must_use]
    pub fn default_capacities(num_recursions: usize) -> Vec<f64> {
        (0..num_recursions).map(|r| (num_recursions - r) as f64 / num_recursions as f64).collect()
    }

    fn problems(&self, num_recursions: usize, problems: &mut Vec<String>) {
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
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            problems.push(format!("`alpha` is `{}`, expected a finite number above 0", self.alpha));
        }
        let Some(thresholds) = &self.thresholds else { return };
        if thresholds.len() != num_recursions {
            problems.push(format!(
                "{} thresholds for {num_recursions} recursions, expected one for each",
                thresholds.len()
            ));
        }
        if let Some(threshold) = thresholds.iter().flatten().find(|threshold| !threshold.is_finite()) {
            problems.push(format!("a threshold is `{threshold}`, expected a finite number or null"));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(capacities: &[f64]) -> ExpertChoiceConfig {
        ExpertChoiceConfig {
            network: RouterNetwork::Linear,
            input: RouterInput::Raw,
            score: RouterScore::Sigmoid,
            alpha: 0.1,
            gating: Gating::Weighted,
            capacities: capacities.to_vec(),
            kv: KvStrategy::RecursionWise,
            thresholds: None,
        }
    }

    /// Values of the reference implementation run on these inputs.
    #[test]
    fn warm_up_and_numbers_of_tokens_are_those_of_the_reference() {
        let found: Vec<f64> = (1..=5).map(|t| config(&[1.0 / 3.0]).capacities_at(t, 4)[0]).collect();
        let expected = [0.902_368_927_1, 0.666_666_666_7, 0.430_964_406_3, 1.0 / 3.0, 1.0 / 3.0];
        // The values are given to ten digits.
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-10), "{found:?}");
        assert_eq!(config(&[0.25]).capacities_at(1, 0), [0.25]);
        for (num_recursions, length, expected) in [
            (3, 2048, vec![2048, 1365, 682]),
            (4, 2048, vec![2048, 1536, 1024, 512]),
            (3, 100, vec![100, 66, 33]),
            (4, 7, vec![7, 5, 3, 1]),
            (3, 1, vec![1, 1, 1]),
        ] {
            let capacities = ExpertChoiceConfig::default_capacities(num_recursions);
            let found: Vec<usize> = capacities.into_iter().map(|c| ExpertChoiceConfig::tokens(c, length)).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn every_problem_is_named() {
        let config = RouterConfig::ExpertChoice(ExpertChoiceConfig {
            alpha: 0.0,
            thresholds: Some(vec![None, Some(f64::NAN)]),
            ..config(&[1.0, 0.2, 0.5, 0.0])
        });
        insta::assert_snapshot!(config.check(3, Sharing::Sequence).unwrap_err(), @"
        the router cannot be used:
          `sequence` has no loop that a token could leave, expected `cycle` or `middle_cycle`
          4 capacities for 3 recursions, expected one for each
          the capacity of recursion 3 is `0`, expected above 0, up to 1
          the capacity rises from `0.2` to `0.5` at recursion 2: a recursion chooses among the tokens of the one before
          `alpha` is `0`, expected a finite number above 0
          2 thresholds for 3 recursions, expected one for each
          a threshold is `NaN`, expected a finite number or null
        ");
        let thirds = RouterConfig::ExpertChoice(self::config(&[1.0, 0.5]));
        assert!(thirds.check(2, Sharing::Cycle).is_ok());
    }

    #[test]
    fn a_capacity_of_one_has_no_threshold_and_others_have_zero_until_they_are_calibrated() {
        let mut config = config(&[1.0, 0.5]);
        assert_eq!([config.threshold(0), config.threshold(1)], [None, Some(0.0)]);
        config.thresholds = Some(vec![None, Some(-0.75)]);
        assert_eq!([config.threshold(0), config.threshold(1)], [None, Some(-0.75)]);
    }

    #[test]
    fn it_is_an_object_with_the_name_of_its_kind() {
        let router = RouterConfig::ExpertChoice(config(&[1.0, 0.5]));
        let json = serde_json::to_value(&router).unwrap();
        assert_eq!(
            json.to_string(),
            r#"{"expert_choice":{"network":"linear","input":"raw","score":"sigmoid","alpha":0.1,"gating":"weighted","capacities":[1.0,0.5],"kv":"recursion_wise"}}"#
        );
        assert_eq!(serde_json::from_value::<RouterConfig>(json).unwrap(), router);
        let error = "hard".parse::<Gating>().unwrap_err();
        assert_eq!(error, "unknown gating `hard`, expected one of straight_through, delta, weighted, additive");
    }
}
