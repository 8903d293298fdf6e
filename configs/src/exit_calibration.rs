//! Calibrated early exits: the rule by which a token leaves the loop, what happens to the keys and
//! values that it did not make, and thresholds for promised risks. The file `exits.json` of a model
//! folder, written by `retie calibrate`.

use crate::named::named;
use serde::{Deserialize, Serialize};

/// Calls the macro `$with` with the list of all exit rules. An entry is the rule's name in
/// configurations and on the command line, its variant of [`ExitRuleKind`](crate::ExitRuleKind) and
/// its module in the model.
///
/// The list stands once: configurations and the model's dispatch are both made from it.
#[macro_export]
macro_rules! for_each_exit_rule {
    ($with:ident) => {
        $with! {
            /// Probability, by a linear probe of the hidden state, that the exit's most probable
            /// token is that of the whole stack.
            "probe" => Probe(probe),
            /// Largest probability of the readout.
            "probability" => Probability(probability),
            /// Difference of the two largest probabilities of the readout.
            "margin" => Margin(margin),
            /// 1 minus the entropy of the readout, as a part of that of the uniform distribution.
            "entropy" => Entropy(entropy),
            /// Overlap of the readouts before and after the recursion.
            "agreement" => Agreement(agreement),
            /// 1 minus the relative change of the hidden state by the recursion.
            "change" => Change(change),
            /// 1 minus the sigmoid of the next recursion's router logit, for expert choice.
            "router" => Router(router),
        }
    };
}

macro_rules! define_rules {
    ($($(#[$doc:meta])* $name:literal => $variant:ident($module:ident),)+) => {
        named! {
            /// Exit rule: a number for each token after a recursion; a token whose number reaches
            /// the threshold leaves the loop.
            ExitRuleKind, "exit rule" { $($(#[$doc])* $variant = $name),+ }
        }
    };
}
for_each_exit_rule!(define_rules);

named! {
    /// Policy for the keys and values of recursions that a token skips.
    SkippedKv, "policy for keys and values" {
        /// There are none: later tokens attend to those that went through the recursion.
        Skip = "skip",
        /// Those of the token's last recursion.
        Latest = "latest",
        /// Computed from the state that left the loop.
        Propagate = "propagate",
        /// Computed when a later token of the sequence reaches the recursion: exact.
        Recompute = "recompute",
        /// Every recursion reads those of the first (`kv_sharing: shared`): none is ever missing.
        Shared = "shared",
    }
}

named! {
    /// Loss of an exit on a token, from 0 to 1; the risk is its mean over the tokens of a document.
    RiskKind, "risk" {
        /// 1 where the most probable token is not that of the whole stack.
        Disagreement = "disagreement",
        /// KL divergence from the whole stack in nats, at most 1.
        Kl = "kl",
        /// Negative log-likelihood above that of the whole stack in nats, at most 1.
        Nll = "nll",
    }
}

named! {
    /// Procedure that finds a threshold.
    RiskProcedure, "procedure" {
        /// Conformal risk control: the expected risk of a new document is at most the level.
        Conformal = "conformal",
        /// Upper bound by betting, from the safest threshold on.
        Betting = "betting",
        /// Learn-then-Test with Hoeffding-Bentkus p-values, from the safest threshold on.
        LearnThenTest = "learn_then_test",
    }
}

/// Name of the file in a model folder.
pub const EXITS_FILE: &str = "exits.json";

/// Version of [`ExitCalibration`].
pub const EXITS_SCHEMA: u32 = 1;

/// Calibrated exits of one checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitCalibration {
    /// [`EXITS_SCHEMA`].
    pub schema: u32,
    /// Files of the checkpoint.
    pub model: Vec<HashedFile>,
    /// Number of recursions, `R`.
    pub num_recursions: usize,
    /// Exit rule.
    pub rule: ExitRuleKind,
    /// Probes after recursions `1 … R − 1`, if the rule has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ExitProbe>,
    /// Policy under which the thresholds hold.
    pub kv_policy: SkippedKv,
    /// Calibration text.
    pub text: CalibratedText,
    /// Thresholds, by ascending level.
    pub thresholds: Vec<ExitThreshold>,
}

/// Name and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashedFile {
    /// Its name.
    pub name: String,
    /// Its hash.
    pub sha256: String,
}

/// Linear probe of a hidden state: the logistic function of `w·x/rms(x) + b`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitProbe {
    /// `w`, of the hidden size.
    pub weight: Vec<f32>,
    /// `b`.
    pub bias: f32,
}

/// Text that thresholds were calibrated on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibratedText {
    /// Hash of the file.
    pub sha256: String,
    /// Documents.
    pub documents: usize,
    /// Tokens of a document, at most.
    pub window: usize,
}

/// A threshold and its promise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitThreshold {
    /// What is bounded.
    pub risk: RiskKind,
    /// The bound.
    pub level: f64,
    /// Procedure that found it.
    pub procedure: RiskProcedure,
    /// Probability with which it holds; `None` where its expectation is bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// Tokens whose number reaches it leave the loop; `None`: no token does.
    pub threshold: Option<f64>,
    /// Mean recursion count of the calibration text.
    pub mean_recursions: f64,
}

