//! Length of a run, its batches, checkpoints and measurements.

use super::{Anneal, Average, DataConfig};
use crate::document::Checks;
use serde::{Deserialize, Serialize};

/// Length of the run, batches, checkpoints and measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Length in optimizer steps; exactly one of `steps` and `tokens` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Length in training tokens, rounded up to whole steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Sequences of one micro-batch.
    pub batch_size: usize,
    /// Micro-batches of one optimizer step.
    #[serde(default = "one")]
    pub gradient_accumulation: usize,
    /// Keep only what enters each recursion, and compute the recursion again for its backward pass:
    /// less memory, more time.
    #[serde(default)]
    pub checkpoint_recursions: bool,
    /// Precision of the products of the layers.
    #[serde(default)]
    pub precision: Precision,
    /// Divide the moments of the optimizer among the ranks that train together: less memory on
    /// each, the same steps.
    #[serde(default)]
    pub shard_optimizer: bool,
    /// Average of the weights over the steps, which becomes the finished model; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average: Option<Average>,
    /// Steps over which the capacities of a routed model fall from 1 to their own; 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_warmup_steps: Option<u64>,
    /// Steps over which the part of the tokens that goes through every recursion falls from 1 to 0,
    /// where tokens choose their depth; 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_recursion_warmup_steps: Option<u64>,
    /// Schedules of mechanisms of the student's steps; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anneal: Option<Anneal>,
    /// Amount by which the bias of a recursion count moves after each step, towards even counts; 0
    /// if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_free_balancing: Option<f64>,
    /// Steps between checkpoints; 0 writes one at the end only.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// Newest checkpoints, which are kept; older ones are deleted.
    #[serde(default = "default_keep_last")]
    pub keep_last: usize,
    /// Checkpoints with the lowest held-out cross-entropy, which are kept too.
    #[serde(default)]
    pub keep_best: usize,
    /// Policy for a loss or a gradient that is not a number.
    #[serde(default)]
    pub non_finite: NonFinite,
    /// Policy for loss spikes.
    #[serde(default)]
    pub loss_spike: LossSpike,
    /// Steps between rows with telemetry: norms of hidden states and of the gradients of groups; 0
    /// for none.
    #[serde(default = "one_step")]
    pub telemetry_every: u64,
    /// Steps between measurements on the held-out text; 0 for none.
    #[serde(default)]
    pub eval_every: u64,
    /// Sequences of the held-out text that a measurement takes, spread evenly over it, always the
    /// same ones.
    #[serde(default = "default_eval_sequences")]
    pub eval_sequences: usize,
    /// Seed of the order of the text. Nothing else of a run is drawn from it: the random router and
    /// `full_recursion_warmup_steps` draw from token, position and step alone.
    #[serde(default = "default_seed")]
    pub seed: u64,
}

/// Precision of the products of a model's layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32, as everything else.
    #[default]
    F32,
    /// Factors and results, and in the backward pass their gradients, are bf16; sums are those of
    /// the device's product. The weights themselves, moments, norms, attention's scores, head and
    /// losses stay f32.
    Bf16,
}

/// Policy for a step whose loss or gradient is not a finite number. The step's text is
/// kept in the run's folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NonFinite {
    /// The run ends.
    #[default]
    Stop,
    /// The step changes nothing, and the run goes on.
    Skip {
        /// Steps in a row that may be skipped; one more ends the run.
        #[serde(default = "default_in_a_row")]
        in_a_row: u64,
    },
}

/// Policy for loss spikes, steps whose loss is far above those before. Its text is kept in the
/// run's folder; the step counts as any.
///
/// It stands out where it is more than `deviations` times the spread above the median of the
/// `window` steps before. The spread is 1.4826 times the median of their distances from that
/// median, which is the standard deviation where losses are normal, or a hundredth of the median
/// where that is more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LossSpike {
    /// Nothing.
    Ignore,
    /// It is reported and counted.
    Report {
        /// Steps that it is compared with.
        #[serde(default = "default_window")]
        window: usize,
        /// Spreads above their median.
        #[serde(default = "default_deviations")]
        deviations: f64,
    },
}

impl Default for LossSpike {
    fn default() -> Self {
        Self::Report { window: default_window(), deviations: default_deviations() }
    }
}

fn default_window() -> usize {
    50
}

fn default_deviations() -> f64 {
    6.0
}

fn one_step() -> u64 {
    1
}

fn default_in_a_row() -> u64 {
    5
}

fn one() -> usize {
    1
}

fn default_checkpoint_every() -> u64 {
    100
}

fn default_keep_last() -> usize {
    2
}

fn default_eval_sequences() -> usize {
    16
}

fn default_seed() -> u64 {
    42
}

impl TrainConfig {
    pub(super) fn check(&self, data: &DataConfig, checks: &mut Checks) {
        let both = ["train.steps", "train.tokens"];
        match (self.steps, self.tokens) {
            (Some(_), Some(_)) => {
                checks
                    .problem("train.tokens", "both `train.steps` and `train.tokens` are given, expected one of them")
                    .also(&both);
            }
            (None, None) => {
                checks
                    .problem("train", "the run has no length, expected one of `train.steps` and `train.tokens`")
                    .also(&both);
            }
            _ => {}
        }
        let positive = "a positive integer";
        for (key, value) in [("train.steps", self.steps), ("train.tokens", self.tokens)] {
            checks.require(value != Some(0), key, 0, positive);
        }
        for (key, value) in [
            ("train.batch_size", self.batch_size),
            ("train.gradient_accumulation", self.gradient_accumulation),
            ("train.keep_last", self.keep_last),
            ("train.eval_sequences", self.eval_sequences),
        ] {
            checks.require(value > 0, key, value, positive);
        }
        if let Some(rate) = self.loss_free_balancing {
            let fits = rate > 0.0 && rate <= f64::from(f32::MAX);
            checks.require(fits, "train.loss_free_balancing", rate, "a finite number above 0");
        }
        if let Some(average) = self.average {
            average.check(checks);
        }
        if let NonFinite::Skip { in_a_row } = self.non_finite {
            checks.require(in_a_row > 0, "train.non_finite.skip.in_a_row", in_a_row, positive);
        }
        if let LossSpike::Report { window, deviations } = self.loss_spike {
            let key = "train.loss_spike.report";
            checks.require(window >= 5, format!("{key}.window"), window, "5 steps or more");
            let fits = deviations.is_finite() && deviations > 0.0;
            checks.require(fits, format!("{key}.deviations"), deviations, "a finite number above 0");
        }
        let measured = self.eval_every > 0 && self.checkpoint_every.is_multiple_of(self.eval_every);
        if self.keep_best > 0 && !measured {
            let message = format!(
                "`train.keep_best` is `{}`, but not every checkpoint is measured: `train.checkpoint_every` is `{}` and `train.eval_every` `{}`",
                self.keep_best, self.checkpoint_every, self.eval_every
            );
            checks
                .problem("train.keep_best", message)
                .also(&["train.checkpoint_every", "train.eval_every"])
                .hint("`checkpoint_every` has to be a multiple of `eval_every`");
        }
        if self.eval_every > 0 && !data.has_heldout() {
            let message = format!("`train.eval_every` is `{}`, but there is no held-out text", self.eval_every);
            checks
                .problem("train.eval_every", message)
                .also(&["data.heldout", "data.heldout_fraction"])
                .hint("give files in `data.heldout` or a `data.heldout_fraction`, or leave `train.eval_every` out");
        }
    }
}
