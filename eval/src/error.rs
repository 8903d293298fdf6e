//! Errors of this crate.

use retie_data::DataError;
use std::{fmt, path::PathBuf};

/// Errors of an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A file cannot be read or written; the message holds its path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Text or ids cannot be converted, or a text file cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// There is no such task.
    #[error("unknown task `{name}`{}\nhint: the tasks are {known}", did_you_mean.map(|m| format!(", did you mean `{m}`?")).unwrap_or_default())]
    UnknownTask {
        /// Requested name.
        name: String,
        /// The nearest name.
        did_you_mean: Option<&'static str>,
        /// Every name.
        known: String,
    },
    /// The folder has no file for a task.
    #[error("`{}` has no file for task `{task}`, expected `{task}.parquet` or `{task}.jsonl`", folder.display())]
    NoTaskFile {
        /// The folder.
        folder: PathBuf,
        /// The task.
        task: &'static str,
    },
    /// The folder has two files for a task.
    #[error(
        "`{}` has both `{task}.parquet` and `{task}.jsonl`\nhint: keep the one that is to be measured",
        folder.display()
    )]
    TwoTaskFiles {
        /// The folder.
        folder: PathBuf,
        /// The task.
        task: &'static str,
    },
    /// A task file that is neither `.jsonl` nor `.parquet`.
    #[error("`{}` is not a task file, expected the extension `.jsonl` or `.parquet`", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// Rows that the task cannot use.
    #[error("`{}` has {} for task `{task}`{}", path.display(), counted(rows.len(), "bad row"), listed(rows))]
    BadRows {
        /// The file.
        path: PathBuf,
        /// The task.
        task: &'static str,
        /// Every bad row.
        rows: Vec<BadRow>,
    },
    /// The file has no rows.
    #[error("`{}` has no rows, expected at least one for task `{task}`", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
        /// The task.
        task: &'static str,
    },
    /// A continuation has no token of its own, so there is nothing to score.
    #[error("example {id} of task `{task}`: the continuation `{continuation}` has no token of its own")]
    NothingToScore {
        /// The task.
        task: &'static str,
        /// Id of the example.
        id: String,
        /// Its continuation.
        continuation: String,
    },
    /// A continuation alone is longer than the model's context.
    #[error("example {id} of task `{task}`: a continuation has {found} tokens, the model's context has {max_length}")]
    TooLong {
        /// The task.
        task: &'static str,
        /// Id of the example.
        id: String,
        /// Tokens of the continuation.
        found: usize,
        /// Tokens that the model can take.
        max_length: usize,
    },
    /// The model gave a log-probability that is NaN or above 0.
    #[error("{place}: the model gave the log-probability `{found}`, expected a number, 0 or less")]
    NotALogProb {
        /// Example or window that was scored.
        place: String,
        /// The value.
        found: f32,
    },
    /// The scorer returned another number of scores than requested.
    #[error("the scorer gave {found} scores, expected {expected}")]
    ScoreCount {
        /// Scores given.
        found: usize,
        /// Scores asked for.
        expected: usize,
    },
    /// The text has too few tokens to score one.
    #[error("`{name}` has {found} tokens, expected at least 2: the first one is not scored")]
    TextTooShort {
        /// The text's name.
        name: String,
        /// Its tokens.
        found: usize,
    },
    /// The windows are longer than the model's context.
    #[error("a window of {window} tokens is longer than the model's context of {max_length}\nhint: lower `--window`")]
    WindowTooLong {
        /// Tokens of a window.
        window: usize,
        /// Tokens that the model can take.
        max_length: usize,
    },
    /// An option that must be at least 1 is 0.
    #[error("`{option}` is 0, expected at least 1")]
    Zero {
        /// The option.
        option: &'static str,
    },
}

/// Error of the evaluation or of the model.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E: std::error::Error + 'static> {
    /// Error of the evaluation.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// Error of the model.
    #[error(transparent)]
    Scorer(E),
}

/// A row that a task cannot use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// `line` of a `.jsonl`, `row` of a `.parquet`.
    pub unit: &'static str,
    /// Number of the line or row, from 1.
    pub number: usize,
    /// Value that was found and values that are accepted.
    pub message: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.unit, self.number, self.message)
    }
}

/// Bad rows that a message lists; a file of another task may have thousands.
const MAX_LISTED: usize = 10;

fn listed(rows: &[BadRow]) -> String {
    let mut text: String = rows.iter().take(MAX_LISTED).map(|row| format!("\n{row}")).collect();
    if let Some(more) = rows.len().checked_sub(MAX_LISTED).filter(|more| *more > 0) {
        text += &format!("\n… and {more} more");
    }
    text
}

fn counted(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}
