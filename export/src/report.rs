//! What an export wrote.

use crate::StoredType;
use serde::Serialize;
use std::fmt;

/// Weights that a format wrote.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    /// Number of tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Linears with LoRA or DoRA that became one matrix.
    pub merged: usize,
    /// Tensors that took a residual scale.
    pub scaled: usize,
    /// What the format leaves out or computes otherwise, a sentence each.
    pub notes: Vec<String>,
}

/// Result of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// Name of the format.
    pub format: &'static str,
    /// Type of its matrices.
    pub dtype: StoredType,
    /// Number of tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Number of tensors of the model, each shared one once.
    pub model_tensors: usize,
    /// Their bytes.
    pub model_bytes: u64,
    /// Linears with LoRA or DoRA that became one matrix.
    pub merged: usize,
    /// Tensors that took a residual scale.
    pub scaled: usize,
    /// What the format leaves out or computes otherwise, a sentence each.
    pub notes: Vec<String>,
}

impl fmt::Display for ExportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, dtype, tensors, bytes, model_tensors, model_bytes, merged, scaled, notes } = self;
        writeln!(f, "{:<14} {format}, {dtype}", "format")?;
        writeln!(f, "{:<14} {tensors}, {bytes} bytes", "tensors")?;
        writeln!(f, "{:<14} {model_tensors} tensors, {model_bytes} bytes, each shared one once", "of the model")?;
        if *merged > 0 {
            writeln!(f, "{:<14} {merged} linears with their LoRA", "merged")?;
        }
        if *scaled > 0 {
            writeln!(f, "{:<14} {scaled} tensors with a residual scale", "folded")?;
        }
        notes.iter().try_for_each(|note| writeln!(f, "{:<14} {note}", "note"))
    }
}
