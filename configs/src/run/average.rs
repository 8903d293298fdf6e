//! Averages of the weights over the steps of a run.
//!
//! With `θₜ` the weights after update `t` of `T`, counted from 1:
//!
//! - `ema`, decay `β`: `Σ βᵗ⁻ⁱ θᵢ / Σ βᵗ⁻ⁱ` over `i = 1 … t`. It is divided by the sum of its
//!   weights, as the moments of Adam are (<https://arxiv.org/abs/1412.6980>, Section 3), so that
//!   the start of the run, which would dominate short runs, has no weight of its own;
//! - `tail`, from `f`: the mean of `θᵢ` over `i = ⌊f·T⌋ + 1 … t`
//!   (<https://arxiv.org/abs/1803.05407>).

use crate::document::Checks;
use serde::{Deserialize, Serialize};

/// Average of the weights over the updates of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Average {
    /// Exponential moving average.
    Ema {
        /// `β`: factor on the weight of an update after each further one.
        #[serde(default = "default_decay")]
        decay: f64,
    },
    /// Mean over the last part of the run.
    Tail {
        /// `f`: fraction of the run before that part.
        #[serde(default = "default_from")]
        from: f64,
    },
}

fn default_decay() -> f64 {
    0.999
}

fn default_from() -> f64 {
    0.75
}

impl Average {
    /// Weight of the newest weights: update `t`, counted from 1, moves the average by this fraction
    /// towards them. 1 before the part of the run that is averaged.
    #[must_use]
    pub fn weight_at(self, update: u64, num_updates: u64) -> f64 {
        match self {
            Self::Ema { decay } => (1.0 - decay) / (1.0 - decay.powf(update as f64)),
            Self::Tail { from } => 1.0 / update.saturating_sub(Self::before(from, num_updates)).max(1) as f64,
        }
    }

    /// Whether the average after update `update` is one of several updates.
    #[must_use]
    pub fn has_begun(self, update: u64, num_updates: u64) -> bool {
        match self {
            Self::Ema { .. } => update > 1,
            Self::Tail { from } => update > Self::before(from, num_updates) + 1,
        }
    }

    /// Updates before the tail.
    fn before(from: f64, num_updates: u64) -> u64 {
        (from * num_updates as f64) as u64
    }

    pub(super) fn check(self, checks: &mut Checks) {
        let (key, value, fits, expected) = match self {
            Self::Ema { decay } => {
                ("train.average.ema.decay", decay, decay > 0.0 && decay < 1.0, "a number between 0 and 1")
            }
            Self::Tail { from } => {
                ("train.average.tail.from", from, (0.0..1.0).contains(&from), "a number from 0 to below 1")
            }
        };
        checks.require(fits, key, value, expected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The average after each of `values`, as it is kept.
    fn averages(average: Average, values: &[f64]) -> Vec<f64> {
        let mut mean = 0.0;
        let moved = values.iter().zip(1..).map(|(value, update)| {
            mean += average.weight_at(update, values.len() as u64) * (value - mean);
            mean
        });
        moved.collect()
    }

    #[test]
    fn an_ema_is_the_weighted_mean_of_all_updates() {
        let (decay, values) = (0.75, [2.0, -1.0, 4.0, 0.5]);
        for (t, found) in averages(Average::Ema { decay }, &values).into_iter().enumerate() {
            let weight = |i: usize| decay.powf((t - i) as f64);
            let sum: f64 = (0..=t).map(|i| weight(i) * values[i]).sum();
            let expected = sum / (0..=t).map(weight).sum::<f64>();
            // A few roundings of f64.
            assert!((found - expected).abs() < 1e-14, "{found} and {expected}");
        }
    }

    #[test]
    fn a_tail_is_the_mean_of_the_last_part() {
        let values = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
        let tail = Average::Tail { from: 0.75 };
        let found = averages(tail, &values);
        assert_eq!(found, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 96.0]);
        assert_eq!([7, 8].map(|update| tail.has_begun(update, 8)), [false, true]);
        assert_eq!(averages(Average::Tail { from: 0.0 }, &values[..2]), [1.0, 1.5]);
    }
}
