//! What `retie insert` and `retie route` have in common: a recursive model is read, and written
//! with further tensors into a folder of its own.

use crate::{
    command::convert::{Bars, command_line, source_model},
    error::Status,
    model, output,
};
use anyhow::Context;
use retie_checkpoint::{ModelSource, Provenance};
use retie_convert::{ConvertError, OutputFiles, Progress, SourceModel};
use serde::Serialize;
use std::{fmt::Display, path::Path};

/// Where a model that gets tensors is written, and how its report is printed.
pub struct Enlargement<'a> {
    /// The model as the command line has it.
    pub spec: &'a str,
    /// What it gets, for messages.
    pub gets: &'static str,
    /// Folder to write.
    pub out: &'a Path,
    /// Print the report as JSON.
    pub json: bool,
}

impl Enlargement<'_> {
    /// Runs `write`, the library's part, on the opened `source`, and prints its report.
    pub fn run<R: Serialize + Display>(
        self,
        source: &ModelSource,
        write: impl FnOnce(SourceModel<'_>, &OutputFiles, &mut dyn FnMut(Progress<'_>)) -> Result<R, ConvertError>,
    ) -> anyhow::Result<Status> {
        let Self { spec, gets, out, json } = self;
        let provenance = Some(Provenance::now(command_line(), Some(model::parent(source)?)));
        let files = OutputFiles { files: source.companions.clone(), provenance, ..OutputFiles::default() };
        let mut bars = Bars::default();
        let report = write(source_model(source), &files, &mut |progress| bars.see(progress))
            .with_context(|| format!("`{spec}` does not get {gets}"))?;
        if json {
            output::json(&report)?;
        } else {
            output::data(&report)?;
        }
        output::wrote(out);
        output::next(&format!("retie uptrain CONFIG.yaml --set student.model={}", output::word(out)));
        Ok(Status::Done)
    }
}
