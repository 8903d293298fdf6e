//! `retie route`: routers for a model that is recursive already.

mod flags;
mod renamed;

pub use renamed::renamed;

use crate::{args::JsonArgs, command::enlarge::Enlargement, error::Status, model};
use clap::Args;
use flags::RouteFlags;
use retie_convert::add_router;
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
        let enlargement = Enlargement { spec: &spec, gets: "a router", out: &out, json: json.json };
        enlargement.run(&source, |source, files, progress| add_router(source, &options, files, &out, progress))
    }
}
