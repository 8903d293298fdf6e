//! Uptraining: the loop, its losses, the optimizer, exact resume.
//!
//! | module | holds |
//! |---|---|
//! | `run` | a run: setup, steps, measurements, checkpoints, resume, stages, the dry run |
//! | `objective` | forward and backward pass of a micro-batch, sums of a step |
//! | `loss` | one file a loss |
//! | `io` | models, texts and cached logits that runs read |
//! | `log` | one file a logger |
//! | `optim` | the update rule, clipping, state on one rank or divided |
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod error;
mod io;
mod job;
mod log;
mod loss;
mod objective;
mod optim;
mod pass;
mod run;

pub use error::TrainError;
pub use io::inputs::END_OF_TEXT;
pub use io::{KeepEvent, KeepLogits, KeptLogits, TokenizedText, document_ends, keep_logits, tokenize};
pub use job::Job;
pub use log::{Baseline, HeldoutRouting, Logger, StepRow, read_metrics};
pub use objective::Telemetry;
pub use run::{
    Event, GroupEstimate, MODEL_DIR, Outcome, Resume, RunEstimate, RunMemory, RunModels, RunState, Spike, Stage,
    StepProbe, StepSeconds, estimate, kernels, measure_step, run_memory, stages, step_operations, uptrain,
};
