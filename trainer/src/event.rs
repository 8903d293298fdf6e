//! What a run tells its caller while it goes on.

pub use crate::telemetry::Telemetry;

use crate::spikes::Spike;
use retie_data::Progress;
use retie_model::RoutingStatistics;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// One row of `metrics.jsonl`: a training step. Losses are means over the step's tokens, in nats per token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// 1 for the first step.
    pub step: u64,
    /// The weighted sum of the terms, which was minimised.
    pub loss: f64,
    /// Next-token cross-entropy, whatever the terms are; absent where none of them needs the student's logits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cross_entropy: Option<f64>,
    /// The terms of the loss by name, before weighting.
    pub terms: BTreeMap<String, f64>,
    /// What the routers did with the step's tokens, if there are any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub routing: Option<RoutingStatistics>,
    /// What they do with the held-out rows, where that was measured.
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
    /// The same after each recursion but the last, where early exits are trained.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub heldout_exits: Vec<f64>,
    /// What went on within the model, where it was looked at.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub telemetry: Option<Telemetry>,
    /// Wall-clock time of the step without the held-out measurement, in seconds.
    pub seconds: f64,
    /// Tokens of the step divided by its seconds.
    pub tokens_per_second: f64,
}

/// What routers do with the held-out rows, as in inference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldoutRouting {
    /// With thresholds, or the depths that tokens choose.
    pub inference: RoutingStatistics,
    /// Share of the tokens that have the same depth as in training, where that chooses otherwise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub same_depth: Option<f64>,
}

/// What a run starts from and what it may hope for: mean cross-entropy on the held-out rows, nats per token; the file
/// `eval/step-0.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Of the student before the first step.
    pub heldout_cross_entropy: f64,
    /// Of its early exits, where they are trained.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub heldout_exits: Vec<f64>,
    /// Of the teacher, if there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub teacher_heldout_cross_entropy: Option<f64>,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A text is being tokenised; `what` is `train` or `heldout`.
    Tokenizing {
        /// Which text.
        what: &'static str,
        /// How far.
        progress: Progress,
    },
    /// The run goes on from a checkpoint.
    Resumed {
        /// Steps that are done.
        step: u64,
        /// The checkpoint.
        path: &'a Path,
        /// What the configuration now says otherwise, as was allowed.
        changes: &'a [String],
    },
    /// The held-out loss before the first step.
    Baseline(&'a Baseline),
    /// A step is done and its row is written.
    Step {
        /// The row.
        row: &'a StepRow,
        /// Steps of the whole run.
        num_steps: u64,
    },
    /// The loss of a step stands out from those before; the step counts as any.
    Spike {
        /// The step.
        step: u64,
        /// Its loss.
        loss: f64,
        /// By how much, and where its text is.
        spike: &'a Spike,
    },
    /// A step was left out: its loss or gradient was not a finite number.
    Skipped {
        /// The step.
        step: u64,
        /// Its loss.
        loss: f64,
        /// The norm of its gradient.
        grad_norm: f64,
        /// Where its text is.
        path: &'a Path,
    },
    /// A checkpoint is in place.
    Checkpoint {
        /// Steps that it holds.
        step: u64,
        /// Where it is.
        path: &'a Path,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done; the model is in `model`, a folder of the checkpoint layout.
    Finished {
        /// The uptrained model.
        model: std::path::PathBuf,
    },
    /// Stopped on request after a whole step; the checkpoint continues it.
    Interrupted {
        /// Steps that are done.
        step: u64,
        /// Where it can be resumed from.
        checkpoint: std::path::PathBuf,
    },
}
