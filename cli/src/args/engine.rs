//! Sizes of the engine, for the commands that serve a model.

use clap::Args;
use retie_config::ModelConfig;
use retie_engine::EngineOptions;

/// Longest sequence of a model with a longer context, unless `--context` says otherwise: the KV
/// cache has room for one in every slot.
const DEFAULT_CONTEXT: usize = 2048;

/// `--num-slots`, `--context` and `--max-step-tokens`.
#[derive(Clone, Copy, Debug, Args)]
pub struct EngineArgs {
    /// Sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub num_slots: usize,
    /// Most tokens of a sequence, prompt and new ones; default: the model's context, at most 2048
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Most tokens that one pass reads; longer prompts are read in chunks
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_step_tokens: usize,
}

impl EngineArgs {
    /// Options of an engine for a model.
    pub fn options(self, config: &ModelConfig) -> EngineOptions {
        EngineOptions {
            num_slots: self.num_slots,
            context: self.context.unwrap_or(DEFAULT_CONTEXT.min(config.max_position_embeddings)),
            max_step_tokens: self.max_step_tokens,
        }
    }
}
