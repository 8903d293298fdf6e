//! `retie inspect`: what a model is, without running it.

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
    #[command(flatten)]
    json: JsonArgs,
}

impl Inspect {
    pub fn run(self) -> anyhow::Result<Status> {
        let source = model::open(&self.model)?;
        let inspection = Inspection::of(&source)?;
        if self.json.json {
            output::json(&inspection)?;
        } else {
            output::data(&inspection)?;
        }
        Ok(Status::Done)
    }
}
