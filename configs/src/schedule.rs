//! Learning-rate schedules.
//!
//! `t` is the number of the optimizer step, counted from 1: the first step has `t = 1`, the last
//! one `t = T`. With `w` warm-up steps, `d` decay steps, `m = min_lr_ratio` and the peak `lr`:
//!
//! - warm-up, `t < w`: `lr · t / w`;
//! - `cosine`: `lr · (m + (1 − m) · (1 + cos(π · (t − w) / (T − w))) / 2)`
//!   (<https://arxiv.org/abs/1608.03983>);
//! - `linear`: `lr · (m + (1 − m) · (T − t) / (T − w))`, the last part of `warmup_stable_decay`
//!   alone;
//! - `warmup_stable_decay`: `lr` until `t = T − d`, then `lr · (m + (1 − m) · h)`, where `h` is
//!   `(T − t) / d` (`linear`, <https://arxiv.org/abs/2404.06395>) or `1 − √(1 − (T − t) / d)`
//!   (`1-sqrt`, <https://arxiv.org/abs/2405.18392>).
//!
//! So the last step has `lr · m`, and no step is lost to a rate of 0 at the start.

use crate::{document::Checks, named::named};
use serde::{Deserialize, Serialize};

/// Schedule of the learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleConfig {
    /// Warm-up, then cosine decay.
    Cosine(CosineConfig),
    /// Warm-up, then linear decay.
    Linear(LinearConfig),
    /// Warm-up, a constant peak, then decay.
    WarmupStableDecay(WarmupStableDecayConfig),
}

/// Parameters of [`ScheduleConfig::Cosine`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CosineConfig {
    /// Steps until the peak.
    pub warmup_steps: u64,
    /// Learning rate of the last step, as a fraction of the peak.
    #[serde(default = "default_cosine_min_lr_ratio")]
    pub min_lr_ratio: f64,
}

/// Parameters of [`ScheduleConfig::Linear`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearConfig {
    /// Steps until the peak.
    pub warmup_steps: u64,
    /// Learning rate of the last step, as a fraction of the peak.
    #[serde(default)]
    pub min_lr_ratio: f64,
}

/// Parameters of [`ScheduleConfig::WarmupStableDecay`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmupStableDecayConfig {
    /// Steps until the peak.
    pub warmup_steps: u64,
    /// Steps of the decay at the end of the run.
    pub decay_steps: u64,
    /// Shape of the decay.
    #[serde(default)]
    pub decay_type: DecayType,
    /// Learning rate of the last step, as a fraction of the peak.
    #[serde(default)]
    pub min_lr_ratio: f64,
}

named! {
    /// Shape of the decay of [`ScheduleConfig::WarmupStableDecay`]; the names are those of
    /// `transformers`.
    #[derive(Default)]
    DecayType, "shape of the decay" {
        /// `1 − x`, after the fraction `x` of the decay.
        #[default]
        Linear = "linear",
        /// `1 − √x`.
        OneMinusSqrt = "1-sqrt",
    }
}

fn default_cosine_min_lr_ratio() -> f64 {
    0.1
}

impl ScheduleConfig {
    /// Learning rate of optimizer step `step` (from 1) in a run of `num_steps` with peak `peak_lr`.
    /// Later steps have the rate of the last one.
    #[must_use]
    pub fn lr_at(&self, step: u64, num_steps: u64, peak_lr: f64) -> f64 {
        let (warmup, min_ratio) = (self.warmup_steps(), self.min_lr_ratio());
        if step < warmup {
            return peak_lr * step as f64 / warmup as f64;
        }
        let step = step.min(num_steps);
        let decay_steps = num_steps.saturating_sub(warmup).max(1) as f64;
        // Position between the peak (1) and the minimum rate (0).
        let height = match self {
            Self::Cosine(_) => {
                let progress = step.saturating_sub(warmup) as f64 / decay_steps;
                f64::midpoint(1.0, (std::f64::consts::PI * progress).cos())
            }
            Self::Linear(_) => ((num_steps - step) as f64 / decay_steps).min(1.0),
            Self::WarmupStableDecay(c) => {
                let left = ((num_steps - step) as f64 / c.decay_steps.max(1) as f64).min(1.0);
                match c.decay_type {
                    DecayType::Linear => left,
                    DecayType::OneMinusSqrt => 1.0 - (1.0 - left).sqrt(),
                }
            }
        };
        peak_lr * (min_ratio + (1.0 - min_ratio) * height)
    }

