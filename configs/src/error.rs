//! Errors of this crate.

use crate::ShareError;
use std::path::PathBuf;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read; the message holds its path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The file is not JSON.
    #[error("`{}` is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A key is absent.
    #[error("`{}` has no key `{key}`", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// A key holds something of another type or range.
    #[error("`{}`: key `{key}` is `{found}`, expected {expected}", path.display())]
    BadValue {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What can stand there.
        expected: String,
    },
    /// A known key asks for something that is not implemented.
    #[error("`{}`: `{key}: {found}` is not supported\nhint: {hint}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What stands there.
        found: String,
        /// What is supported.
        hint: String,
    },
    /// One of our own YAML files has problems; the message lists all of them.
    #[error(transparent)]
    Document(#[from] crate::DocumentError),
    /// A configuration cannot be written as YAML.
    #[error("cannot write the configuration as YAML")]
    WriteYaml(#[source] serde_saphyr::ser_error::Error),
    /// A checkpoint says that its start is to be chosen.
    #[error("`recursion.init` is `auto`, expected the init that was chosen")]
    InitOfCheckpoint,
    /// Ranks of a LoRA do not fit the model.
    #[error("the ranks of `recursion.lora` do not fit the model:\n{}", problems.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
    LoraRanks {
        /// Everything that does not fit.
        problems: Vec<String>,
    },
    /// A router does not fit its model.
    #[error("the router cannot be used:\n{}", problems.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
    BadRouter {
        /// Everything that is wrong.
        problems: Vec<String>,
    },
    /// The sharing pattern does not fit.
    #[error(transparent)]
    Share(#[from] ShareError),
}
