//! Errors of this crate.

use std::path::PathBuf;

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be read or written; the message holds its path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// `config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] retie_config::ConfigError),
    /// There is no tensor of that name.
    #[error("`{}` has no tensor `{tensor}`", path.display())]
    NoTensor {
        /// File or folder that was searched.
        path: PathBuf,
        /// The name.
        tensor: String,
    },
}
