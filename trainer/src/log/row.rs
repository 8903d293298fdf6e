//! Rows of a run's log: one a training step, and the baseline before the first.

use crate::objective::Telemetry;
use retie_model::RoutingStatistics;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One row of `metrics.jsonl`: a training step. Losses are means over the step's tokens, in nats
/// per token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// 1 for the first step.
    pub step: u64,
    /// The weighted sum of the terms, which was minimised.
    pub loss: f64,
    /// Next-token cross-entropy, whatever the terms are; absent where none of them needs the
    /// student's logits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cross_entropy: Option<f64>,
    /// The terms of the loss by name, before weighting.
    pub terms: BTreeMap<String, f64>,
    /// Routing of the step's tokens, where there are routers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub routing: Option<RoutingStatistics>,
    /// Routing of the held-out rows, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub heldout_routing: Option<HeldoutRouting>,
    /// Learning rate of the step.
    pub lr: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Steps of the run so far, this one included, whose loss stood out.
    #[serde(default)]
    pub loss_spikes: u64,
    /// Mean cross-entropy on the held-out rows after the step, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub heldout_cross_entropy: Option<f64>,
    /// The same with the average of the weights, where one is kept and has begun.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub averaged_heldout_cross_entropy: Option<f64>,
    /// Cross-entropy after each recursion but the last, where early exits are trained.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub heldout_exits: Vec<f64>,
    /// Hidden states and gradients, where they were measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub telemetry: Option<Telemetry>,
    /// Wall-clock time of the step without the held-out measurement, in seconds.
    pub seconds: f64,
    /// Tokens of the step divided by its seconds.
    pub tokens_per_second: f64,
}

/// Routing of the held-out rows, as in inference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldoutRouting {
    /// With thresholds, or the recursion counts that tokens choose.
    pub inference: RoutingStatistics,
    /// Share of the tokens that have the same recursion count as in training, where training
    /// selects otherwise.
    #[serde(alias = "same_depth", skip_serializing_if = "Option::is_none", default)]
    pub same_recursions: Option<f64>,
}

/// Baseline of a run: mean cross-entropy on the held-out rows, nats
/// per token; the file `eval/step-0.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Student before the first step.
    pub heldout_cross_entropy: f64,
    /// Its early exits, where they are trained.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub heldout_exits: Vec<f64>,
    /// Teacher, if there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub teacher_heldout_cross_entropy: Option<f64>,
}
