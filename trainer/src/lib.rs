//! Uptraining: the loop, its losses, the optimizer, exact resume.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod adamw;
mod checkpoint;
mod error;
mod event;
mod gradients;
mod guard;
mod inputs;
mod keep_logits;
mod loss;
mod metrics;
mod objective;
mod pass;
mod plan;
mod routing;
mod run;
mod texts;
mod tokenize;

pub use error::TrainError;
pub use event::{Baseline, Event, HeldoutRouting, Outcome, StepRow};
pub use keep_logits::{KeepEvent, KeepLogits, KeptLogits, keep_logits};
pub use metrics::read_metrics;
pub use plan::{ParameterGroup, RunPlan, plan};
pub use run::{MODEL_DIR, Resume, uptrain};
pub use tokenize::{TokenizedText, tokenize};
