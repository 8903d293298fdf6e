//! Rows of a task file as JSON objects; the file's extension gives its format.

mod jsonl;
mod parquet;

use crate::{EvalError, error::BadRow};
use serde_json::{Map, Value};
use std::path::Path;

/// A row as an object, or the reason why it is not one.
type Row = Result<Map<String, Value>, String>;

/// Rows of one task file.
pub(crate) struct TaskRows {
    /// `line` or `row`.
    pub(crate) unit: &'static str,
    /// Each row with the number of its line or row, from 1.
    pub(crate) rows: Vec<(usize, Row)>,
}

impl TaskRows {
    pub(crate) fn bad(&self, number: usize, message: String) -> BadRow {
        BadRow { unit: self.unit, number, message }
    }
}

/// Reads `path`.
pub(crate) fn read(path: &Path) -> Result<TaskRows, EvalError> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("jsonl") => jsonl::read(path),
        Some("parquet") => parquet::read(path),
        _ => Err(EvalError::UnknownFormat { path: path.to_owned() }),
    }
}
