//! Files of a written folder beside the weights and `config.json`.

use crate::{ConvertError, SearchReport, SelectionReport};
use retie_checkpoint::{CheckpointError, Provenance};
use serde::Serialize;
use std::{io::Write, path::Path};

/// Files that are written beside the weights and `config.json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutputFiles {
    /// File name and content, e.g. of `tokenizer.json`.
    pub files: Vec<(String, Vec<u8>)>,
    /// Becomes `retie.json`.
    pub provenance: Option<Provenance>,
    /// The search that chose the conversion, for the report.
    pub search: Option<SearchReport>,
    /// The selection of source layers that chose it, for the report.
    pub selection: Option<SelectionReport>,
}

impl OutputFiles {
    /// Writes the files and the provenance into `dir`.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), ConvertError> {
        for (name, content) in &self.files {
            fs_err::File::create(dir.join(name))?.write_all(content)?;
        }
        if let Some(provenance) = &self.provenance {
            provenance.save(dir)?;
        }
        Ok(())
    }
}

/// Writes `value` as indented JSON with a newline at its end.
///
/// # Errors
/// When the disk fails.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ConvertError> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|source| CheckpointError::BadJson { path: path.to_owned(), source })?;
    text.push('\n');
    Ok(fs_err::File::create(path)?.write_all(text.as_bytes())?)
}
