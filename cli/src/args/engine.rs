//! Sizes of the engine, for the commands that serve a model.

use clap::Args;
use retie_config::{ByteSize, ModelConfig};
use retie_engine::EngineOptions;

/// Longest sequence of a model with a longer context, unless `--context` says otherwise: the KV
/// cache has room for one in every slot, unless its size is given.
const DEFAULT_CONTEXT: usize = 2048;

/// `--num-slots`, `--context`, `--max-step-tokens`, and the size of the KV cache.
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
    /// Tokens that the KV cache has room for, at least `--context`; sequences share it. Default:
    /// `--num-slots` times `--context`. On the CPU
    #[arg(long, value_name = "N")]
    kv_tokens: Option<usize>,
    /// Memory of the KV cache, e.g. 2GiB, in place of `--kv-tokens`
    #[arg(long, value_name = "SIZE", conflicts_with = "kv_tokens")]
    kv_memory: Option<ByteSize>,
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

    /// Tokens that the KV cache has room for, if its size is given.
    pub fn kv_tokens(self, config: &ModelConfig) -> Option<usize> {
        let of_memory =
            |size: ByteSize| (size.bytes() as f64 / bytes_of_token(config, self.options(config).context)) as usize;
        self.kv_tokens.or(self.kv_memory.map(of_memory))
    }

    /// Bytes of the KV cache.
    pub fn kv_bytes(self, config: &ModelConfig) -> u64 {
        let EngineOptions { num_slots, context, .. } = self.options(config);
        let tokens = self.kv_tokens(config).unwrap_or(num_slots.saturating_mul(context));
        (tokens as f64 * bytes_of_token(config, context)) as u64
    }
}

/// Bytes of a token in the KV cache, in the mean over a sequence of `context` tokens.
fn bytes_of_token(config: &ModelConfig, context: usize) -> f64 {
    config.cost(context, None).cache_bytes / context as f64
}
