//! Example of a task: contexts, continuations and the right choice.

use serde_json::{Map, Value};

/// Contexts and continuations to score for one row of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The row's `id`; for rows of the Hub the index in the task's file, from 0.
    pub id: Value,
    /// One context for each choice.
    pub contexts: Vec<String>,
    /// One continuation for each choice.
    pub continuations: Vec<String>,
    /// Index of the right choice.
    pub gold: usize,
}

/// True if a row already is an example: `{"id", "contexts": [k], "continuations": [k], "gold"}`.
pub(crate) fn is_ready(row: &Map<String, Value>) -> bool {
    row.contains_key("contexts")
}

/// Reads a row of `task` that already is an example.
pub(crate) fn ready(row: &Map<String, Value>, task: &str, index: usize) -> Result<Example, String> {
    if let Some(other) = row.get("task").filter(|t| t.as_str() != Some(task)) {
        return Err(format!("`task` is {other}, expected `{task}`"));
    }
    let id = match row.get("id") {
        None | Some(Value::Null) => Value::from(index),
        Some(id @ (Value::Number(_) | Value::String(_))) => id.clone(),
        Some(other) => return Err(format!("`id` is {other}, expected a number or a string")),
    };
    let contexts = texts(row, "contexts")?;
    let continuations = texts(row, "continuations")?;
    if contexts.len() != continuations.len() {
        let (a, b) = (contexts.len(), continuations.len());
        return Err(format!("{a} `contexts` and {b} `continuations`, expected as many of both"));
    }
    let gold = row.get("gold").unwrap_or(&Value::Null);
    let gold = gold
        .as_u64()
        .and_then(|g| usize::try_from(g).ok())
        .filter(|g| *g < contexts.len())
        .ok_or_else(|| format!("`gold` is {gold}, expected an index below {}", contexts.len()))?;
    Ok(Example { id, contexts, continuations, gold })
}

fn texts(row: &Map<String, Value>, key: &str) -> Result<Vec<String>, String> {
    let texts: Option<Vec<String>> = row
        .get(key)
        .and_then(Value::as_array)
        .and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
    texts.filter(|t| !t.is_empty()).ok_or_else(|| format!("no `{key}`, expected a list of one or more strings"))
}
