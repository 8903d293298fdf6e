//! Errors of this crate.

use crate::StoredType;
use retie_checkpoint::CheckpointError;

/// Why a model cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The model cannot be read, or the export cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file cannot be written; the message holds its path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// There is no such format.
    #[error("unknown format `{found}`, expected one of {}", known.join(", "))]
    UnknownFormat {
        /// Its name.
        found: String,
        /// Every name.
        known: Vec<&'static str>,
    },
    /// The format has no place for a part of the model.
    #[error("`{format}` cannot hold the model:\n{}\nhint: {hint}", lines(reasons))]
    CannotHold {
        /// Name of the format.
        format: &'static str,
        /// Every part that it has no place for.
        reasons: Vec<String>,
        /// A format that has, or a model without that part.
        hint: String,
    },
    /// The format does not store tensors of this type.
    #[error("`{format}` does not store `{found}`, expected one of {}", names(supported))]
    UnsupportedType {
        /// Name of the format.
        format: &'static str,
        /// The type.
        found: StoredType,
        /// Types that it stores.
        supported: &'static [StoredType],
    },
}

fn lines(reasons: &[String]) -> String {
    reasons.iter().map(|reason| format!("  {reason}")).collect::<Vec<_>>().join("\n")
}

fn names(types: &[StoredType]) -> String {
    types.iter().map(|stored| stored.name()).collect::<Vec<_>>().join(", ")
}
