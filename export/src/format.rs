//! Formats: what every target of an export has.

use crate::{
    ExportError, StoredType, Unrolled, cast::Cast, gguf_file, hf, hf_nanbeige, hf_unrolled, peft, report::Contents,
};
use retie_checkpoint::{Dtype, TensorSource};
use retie_config::ModelConfig;
use std::path::{Path, PathBuf};

/// A target of exports.
pub struct Format {
    /// The name on the command line.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// True if it holds the [`Unrolled`](crate::Unrolled) model.
    pub is_unrolled: bool,
    /// Types that its matrices can be stored in.
    pub types: &'static [StoredType],
    /// Writes the weights and all that they need into a folder.
    pub(crate) write: WriteFormat,
    /// The model in that folder, as retie opens it.
    pub(crate) model: fn(&Path) -> PathBuf,
    /// True if the model needs the adapter beside it.
    pub has_adapter: bool,
}

/// Writer of a format: model, type, folder, progress.
pub(crate) type WriteFormat =
    for<'a> fn(ExportModel<'a>, StoredType, &Path, &mut dyn FnMut(Progress<'_>)) -> Result<Contents, ExportError>;

/// Every format, in the order of the documentation.
pub static FORMATS: &[&Format] =
    &[&hf::FORMAT, &hf_nanbeige::FORMAT, &hf_unrolled::FORMAT, &gguf_file::LOOPED, &gguf_file::UNROLLED, &peft::FORMAT];

/// The model that is exported.
#[derive(Clone, Copy)]
pub struct ExportModel<'a> {
    /// Its name, for formats that state one.
    pub name: &'a str,
    /// Tensors under the names of the checkpoint layout, which have been checked.
    pub tensors: &'a dyn TensorSource,
    /// Their configuration.
    pub config: &'a ModelConfig,
    /// Tokenizer and other companion files, by name.
    pub companions: &'a [(String, Vec<u8>)],
}

/// How far an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Tensors that are written.
    pub done: usize,
    /// Tensors.
    pub total: usize,
    /// Name of the one that was written last.
    pub tensor: &'a str,
}

impl Format {
    /// The tensors that the format holds of `model`, before they are rounded to a stored type.
    ///
    /// # Errors
    /// When a tensor cannot be read, or the format cannot hold the model.
    pub fn exact<'a>(&self, model: ExportModel<'a>) -> Result<Box<dyn TensorSource + 'a>, ExportError> {
        Ok(match (self.has_adapter, self.is_unrolled) {
            (true, _) => Box::new(peft::split(model, Some(Dtype::F32))?),
            (false, true) => Box::new(Unrolled::new(model, Some(Dtype::F32), self.name)?),
            (false, false) => Box::new(Cast::new(model, None)),
        })
    }

    /// The format of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<&'static Self, ExportError> {
        let known = || FORMATS.iter().map(|format| format.name).collect();
        let unknown = || ExportError::UnknownFormat { found: name.to_owned(), known: known() };
        FORMATS.iter().copied().find(|format| format.name == name).ok_or_else(unknown)
    }
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
