//! Results as JSON, as a table, and as one JSON line per example.

use crate::{Perplexity, RouterReport, TaskResult};
use retie_tasks::{Group, TaskScore};
use serde_json::{Map, Value, json};
use std::{fmt, io};

/// All results of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalReport {
    /// The model, as it was named.
    pub model: String,
    /// Upper limit on examples of a task and windows of the text; `None` without a limit.
    pub limit: Option<usize>,
    /// Results of the tasks, in the requested order.
    pub tasks: Vec<TaskResult>,
    /// Scores of generated tasks, in the requested order.
    pub generated: Vec<TaskScore>,
    /// Perplexity of the text, if one was given.
    pub perplexity: Option<Perplexity>,
    /// Report on the model's routers, if it was requested.
    pub router: Option<RouterReport>,
}

impl EvalReport {
    /// Report on `model` without results.
    #[must_use]
    pub fn of(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            limit: None,
            tasks: Vec::new(),
            generated: Vec::new(),
            perplexity: None,
            router: None,
        }
    }

    /// JSON with the keys `model`, `limit`, `results`, `generated` and `router`.
    ///
    /// `results` has a key for each task, with `examples` and, for each metric, its value and
    /// `{metric}_stderr`; and a key `perplexity` with `token_nll` and the other values of
    /// [`Perplexity`]. `generated` has the matrices of generated tasks.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut results = Map::new();
        for result in &self.tasks {
            let mut numbers = Map::new();
            numbers.insert("examples".into(), result.samples.len().into());
            for (metric, estimate) in &result.metrics {
                numbers.insert(metric.name().into(), estimate.value.into());
                if let Some(stderr) = estimate.stderr {
                    numbers.insert(format!("{metric}_stderr"), stderr.into());
                }
            }
            results.insert(result.task.into(), numbers.into());
        }
        for score in &self.generated {
            results.insert(score.task.clone(), exact_matches(score).into());
        }
        if let Some(perplexity) = &self.perplexity {
            results.insert("perplexity".into(), json!(perplexity));
        }
        let mut report = json!({ "model": self.model, "limit": self.limit, "results": results });
        if !self.generated.is_empty() {
            report["generated"] = json!(self.generated);
        }
        if let Some(router) = &self.router {
            report["router"] = json!(router);
        }
        report
    }

    /// Writes `{"task", "id", "gold", "loglikelihoods": [..]}`, a line for each example.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn write_samples(&self, out: &mut impl io::Write) -> io::Result<()> {
        for sample in self.tasks.iter().flat_map(|task| &task.samples) {
            serde_json::to_writer(&mut *out, sample)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Rows of the table: task, examples, metric, value, standard error.
    fn rows(&self) -> Vec<[String; 5]> {
        let mut rows = Vec::new();
        for result in &self.tasks {
            let mut name = result.task.to_owned();
            let mut examples = result.samples.len().to_string();
            for (metric, estimate) in &result.metrics {
                let stderr = estimate.stderr.map_or_else(String::new, |e| format!("{e:.4}"));
                let value = format!("{:.4}", estimate.value);
                rows.push([
                    std::mem::take(&mut name),
                    std::mem::take(&mut examples),
                    metric.name().into(),
                    value,
                    stderr,
                ]);
            }
        }
        if let Some(p) = &self.perplexity {
            let mut name = "perplexity".to_owned();
            let mut tokens = format!("{} tokens", p.tokens);
            let teacher_metrics =
                p.teacher.map(|teacher| [("forward_kl", teacher.forward_kl), ("same_top", teacher.same_top)]);
            let model_metrics = [
                ("token_nll", p.token_nll),
                ("token_perplexity", p.token_perplexity),
                ("word_perplexity", p.word_perplexity),
                ("byte_perplexity", p.byte_perplexity),
            ];
            for (metric, value) in model_metrics.into_iter().chain(teacher_metrics.into_iter().flatten()) {
                let (name, tokens) = (std::mem::take(&mut name), std::mem::take(&mut tokens));
                rows.push([name, tokens, metric.into(), format!("{value:.4}"), String::new()]);
            }
        }
        rows
    }
}

/// Exact matches with the model's own recursions: in distribution as `exact_match`, of other groups
/// as `exact_match_{group}`.
fn exact_matches(score: &TaskScore) -> Map<String, Value> {
    let mut numbers = Map::new();
    let groups = [
        (Group::InDistribution, ""),
        (Group::Longer, "_longer"),
        (Group::Edge, "_edge"),
        (Group::LongerEdge, "_longer_edge"),
    ];
    for (group, suffix) in groups {
        let Some((share, stderr, examples)) = score.exact_match(group, score.own_recursions) else { continue };
        numbers.insert(format!("examples{suffix}"), examples.into());
        numbers.insert(format!("exact_match{suffix}"), share.into());
        numbers.insert(format!("exact_match{suffix}_stderr"), stderr.into());
    }
    numbers
}

