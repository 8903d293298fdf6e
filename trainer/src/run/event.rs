//! Events of a run, for its caller, and how a run ends.

use super::spikes::Spike;
use crate::log::{Baseline, StepRow};
use retie_data::Progress;
use std::path::{Path, PathBuf};

/// An event of a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// A text is being tokenised; `what` is `train` or `heldout`.
    Tokenizing {
        /// Name of the text.
        what: &'static str,
        /// Bytes and tokens so far.
        progress: Progress,
    },
    /// The run goes on from a checkpoint.
    Resumed {
        /// Steps that are done.
        step: u64,
        /// The checkpoint.
        path: &'a Path,
        /// Allowed changes of the configuration.
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
        /// File of its text.
        path: &'a Path,
    },
    /// A checkpoint is in place.
    Checkpoint {
        /// Steps that it holds.
        step: u64,
        /// Its folder.
        path: &'a Path,
    },
}

/// End of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done; the model is in `model`, a folder of the checkpoint layout.
    Finished {
        /// The uptrained model.
        model: PathBuf,
    },
    /// Stopped on request after a whole step; the checkpoint continues it.
    Interrupted {
        /// Steps that are done.
        step: u64,
        /// Folder to resume from.
        checkpoint: PathBuf,
    },
}
