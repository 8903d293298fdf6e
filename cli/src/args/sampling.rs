//! Sampling parameters on the command line.

use anyhow::anyhow;
use clap::Args;
use retie_engine::{EngineError, Sampling};

/// How tokens are chosen.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 takes the most probable token; the higher, the more even the draw
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the K most probable tokens; 0 draws from all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from the fewest tokens whose probabilities reach this sum
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Draw from tokens with at least this part of the largest probability
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Make tokens of prompt and text less likely: divide their logits, or multiply negative ones
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Subtract this from the logits of tokens that the text has
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtract this from the logit of a token for each time that the text has it
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    /// The sampling parameters.
    ///
    /// # Errors
    /// A value is out of range; the message names its option.
    pub fn checked(&self) -> anyhow::Result<Sampling> {
        let Self { temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed } =
            *self;
        let sampling = Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            seed,
        };
        sampling.check().map_err(|error| match error {
            EngineError::OutOfRange { name, found, expected } => {
                anyhow!("`--{}` is `{found}`, expected {expected}", name.replace('_', "-"))
            }
            error => error.into(),
        })?;
        Ok(sampling)
    }
}
