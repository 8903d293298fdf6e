//! `.jsonl`: one JSON object per line (<https://jsonlines.org>). Blank lines are skipped.

use super::TaskRows;
use crate::EvalError;
use serde_json::{Map, Value};
use std::path::Path;

pub(super) fn read(path: &Path) -> Result<TaskRows, EvalError> {
    let bytes = fs_err::read(path)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let lines = bytes.split(|b| *b == b'\n').enumerate();
    let rows = lines
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(index, line)| (index + 1, object(line)))
        .collect();
    Ok(TaskRows { unit: "line", rows })
}

fn object(line: &[u8]) -> Result<Map<String, Value>, String> {
    let text = str::from_utf8(line)
        .map_err(|e| format!("byte {} is not UTF-8, expected a JSON object", e.valid_up_to() + 1))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(format!("{} where a JSON object is expected", kind(&other))),
        Err(error) => {
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or(&what);
            Err(format!("not valid JSON at column {}, expected an object: {what}", error.column()))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
