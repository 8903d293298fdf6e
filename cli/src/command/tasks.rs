//! `retie tasks`: list of the tasks of `retie eval --tasks`, and the text of a generated one.

use crate::{args::JsonArgs, error::Status, output};
use clap::Args;
use retie_eval::TASKS;
use retie_tasks::{COMMON_KEYS, Example, SCHEME, TaskDocuments, TaskSpec};
use serde_json::json;
use std::io::{BufWriter, Write};

/// List the evaluation tasks, or show a generated one
#[derive(Debug, Args)]
pub struct Tasks {
    /// A generated task, e.g. `tree:inorder?length=1..5`: show its grammar, keys and some examples
    #[arg(value_name = "TASK")]
    task: Option<String>,
    /// Write the whole training text of the task instead, a document a line
    #[arg(long, requires = "task")]
    text: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// Name of the task that measures perplexity on a text.
pub const PERPLEXITY: &str = "perplexity";

/// Examples that are shown.
const SHOWN: usize = 5;

impl Tasks {
    pub fn run(self) -> anyhow::Result<Status> {
        match &self.task {
            Some(task) => self.show(TaskSpec::parse(task)?),
            None => self.list(),
        }
    }

    fn list(&self) -> anyhow::Result<Status> {
        let metrics = |task: &retie_eval::Task| task.metrics.iter().map(ToString::to_string).collect::<Vec<_>>();
        if self.json.json {
            let mut tasks: Vec<_> = TASKS
                .iter()
                .map(|task| {
                    let hub = json!({ "repo": task.hub.repo, "config": task.hub.config, "split": task.hub.split });
                    json!({ "task": task.name, "metrics": metrics(task), "hub": hub })
                })
                .collect();
            let measures = ["token_nll", "token_perplexity", "word_perplexity", "byte_perplexity"];
            tasks.push(json!({ "task": PERPLEXITY, "metrics": measures, "needs": "--text" }));
            tasks.extend(retie_tasks::TASKS.iter().map(|task| {
                json!({ "task": task.name, "variants": task.variants, "metrics": ["exact_match"], "about": task.about })
            }));
            output::json(&tasks)?;
            return Ok(Status::Done);
        }
        let mut lines = vec![format!("{:<16} {:<24} data set (split)", "task", "metrics")];
        for task in TASKS {
            let set = format!("{} ({})", task.hub.repo, task.hub.split);
            lines.push(format!("{:<16} {:<24} {set}", task.name, metrics(task).join(", ")));
        }
        lines.push(format!("{PERPLEXITY:<16} {:<24} the file of `--text`", "token, word, byte"));
        lines.extend(
            retie_tasks::TASKS
                .iter()
                .map(|task| format!("{:<16} {:<24} generated: {}", task.name, "exact_match", task.about)),
        );
        output::data(lines.join("\n"))?;
        Ok(Status::Done)
    }

    fn show(&self, spec: TaskSpec) -> anyhow::Result<Status> {
        if self.text {
            let mut out = BufWriter::new(std::io::stdout().lock());
            for document in TaskDocuments::new(spec) {
                writeln!(out, "{document}")?;
            }
            out.flush()?;
            return Ok(Status::Done);
        }
        let about = spec.about();
        let keys: Vec<_> = about.keys.iter().chain(COMMON_KEYS).collect();
        let mut example = Example::new(spec.form);
        let examples: Vec<_> = (0..SHOWN as u64)
            .map(|index| {
                spec.fill_training(index, &mut example);
                (example.document(), example.depth)
            })
            .collect();
        if self.json.json {
            let keys: Vec<_> = keys.iter().map(|(key, accepts)| json!({ "key": key, "accepts": accepts })).collect();
            let shown: Vec<_> = examples.iter().map(|(text, depth)| json!({ "text": text, "depth": depth })).collect();
            output::json(&json!({
                "task": spec.task(), "variants": about.variants, "about": about.about, "grammar": about.grammar,
                "depth": spec.grammar().depth_name(), "lengths": [spec.lengths.start(), spec.lengths.end()],
                "keys": keys, "examples": shown,
            }))?;
            return Ok(Status::Done);
        }
        let mut lines = vec![format!("{}: {}", spec.task(), about.about)];
        lines.extend(about.grammar.lines().map(|line| format!("  {line}")));
        if !about.variants.is_empty() {
            lines.push(format!("\nvariants: {}", about.variants.join(", ")));
        }
        let lengths = spec.grammar().lengths();
        lines.push(format!(
            "\nkeys of {SCHEME}{}?key=value&key=value; lengths can be {} to {}",
            spec.task(),
            lengths.start(),
            lengths.end()
        ));
        lines.extend(keys.iter().map(|(key, accepts)| format!("  {key:<16} {accepts}")));
        lines.push(format!("\nexamples with {}", spec.grammar().depth_name()));
        lines.extend(examples.iter().map(|(text, depth)| format!("  {depth:>3}  {text}")));
        output::data(lines.join("\n"))?;
        Ok(Status::Done)
    }
}
