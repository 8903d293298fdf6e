//! The export: a folder is written beside its place, compared by the caller, and published.

use crate::{
    Adapted, ExportError, ExportReport, StoredType,
    format::{ExportModel, Format, Progress},
    report::Contents,
};
use retie_checkpoint::{CheckpointError, Provenance, Staging, TensorSource};
use serde::Serialize;
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// Parameters of an export.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Type of the matrices.
    pub dtype: StoredType,
    /// Becomes `retie.json`.
    pub provenance: Option<Provenance>,
}

/// An export that is written beside its place. It is removed if it is dropped.
#[derive(Debug)]
pub struct Written {
    staging: Staging,
    format: &'static Format,
    report: ExportReport,
}

impl Written {
    /// The written model, as [`retie_checkpoint::ModelSource::open`] opens it.
    #[must_use]
    pub fn model_path(&self) -> PathBuf {
        (self.format.model)(self.staging.path())
    }

    /// The model that the written adapter makes of `base`, the tensors of the written model; `None`
    /// where the format has none.
    ///
    /// # Errors
    /// When the adapter cannot be read.
    pub fn adapted<'a>(&self, base: &'a dyn TensorSource) -> Result<Option<Adapted<'a>>, ExportError> {
        self.format.has_adapter.then(|| Adapted::open(base, self.staging.path())).transpose()
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> &'static Format {
        self.format
    }

    /// What was written.
    #[must_use]
    pub fn report(&self) -> &ExportReport {
        &self.report
    }

    /// Moves it to its place.
    ///
    /// # Errors
    /// When the place was occupied meanwhile, or the disk fails.
    pub fn publish(self) -> Result<ExportReport, ExportError> {
        self.staging.publish()?;
        Ok(self.report)
    }
}

/// Writes `model` in `format` for the folder `out`.
///
/// # Errors
/// When the format has no place for a part of the model (all of them are listed) or does not store
/// the type, `out` holds something, or a file cannot be read or written.
pub fn export(
    model: ExportModel<'_>,
    format: &'static Format,
    options: &ExportOptions,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Written, ExportError> {
    let ExportOptions { dtype, provenance } = options;
    if !format.types.contains(dtype) {
        let (format, supported) = (format.name, format.types);
        return Err(ExportError::UnsupportedType { format, found: *dtype, supported });
    }
    let staging = Staging::new(out)?;
    let contents = (format.write)(model, *dtype, staging.path(), progress)?;
    if let Some(provenance) = provenance {
        provenance.save(staging.path())?;
    }
    let report = report(model, format, *dtype, contents);
    tracing::info!(format = format.name, tensors = report.tensors, bytes = report.bytes, "written");
    Ok(Written { staging, format, report })
}

fn report(model: ExportModel<'_>, format: &Format, dtype: StoredType, contents: Contents) -> ExportReport {
    let Contents { tensors, bytes, merged, scaled, notes } = contents;
    let names = model.config.tensors().into_iter().map(|spec| spec.name());
    let stored: Vec<usize> = names.filter_map(|name| Some(model.tensors.info(&name)?.num_bytes())).collect();
    ExportReport {
        format: format.name,
        dtype,
        tensors,
        bytes,
        model_tensors: stored.len(),
        model_bytes: stored.iter().map(|bytes| *bytes as u64).sum(),
        merged,
        scaled,
        notes,
    }
}

/// Writes the companion files of `model` into `dir`.
pub(crate) fn write_companions(model: ExportModel<'_>, dir: &Path) -> Result<(), ExportError> {
    for (name, content) in model.companions {
        fs_err::File::create(dir.join(name))?.write_all(content)?;
    }
    Ok(())
}

/// Writes `value` as indented JSON with a newline at its end.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ExportError> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|source| CheckpointError::BadJson { path: path.to_owned(), source })?;
    text.push('\n');
    Ok(fs_err::File::create(path)?.write_all(text.as_bytes())?)
}

/// Bytes of every tensor of a source.
pub(crate) fn num_bytes(tensors: &dyn TensorSource) -> u64 {
    tensors.names().into_iter().filter_map(|name| Some(tensors.info(name)?.num_bytes() as u64)).sum()
}
