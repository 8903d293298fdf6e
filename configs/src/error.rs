//! Errors of this crate.

use crate::{KvSharing, ShareError};
use std::path::PathBuf;

/// Errors of reading, checking and writing configurations.
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
        /// Cause, with line and column.
        source: serde_json::Error,
    },
    /// Something else stands in the place of the file.
    #[error("`{}` is {found}\nhint: {}", path.display(), found.hint())]
    Disguised {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: crate::Disguise,
    },
    /// The bytes are not UTF-8.
    #[error("`{}` is not UTF-8: the byte at offset {offset} cannot be decoded", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// First bad byte, counted from 0.
        offset: usize,
    },
    /// A required key is absent.
    #[error("`{}` has no key `{key}`", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// A key holds a value of another type or range.
    #[error("`{}`: key `{key}` is `{found}`, expected {expected}", path.display())]
    BadValue {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Value of the key.
        found: String,
        /// Accepted values.
        expected: String,
    },
    /// A known key asks for something that is not implemented.
    #[error("`{}`: `{key}: {found}` is not supported\nhint: {hint}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Value of the key.
        found: String,
        /// Supported values.
        hint: String,
    },
    /// One of our own YAML files has problems; the message lists all of them.
    #[error(transparent)]
    Document(#[from] crate::DocumentError),
    /// A configuration cannot be written as YAML.
    #[error("cannot write the configuration as YAML")]
    WriteYaml(#[source] serde_saphyr::ser_error::Error),
    /// Keys of a conversion that are impossible or do not go together.
    #[error("{problems}")]
    Convert {
        /// Everything that is wrong.
        problems: crate::KeyProblems,
    },
    /// LoRA ranks do not fit the model.
    #[error("the ranks of `recursion.lora` do not fit the model:\n{}", problems.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
    LoraRanks {
        /// Every problem found.
        problems: Vec<String>,
    },
    /// The model has no recursions that could share keys and values.
    #[error("keys and values cannot be shared as `kv_sharing: {kv_sharing}` says: {problem}\nhint: {hint}")]
    BadKvSharing {
        /// Requested KV sharing.
        kv_sharing: KvSharing,
        /// Reason why it does not fit.
        problem: String,
        /// Remedy.
        hint: &'static str,
    },
    /// A router does not fit its model.
    #[error("the router cannot be used:\n{}", problems.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
    BadRouter {
        /// Every problem found.
        problems: Vec<String>,
    },
    /// Settings of a router that its kind does not have.
    #[error("`{kind}` has no setting {}\nhint: leave it out, or name another kind", keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", "))]
    RouterSettings {
        /// Kind of the router.
        kind: String,
        /// All of them.
        keys: Vec<&'static str>,
    },
    /// A setting of a router has a value that is none of its names, or there is no such kind.
    #[error("`{kind}`: {problem}")]
    RouterSetting {
        /// Kind of the router.
        kind: String,
        /// Found and expected.
        problem: String,
    },
    /// Mechanisms of recursions do not fit the model, or one another.
    #[error("the steps of the recursions cannot be used:\n{}", problems.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
    BadSteps {
        /// Every problem found.
        problems: Vec<String>,
    },
    /// The sharing pattern does not fit the stack.
    #[error(transparent)]
    Share(#[from] ShareError),
}