impl ExitCalibration {
    /// Number of the rule from which on tokens leave for a risk of at most `level`; infinite if no
    /// token may.
    ///
    /// # Errors
    /// What is expected of `level`: it is no risk, or below every calibrated one.
    pub fn number(&self, level: f64) -> Result<f32, String> {
        if !(level > 0.0 && level < 1.0) {
            return Err("a number between 0 and 1".to_owned());
        }
        match self.threshold(level) {
            Some(found) => Ok(found.threshold.map_or(f32::INFINITY, |threshold| threshold as f32)),
            None => Err(format!("one of the calibrated levels or more: {}", self.levels())),
        }
    }

    /// The calibrated levels, as text.
    #[must_use]
    pub fn levels(&self) -> String {
        let levels: Vec<String> = self.thresholds.iter().map(|entry| entry.level.to_string()).collect();
        levels.join(", ")
    }

    /// The entry of the greatest level that is at most `level`; `None` if no level is that low.
    #[must_use]
    pub fn threshold(&self, level: f64) -> Option<&ExitThreshold> {
        self.thresholds.iter().filter(|entry| entry.level <= level).max_by(|a, b| a.level.total_cmp(&b.level))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_gets_the_threshold_of_the_next_lower_level() {
        let entry = |level, threshold| ExitThreshold {
            risk: RiskKind::Disagreement,
            level,
            procedure: RiskProcedure::Betting,
            confidence: Some(0.9),
            threshold,
            mean_recursions: 1.5,
        };
        let calibration = ExitCalibration {
            schema: EXITS_SCHEMA,
            model: Vec::new(),
            num_recursions: 2,
            rule: ExitRuleKind::Probe,
            probes: vec![ExitProbe { weight: vec![0.5, -1.0], bias: 0.25 }],
            kv_policy: SkippedKv::Latest,
            text: CalibratedText { sha256: "00".into(), documents: 40, window: 256 },
            thresholds: vec![entry(0.01, None), entry(0.05, Some(0.75))],
        };
        let of = |level| calibration.threshold(level).map(|entry| (entry.level, entry.threshold));
        assert_eq!(
            [0.005, 0.02, 0.05, 0.3].map(of),
            [None, Some((0.01, None)), Some((0.05, Some(0.75))), Some((0.05, Some(0.75)))]
        );
        assert_eq!([0.02, 0.3].map(|level| calibration.number(level)), [Ok(f32::INFINITY), Ok(0.75)]);
        assert_eq!(calibration.number(0.005), Err("one of the calibrated levels or more: 0.01, 0.05".to_owned()));
        for level in [0.0, 1.0, f64::NAN] {
            assert_eq!(calibration.number(level), Err("a number between 0 and 1".to_owned()));
        }
        let text = serde_json::to_string(&calibration).unwrap();
        assert_eq!(serde_json::from_str::<ExitCalibration>(&text).unwrap(), calibration);
    }
}
