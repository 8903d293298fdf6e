//! `retie plot`: held-out losses of runs as curves in one SVG file.

use crate::{
    command::report::{NamedRun, Runs},
    error::Status,
    output,
};
use anyhow::Context;
use clap::Args;
use retie_eval::render_svg;
use std::path::PathBuf;

/// Draw the held-out losses of runs, and of their teacher, into one SVG file
#[derive(Debug, Args)]
pub struct Plot {
    /// Folders of `retie uptrain` runs; `NAME=RUN_DIR` gives one a name
    #[arg(value_name = "RUN_DIR", required = true)]
    runs: Vec<NamedRun>,
    /// Heading
    #[arg(long)]
    title: Option<String>,
    /// The SVG file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl Plot {
    pub fn run(self) -> anyhow::Result<Status> {
        let mut chart = Runs::read(&self.runs)?.heldout();
        if let Some(title) = self.title {
            chart.title = title;
        }
        let svg = render_svg(&chart)?.context(
            "no run has a held-out loss to draw\nhint: `data.heldout` names held-out text, `train.eval_every` measures it",
        )?;
        fs_err::write(&self.output, svg)?;
        output::wrote(&self.output);
        Ok(Status::Done)
    }
}