impl fmt::Display for EvalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.generated.iter().try_for_each(|score| writeln!(f, "{score}"))?;
        if self.tasks.is_empty() && self.perplexity.is_none() {
            return Ok(());
        }
        let mut rows = vec![["task", "examples", "metric", "value", "stderr"].map(str::to_owned)];
        rows.extend(self.rows());
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 5] = std::array::from_fn(width);
        for [task, examples, metric, value, stderr] in &rows {
            let [a, b, c, d, e] = widths;
            let line = format!("{task:<a$}  {examples:>b$}  {metric:<c$}  {value:>d$}  {stderr:>e$}");
            writeln!(f, "{}", line.trim_end())?;
        }
        if let Some(router) = &self.router {
            write!(f, "\n{router}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Agreement, Estimate, Metric, Sample};
    use insta::assert_snapshot;

    fn report() -> EvalReport {
        let sample = |id: Value| Sample { task: "piqa", id, gold: 1, loglikelihoods: vec![-2.5, -1.25] };
        let acc = Estimate { value: 0.5, stderr: Some(0.5) };
        EvalReport {
            model: "checkpoints/store/m".into(),
            limit: Some(2),
            tasks: vec![
                TaskResult {
                    task: "piqa",
                    metrics: vec![(Metric::Acc, acc), (Metric::AccNorm, Estimate { value: 1.0, stderr: Some(0.0) })],
                    samples: vec![sample(0.into()), sample("b".into())],
                },
                TaskResult {
                    task: "lambada_openai",
                    metrics: vec![
                        (Metric::Perplexity, Estimate { value: 12_345.678_91, stderr: None }),
                        (Metric::Acc, Estimate { value: 0.0, stderr: None }),
                    ],
                    samples: vec![Sample { task: "lambada_openai", id: 0.into(), gold: 0, loglikelihoods: vec![-9.5] }],
                },
            ],
            perplexity: Some(Perplexity {
                text: "a.txt".into(),
                window: 4,
                stride: 4,
                windows: 2,
                tokens: 6,
                words: 3,
                bytes: 12,
                token_nll: 1.5,
                token_perplexity: 1.5_f64.exp(),
                word_perplexity: 3.0_f64.exp(),
                byte_perplexity: 0.75_f64.exp(),
                bits_per_byte: 1.082_021_3,
                teacher: Some(Agreement { forward_kl: 0.25, same_top: 0.75 }),
            }),
            generated: Vec::new(),
            router: None,
        }
    }

    #[test]
    fn the_table_is_aligned() {
        assert_snapshot!(report().to_string(), @"
        task            examples  metric                 value  stderr
        piqa                   2  acc                   0.5000  0.5000
                                  acc_norm              1.0000  0.0000
        lambada_openai         1  perplexity        12345.6789
                                  acc                   0.0000
        perplexity      6 tokens  token_nll             1.5000
                                  token_perplexity      4.4817
                                  word_perplexity      20.0855
                                  byte_perplexity       2.1170
                                  forward_kl            0.2500
                                  same_top              0.7500
        ");
    }

    #[test]
    fn json_holds_every_number_by_task_and_metric() {
        assert_snapshot!(serde_json::to_string_pretty(&report().to_json()).unwrap(), @r#"
        {
          "model": "checkpoints/store/m",
          "limit": 2,
          "results": {
            "piqa": {
              "examples": 2,
              "acc": 0.5,
              "acc_stderr": 0.5,
              "acc_norm": 1.0,
              "acc_norm_stderr": 0.0
            },
            "lambada_openai": {
              "examples": 1,
              "perplexity": 12345.67891,
              "acc": 0.0
            },
            "perplexity": {
              "text": "a.txt",
              "window": 4,
              "stride": 4,
              "windows": 2,
              "tokens": 6,
              "words": 3,
              "bytes": 12,
              "token_nll": 1.5,
              "token_perplexity": 4.4816890703380645,
              "word_perplexity": 20.085536923187668,
              "byte_perplexity": 2.117000016612675,
              "bits_per_byte": 1.0820213,
              "teacher": {
                "forward_kl": 0.25,
                "same_top": 0.75
              }
            }
          }
        }
        "#);
    }

    #[test]
    fn samples_are_a_line_each() {
        let mut out = Vec::new();
        report().write_samples(&mut out).unwrap();
        assert_snapshot!(String::from_utf8(out).unwrap(), @r#"
        {"task":"piqa","id":0,"gold":1,"loglikelihoods":[-2.5,-1.25]}
        {"task":"piqa","id":"b","gold":1,"loglikelihoods":[-2.5,-1.25]}
        {"task":"lambada_openai","id":0,"gold":0,"loglikelihoods":[-9.5]}
        "#);
    }
}
