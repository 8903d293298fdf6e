//! Rows of a task's file as JSON objects; the extension says the format.

mod jsonl;
mod parquet;

use crate::{EvalError, error::BadRow};
use serde_json::{Map, Value};
use std::path::Path;

/// A row as an object, or why it is none.
type Row = Result<Map<String, Value>, String>;

/// Rows of one file.
pub(crate) struct Rows {
    /// `line` or `row`.
    pub(crate) unit: &'static str,
    /// Each row with the number of its line or row, from 1.
    pub(crate) rows: Vec<(usize, Row)>,
}

impl Rows {
    pub(crate) fn bad(&self, number: usize, message: String) -> BadRow {
        BadRow { unit: self.unit, number, message }
    }
}

/// Reads `path`.
pub(crate) fn read(path: &Path) -> Result<Rows, EvalError> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("jsonl") => jsonl::read(path),
        Some("parquet") => parquet::read(path),
        _ => Err(EvalError::UnknownFormat { path: path.to_owned() }),
    }
}
