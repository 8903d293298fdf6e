//! Tasks: one file for each, one line in [`TASKS`].
//!
//! A task's file states where its data set is on the Hub and builds prompts from the Hub's rows.
//! Prompts, targets and metrics are those of lm-evaluation-harness 0.4.13.

mod arc_challenge;
mod arc_easy;
mod fields;
mod hellaswag;
mod lambada_openai;
mod openbookqa;
mod piqa;
mod winogrande;

use crate::{
    EvalError, Example, Metric,
    error::BadRow,
    example::{is_ready, ready},
    rows,
};
use fields::Fields;
use std::path::{Path, PathBuf};

/// Every task.
pub const TASKS: &[Task] = &[
    lambada_openai::TASK,
    hellaswag::TASK,
    piqa::TASK,
    winogrande::TASK,
    arc_easy::TASK,
    arc_challenge::TASK,
    openbookqa::TASK,
];

/// One benchmark.
#[derive(Debug)]
pub struct Task {
    /// Name in the harness.
    pub name: &'static str,
    /// The data set.
    pub hub: HubSource,
    /// Metrics in the order in which they are reported.
    pub metrics: &'static [Metric],
    /// Converts a row of the Hub into an example.
    parts: fn(&Fields<'_>) -> Result<Parts, String>,
}

/// Location of a data set on the Hub.
#[derive(Debug)]
pub struct HubSource {
    /// Repository of type `dataset`.
    pub repo: &'static str,
    /// Configuration of the data set.
    pub config: &'static str,
    /// The split that the harness measures.
    pub split: &'static str,
    /// Places of that split's files; the first one that has any is used.
    pub files: &'static [HubFiles],
}

/// Files in a repository of the Hub.
#[derive(Debug)]
pub struct HubFiles {
    /// Branch or reference.
    pub revision: &'static str,
    /// Path in the repository; `*` matches any part of a name.
    pub pattern: &'static str,
}

/// Reference under which the Hub keeps a parquet copy of every public data set.
const CONVERTED: &str = "refs/convert/parquet";

const fn main(pattern: &'static str) -> HubFiles {
    HubFiles { revision: "main", pattern }
}

const fn converted(pattern: &'static str) -> HubFiles {
    HubFiles { revision: CONVERTED, pattern }
}

/// An example without its id.
#[derive(Debug)]
struct Parts {
    contexts: Vec<String>,
    continuations: Vec<String>,
    gold: usize,
}

impl Parts {
    /// Example with one context and several choices; the harness puts a space before a choice.
    fn choices(context: &str, choices: &[&str], gold: usize) -> Self {
        Self {
            contexts: vec![context.to_owned(); choices.len()],
            continuations: choices.iter().map(|c| format!(" {c}")).collect(),
            gold,
        }
    }
}

impl Task {
    /// The task called `name`.
    ///
    /// # Errors
    /// When there is none; the message lists all names and the nearest one.
    pub fn find(name: &str) -> Result<&'static Self, EvalError> {
        TASKS.iter().find(|task| task.name == name).ok_or_else(|| {
            let distances = TASKS.iter().map(|t| (strsim::osa_distance(name, t.name), t.name));
            let nearest = distances.min().filter(|(distance, _)| *distance <= name.len().div_ceil(3));
            let known = TASKS.iter().map(|t| format!("`{}`", t.name)).collect::<Vec<_>>().join(", ");
            EvalError::UnknownTask { name: name.to_owned(), did_you_mean: nearest.map(|(_, name)| name), known }
        })
    }

    /// The task's file in `folder`: `TASK.parquet` or `TASK.jsonl`.
    ///
    /// # Errors
    /// When there is none, or both.
    pub fn file_in(&self, folder: &Path) -> Result<PathBuf, EvalError> {
        let [parquet, jsonl] = ["parquet", "jsonl"].map(|e| folder.join(format!("{}.{e}", self.name)));
        match (parquet.exists(), jsonl.exists()) {
            (true, false) => Ok(parquet),
            (false, true) => Ok(jsonl),
            (true, true) => Err(EvalError::TwoTaskFiles { folder: folder.to_owned(), task: self.name }),
            (false, false) => Err(EvalError::NoTaskFile { folder: folder.to_owned(), task: self.name }),
        }
    }

    /// Reads the examples of a split's files, in order. Rows are the Hub's, or already have
    /// `contexts`.
    ///
    /// # Errors
    /// When a file cannot be read, has no rows, or has rows that are neither; all bad rows of a
    /// file are listed.
    pub fn load(&self, files: &[PathBuf]) -> Result<Vec<Example>, EvalError> {
        let mut examples = Vec::new();
        for path in files {
            let rows = rows::read(path)?;
            if rows.rows.is_empty() {
                return Err(EvalError::NoRows { path: path.clone(), task: self.name });
            }
            let mut bad: Vec<BadRow> = Vec::new();
            let first_index = examples.len();
            for (offset, (number, row)) in rows.rows.iter().enumerate() {
                let index = first_index + offset;
                match row.as_ref().map_err(Clone::clone).and_then(|row| self.example(row, index)) {
                    Ok(example) => examples.push(example),
                    Err(message) => bad.push(rows.bad(*number, message)),
                }
            }
            if !bad.is_empty() {
                return Err(EvalError::BadRows { path: path.clone(), task: self.name, rows: bad });
            }
        }
        Ok(examples)
    }

    fn example(&self, row: &serde_json::Map<String, serde_json::Value>, index: usize) -> Result<Example, String> {
        let example = if is_ready(row) {
            ready(row, self.name, index)?
        } else {
            let Parts { contexts, continuations, gold } = (self.parts)(&Fields(row))?;
            Example { id: index.into(), contexts, continuations, gold }
        };
        let (found, one) = (example.contexts.len(), self.is_single());
        match (found, one) {
            (2.., false) | (1, true) => Ok(example),
            (_, false) => Err(format!("{found} choice, expected two or more")),
            (_, true) => Err(format!("{found} choices, expected one")),
        }
    }

    /// True if an example is a single continuation that greedy decoding has to give, not a choice.
    pub(crate) fn is_single(&self) -> bool {
        self.metrics.contains(&Metric::Perplexity)
    }
}

#[cfg(test)]
mod tests;
