//! `retie tasks`: list of the tasks of `retie eval --tasks`.

use crate::{args::JsonArgs, error::Status, output};
use clap::Args;
use retie_eval::TASKS;
use serde_json::json;

/// List the evaluation tasks
#[derive(Debug, Args)]
pub struct Tasks {
    #[command(flatten)]
    json: JsonArgs,
}

/// Name of the task that measures perplexity on a text.
pub const PERPLEXITY: &str = "perplexity";

impl Tasks {
    pub fn run(self) -> anyhow::Result<Status> {
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
            output::json(&tasks)?;
            return Ok(Status::Done);
        }
        let mut lines = vec![format!("{:<16} {:<24} data set (split)", "task", "metrics")];
        for task in TASKS {
            let set = format!("{} ({})", task.hub.repo, task.hub.split);
            lines.push(format!("{:<16} {:<24} {set}", task.name, metrics(task).join(", ")));
        }
        lines.push(format!("{PERPLEXITY:<16} {:<24} the file of `--text`", "token, word, byte"));
        output::data(lines.join("\n"))?;
        Ok(Status::Done)
    }
}
