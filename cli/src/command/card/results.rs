//! Results of evaluations in a card: rows of a table, and those of the model as the hub's metadata.

use crate::command::report::{Evaluations, named_files, number};
use serde_json::{Value, json};

/// Evaluations of the model, the first, and of others.
pub struct Results(Evaluations);

impl Results {
    /// Reads `NAME=FILE` arguments.
    ///
    /// # Errors
    /// A file is not one of `retie eval --json`.
    pub fn read(given: &[String]) -> anyhow::Result<Self> {
        Ok(Self(Evaluations::read(&named_files("--eval", given)?)?))
    }

    /// Table in Markdown; `None` without evaluations.
    pub fn table(&self) -> Option<String> {
        let table = self.0.table()?;
        let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
        let mut lines = vec![line(table.header.clone()), line(vec!["---".to_owned(); table.header.len()])];
        lines.extend(table.rows.iter().map(|row| line(row.iter().map(ToString::to_string).collect())));
        lines.extend(table.note.map(|note| format!("\n{note}")));
        Some(lines.join("\n"))
    }

    /// The key `model-index` of the metadata, with the first evaluation.
    pub fn metadata(&self, model: &str) -> String {
        let Some((_, value)) = self.0.all().first() else { return String::new() };
        let results = value["results"].as_object().into_iter().flatten();
        let results: Vec<Value> = results.filter_map(|(task, result)| entry(task, result)).collect();
        if results.is_empty() {
            return String::new();
        }
        // JSON is YAML.
        format!("model-index: {}\n", json!([{ "name": model, "results": results }]))
    }
}

/// A task's result as the hub has it.
fn entry(task: &str, result: &Value) -> Option<Value> {
    let metrics: Vec<Value> = ["acc", "acc_norm", "token_nll", "forward_kl"]
        .iter()
        .filter_map(|name| Some(json!({ "type": name, "value": number(result, name)? })))
        .collect();
    let data = result["text"].as_str().unwrap_or(task);
    let data = data.rsplit('/').next().unwrap_or(data);
    (!metrics.is_empty()).then(|| {
        json!({ "task": { "type": "text-generation" }, "dataset": { "name": data, "type": data }, "metrics": metrics })
    })
}
