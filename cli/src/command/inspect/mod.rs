//! `retie inspect`: architecture, sizes and sharing of a model, without running it.

mod facts;
mod render;

use crate::{args::JsonArgs, error::Status, model, output};
use clap::Args;
use facts::Inspection;

/// Show a model's architecture and sizes, and which recursions divide its layers
#[derive(Debug, Args)]
pub struct Inspect {
    /// A Hugging Face folder, a .gguf file, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Show also the operations and the cache of a sequence of so many tokens, by formula
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    cost: Option<u32>,
    #[command(flatten)]
    json: JsonArgs,
}

impl Inspect {
    pub fn run(self) -> anyhow::Result<Status> {
        let source = model::open(&self.model)?;
        let inspection = Inspection::from_source(&source, self.cost.map(|tokens| tokens as usize))?;
        if self.json.json {
            output::json(&inspection)?;
        } else {
            output::data(&inspection)?;
        }
        Ok(Status::Done)
    }
}
