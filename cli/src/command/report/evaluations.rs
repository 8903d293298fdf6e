//! Files of `retie eval --json` as rows of one table.

use anyhow::{Context, ensure};
use retie_report::{Label, Table, number::grouped};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Evaluations by name, in the order of the table.
pub struct Evaluations(Vec<(String, Value)>);

/// Metrics in the table, each with its number of decimal places.
const METRICS: &[(&str, usize)] = &[
    ("acc", 4),
    ("acc_norm", 4),
    ("exact_match", 4),
    ("exact_match_longer", 4),
    ("exact_match_edge", 4),
    ("exact_match_longer_edge", 4),
    ("perplexity", 2),
    ("token_nll", 4),
    ("token_perplexity", 2),
    ("word_perplexity", 2),
    ("byte_perplexity", 4),
    ("forward_kl", 4),
];

impl Evaluations {
    /// Reads the files, which are given by name and path.
    ///
    /// # Errors
    /// A file cannot be read, is not JSON, or has no object `results`.
    pub fn read(files: &[(String, PathBuf)]) -> anyhow::Result<Self> {
        let read = |(name, path): &(String, PathBuf)| {
            let text = fs_err::read_to_string(path)?;
            let value: Value =
                serde_json::from_str(&text).with_context(|| format!("`{}` is not JSON", path.display()))?;
            ensure!(
                value.get("results").is_some_and(Value::is_object),
                "`{}` has no object `results`, expected a file of `retie eval --json`",
                path.display()
            );
            Ok((name.clone(), value))
        };
        Ok(Self(files.iter().map(read).collect::<anyhow::Result<_>>()?))
    }

    /// The evaluations by name.
    pub fn all(&self) -> &[(String, Value)] {
        &self.0
    }

    /// Table with one row per evaluation; `None` without evaluations.
    pub fn table(&self) -> Option<Table> {
        if self.0.is_empty() {
            return None;
        }
        let columns = self.columns();
        let counted = self.0.iter().any(|(_, value)| value.pointer("/parameters/total").is_some());
        let mut header = vec!["model".to_owned()];
        header.extend(counted.then(|| "parameters".to_owned()));
        header.extend(columns.iter().map(|(task, metric, _)| heading(task, metric)));
        let rows = self.0.iter().map(|(name, value)| {
            let mut row = vec![Label::from(name.as_str())];
            if counted {
                let total = value.pointer("/parameters/total").and_then(Value::as_u64);
                row.push(total.map_or_else(|| "–".into(), |total| grouped(total).into()));
            }
            row.extend(
                columns.iter().map(|(task, metric, digits)| cell(&value["results"][task], metric, *digits).into()),
            );
            row
        });
        Some(Table { title: "Evaluation".to_owned(), header, rows: rows.collect(), note: self.note() })
    }

    /// Task, metric and decimal places of every column, in the order of first appearance.
    fn columns(&self) -> Vec<(String, &'static str, usize)> {
        let mut columns: Vec<(String, &'static str, usize)> = Vec::new();
        for (task, result) in self.0.iter().filter_map(|(_, value)| value["results"].as_object()).flatten() {
            for (metric, digits) in METRICS.iter().filter(|(metric, _)| number(result, metric).is_some()) {
                if !columns.iter().any(|(t, m, _)| t == task && m == metric) {
                    columns.push((task.clone(), *metric, *digits));
                }
            }
        }
        columns
    }

    /// Note with the perplexity's text and windows, if they are the same for all rows.
    fn note(&self) -> Option<String> {
        let text = |value: &Value| {
            let p = value.pointer("/results/perplexity")?;
            let (window, stride) = (p["window"].as_u64()?, p["stride"].as_u64()?);
            let tokens = grouped(p["tokens"].as_u64()?);
            Some(format!("perplexity: {}, {tokens} tokens, window {window}, stride {stride}", p["text"].as_str()?))
        };
        let notes: Vec<_> = self.0.iter().filter_map(|(_, value)| text(value)).collect();
        let first = notes.first()?;
        notes.iter().all(|note| note == first).then(|| format!("{first}. nll: nats per token."))
    }

    /// Loss on the text in nats per token, and number of parameters, of each evaluation with both.
    pub fn losses(&self) -> Vec<(f64, u64)> {
        let loss_and_size = |value: &Value| {
            let loss = value.pointer("/results/perplexity/token_nll")?.as_f64()?;
            Some((loss, value.pointer("/parameters/total")?.as_u64()?))
        };
        self.0.iter().filter_map(|(_, value)| loss_and_size(value)).collect()
    }

    /// JSON object of the evaluations by name.
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.iter().cloned().collect::<Map<_, _>>())
    }
}

fn heading(task: &str, metric: &str) -> String {
    match (task, metric) {
        ("perplexity", "token_nll") => "nll".to_owned(),
        ("perplexity", "forward_kl") => "kl".to_owned(),
        ("perplexity", metric) => metric.replace("token_perplexity", "perplexity").replace('_', " "),
        (task, "perplexity") => format!("{task} ppl"),
        (task, "acc_norm") => format!("{task} acc_norm"),
        (task, metric) => format!("{task} {metric}"),
    }
}

/// A metric of a task; those beside a teacher are in an object of their own.
pub fn number(result: &Value, metric: &str) -> Option<f64> {
    result.get(metric).or_else(|| result.get("teacher")?.get(metric))?.as_f64()
}

fn cell(result: &Value, metric: &str, digits: usize) -> String {
    let Some(number) = number(result, metric) else { return "–".to_owned() };
    let stderr = result[format!("{metric}_stderr")].as_f64();
    let stderr = stderr.map_or_else(String::new, |stderr| format!(" ± {stderr:.digits$}"));
    format!("{number:.digits$}{stderr}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_have_every_metric_that_any_of_them_has() {
        let perplexity = json!({ "token_nll": 1.5, "token_perplexity": 4.4817, "text": "t", "window": 8, "stride": 8, "tokens": 1234 });
        let a = json!({ "parameters": {"total": 1000}, "results": { "piqa": {"acc": 0.5, "acc_stderr": 0.01}, "perplexity": perplexity } });
        let b = json!({ "results": { "perplexity": perplexity } });
        let table = Evaluations(vec![("base".into(), a), ("new".into(), b)]).table().unwrap();
        assert_eq!(table.header, ["model", "parameters", "piqa acc", "nll", "perplexity"]);
        assert_eq!(table.rows[0], ["base", "1,000", "0.5000 ± 0.0100", "1.5000", "4.48"]);
        assert_eq!(table.rows[1], ["new", "–", "–", "1.5000", "4.48"]);
        assert_eq!(table.note.unwrap(), "perplexity: t, 1,234 tokens, window 8, stride 8. nll: nats per token.");
    }
}
