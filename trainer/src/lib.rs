//! Uptraining: the loop, its losses, the optimizer, exact resume.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod adamw;
mod agreement;
mod checkpoint;
mod collective;
mod error;
mod event;
mod gradients;
mod guard;
mod inputs;
mod keep_logits;
mod kept_batch;
mod lead;
mod log;
mod loss;
mod objective;
mod optimizer;
mod pass;
mod plan;
mod projection;
mod resume;
mod routing;
mod run;
mod spikes;
mod stages;
mod telemetry;
mod texts;
mod tokenize;

pub use collective::{Collective, Single, lead_first};
pub use error::TrainError;
pub use event::{Baseline, Event, HeldoutRouting, Outcome, StepRow};
pub use inputs::check_vocabularies;
pub use keep_logits::{KeepEvent, KeepLogits, KeptLogits, keep_logits};
pub use log::{Logger, read_metrics};
pub use plan::{ParameterGroup, RunPlan, plan};
pub use resume::Resume;
pub use run::{MODEL_DIR, uptrain};
pub use spikes::Spike;
pub use stages::{Stage, stages};
pub use telemetry::Telemetry;
pub use tokenize::{TokenizedText, tokenize};
