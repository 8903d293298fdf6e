//! `retie route`: routers for a model that is recursive already.

mod flags;
mod renamed;

pub use renamed::renamed;

use crate::{
    args::JsonArgs,
    command::convert::{Bars, command_line, source_model},
    error::Status,
    model, output,
};
use anyhow::Context;
use clap::Args;
use flags::RouteFlags;
use retie_checkpoint::Provenance;
use retie_convert::OutputFiles;
use std::path::PathBuf;

/// Give a recursive model routers that choose how many recursions each token goes through; nothing
/// else changes
#[derive(Debug, Args)]
pub struct Route {
    /// A recursive model: the folder that `retie convert` or `retie uptrain` wrote
    #[arg(value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    flags: RouteFlags,
    /// Folder to write; it may not hold anything yet
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    json: JsonArgs,
}

impl Route {
    pub fn run(self) -> anyhow::Result<Status> {
        let Self { model: spec, flags, output: out, json } = self;
        let source = model::open(&spec)?;
        let num_recursions = source.config.recursion.as_ref().map_or(1, |recursion| recursion.num_recursions);
        let options = flags.options(num_recursions)?;
        let provenance = Provenance::now(command_line(), Some(model::parent(&source)?));
        let files =
            OutputFiles { files: source.companions.clone(), provenance: Some(provenance), ..OutputFiles::default() };
        let mut bars = Bars::default();
        let mut see = |progress: retie_convert::Progress<'_>| bars.see(progress);
        let report = retie_convert::add_router(source_model(&source), &options, &files, &out, &mut see)
            .with_context(|| format!("`{spec}` does not get a router"))?;
        if json.json {
            output::json(&report)?;
        } else {
            output::data(&report)?;
        }
        output::wrote(&out);
        output::next(&format!("retie uptrain CONFIG.yaml --set student.model={}", output::word(&out)));
        Ok(Status::Done)
    }
}