    /// Steps until the peak.
    #[must_use]
    pub fn warmup_steps(&self) -> u64 {
        match self {
            Self::Cosine(c) => c.warmup_steps,
            Self::Linear(c) => c.warmup_steps,
            Self::WarmupStableDecay(c) => c.warmup_steps,
        }
    }

    fn min_lr_ratio(&self) -> f64 {
        match self {
            Self::Cosine(c) => c.min_lr_ratio,
            Self::Linear(c) => c.min_lr_ratio,
            Self::WarmupStableDecay(c) => c.min_lr_ratio,
        }
    }

    /// Checks the parameters; `num_steps` is `None` when the length of the run is itself invalid.
    pub(crate) fn check(&self, num_steps: Option<u64>, checks: &mut Checks) {
        let (name, decay_steps) = match self {
            Self::Cosine(_) => ("cosine", 0),
            Self::Linear(_) => ("linear", 0),
            Self::WarmupStableDecay(c) => ("warmup_stable_decay", c.decay_steps),
        };
        let key = |field: &str| format!("schedule.{name}.{field}");
        let ratio = self.min_lr_ratio();
        checks.require((0.0..=1.0).contains(&ratio), key("min_lr_ratio"), ratio, "a number from 0 to 1");
        if let Self::WarmupStableDecay(_) = self {
            checks.require(decay_steps > 0, key("decay_steps"), decay_steps, "a positive integer");
        }
        let Some(num_steps) = num_steps else { return };
        let warmup = self.warmup_steps();
        let length = [
            key("decay_steps"),
            "train.steps".into(),
            "train.tokens".into(),
            "train.batch_size".into(),
            "train.gradient_accumulation".into(),
            "data.sequence_length".into(),
        ];
        if warmup > num_steps {
            let message = format!("`{}` is `{warmup}`, but the run has {num_steps} steps", key("warmup_steps"));
            checks.problem(key("warmup_steps"), message).also(&length.each_ref().map(String::as_str));
        } else if warmup.saturating_add(decay_steps) > num_steps {
            let message = format!(
                "warm-up of `{warmup}` and decay of `{decay_steps}` steps do not fit in a run of {num_steps} steps"
            );
            let keys = length.each_ref().map(String::as_str);
            checks.problem(key("warmup_steps"), message).also(&keys);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goldens: `tests/golden/schedule.py`.
    #[derive(Deserialize)]
    struct Golden {
        schedule: ScheduleConfig,
        num_steps: u64,
        peak_lr: f64,
        lr: Vec<(u64, f64)>,
    }

    #[test]
    fn rates_are_those_of_transformers_schedulers() {
        let goldens: Vec<Golden> = serde_json::from_str(include_str!("../tests/golden/schedule.json")).unwrap();
        for golden in goldens {
            for (step, lr) in golden.lr {
                let ours = golden.schedule.lr_at(step, golden.num_steps, golden.peak_lr);
                // Tolerance: a few roundings of f64 in another order.
                assert!((ours - lr).abs() <= 1e-14 * golden.peak_lr, "{:?} step {step}: {ours} {lr}", golden.schedule);
            }
        }
    }

    #[test]
    fn warmup_stable_decay_has_the_values_of_the_mixture_of_recursions_runs() {
        let (warmup_steps, decay_steps) = (86, 2832);
        let schedule = ScheduleConfig::WarmupStableDecay(WarmupStableDecayConfig {
            warmup_steps,
            decay_steps,
            decay_type: DecayType::Linear,
            min_lr_ratio: 0.0,
        });
        for (step, lr) in [
            (43, 0.0015),
            (86, 0.003),
            (11329, 0.003),
            (11330, 0.0029989407),
            (12745, 0.0015),
            (14161, 0.0),
            (20000, 0.0),
        ] {
            // The published values have ten decimals.
            assert!((schedule.lr_at(step, 14161, 3e-3) - lr).abs() < 5e-11, "step {step}");
        }
    }

    #[test]
    fn the_first_step_trains_and_the_last_has_the_least_rate() {
        let cosine = ScheduleConfig::Cosine(CosineConfig { warmup_steps: 0, min_lr_ratio: 0.1 });
        assert!(cosine.lr_at(1, 1, 1.0) > 0.0);
        assert!((cosine.lr_at(100, 100, 1.0) - 0.1).abs() < 1e-15);
        let all_warmup = ScheduleConfig::Cosine(CosineConfig { warmup_steps: 10, min_lr_ratio: 0.1 });
        assert_eq!(all_warmup.lr_at(10, 10, 1.0), 1.0);
    }
}
