//! `retie plot`: curves of runs in one file, SVG or PNG.

use crate::{
    command::report::{Curves, NamedRun, Runs},
    error::Status,
    output, png,
};
use anyhow::{Context, bail};
use clap::Args;
use retie_report::{charts_to_svg, with_light_colours};
use std::path::PathBuf;

/// Draw losses, held-out losses with early exits and teacher, and telemetry of runs into one file
#[derive(Debug, Args)]
pub struct Plot {
    /// Folders of `retie uptrain` runs; `NAME=RUN_DIR` gives one a name
    #[arg(value_name = "RUN_DIR", required = true)]
    runs: Vec<NamedRun>,
    /// Kinds of curves, drawn one below the other
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Curves::ALL)]
    curves: Vec<Curves>,
    /// Heading of the first chart
    #[arg(long)]
    title: Option<String>,
    /// The file to write, .svg or .png; colours of an SVG follow the screen, light or dark
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl Plot {
    pub fn run(self) -> anyhow::Result<Status> {
        let as_png = match self.output.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => false,
            Some("png") => true,
            _ => bail!("`--output` is `{}`, expected a name that ends in .svg or .png", self.output.display()),
        };
        let mut charts = Runs::read(&self.runs)?.charts(&self.curves);
        if let (Some(title), Some(first)) = (self.title, charts.first_mut()) {
            first.title = title;
        }
        let svg = charts_to_svg(&charts)?.context(
            "no run has a point of these curves\nhint: held-out losses need `data.heldout` and `train.eval_every`, telemetry needs `train.telemetry_every`",
        )?;
        let bytes = if as_png { png::render_svg(&with_light_colours(&svg))? } else { svg.into_bytes() };
        fs_err::write(&self.output, bytes)?;
        output::wrote(&self.output);
        Ok(Status::Done)
    }
}
