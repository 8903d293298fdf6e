//! Options of a server.

use crate::queue::QueueLimits;
use retie_config::ExitCalibration;
use retie_data::{ChatTemplate, Tokenizer};
use retie_engine::{EngineOptions, ExitOptions, ExitTrace, Scheduler, SpeculationOptions};
use retie_model::CausalLm;
use std::time::Duration;

/// The model that is served.
#[derive(Debug)]
pub struct ServedModel {
    /// Its name in the API.
    pub name: String,
    /// The model.
    pub model: CausalLm,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub chat_template: Option<ChatTemplate>,
    /// Token that stands for an empty prompt, if there is one.
    pub prefix_token: Option<u32>,
    /// Early exits that requests can ask for; `None` if they run every token through the whole
    /// stack.
    pub exits: Option<ServedExits>,
}

/// Early exits of the served model.
#[derive(Clone, Debug)]
pub struct ServedExits {
    /// Rule and policy.
    pub options: ExitOptions,
    /// Thresholds of the rule by level; without them requests only limit their recursion counts.
    pub calibration: Option<ExitCalibration>,
}

/// Sizes and limits of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeOptions {
    /// Slots, context and token budget of the engine.
    pub engine: EngineOptions,
    /// Tokens that the KV cache has room for, where all slots share it, as on the CPU; `None` for
    /// what all slots of the engine can hold.
    pub kv_tokens: Option<usize>,
    /// Scheduler mode of the engine.
    pub scheduler: Scheduler,
    /// Forced exits, to measure schedulers.
    pub exit_trace: Option<ExitTrace>,
    /// Risk of early exits of requests that name none; `None` for no early exit.
    pub exit_risk: Option<f64>,
    /// Drafting for a request that runs alone, of a model that is served without early exits.
    pub speculation: Option<SpeculationOptions>,
    /// True if requests reuse the first tokens that others have read.
    pub prefix_reuse: bool,
    /// Limits of the sequences that wait for a slot.
    pub queue: QueueLimits,
    /// Most bytes of a request.
    pub body_bytes: usize,
    /// Time after which a request is ended, waiting included.
    pub timeout: Duration,
    /// Key that requests need; `None` serves everyone.
    pub api_key: Option<String>,
}
