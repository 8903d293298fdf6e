use crate::drive::DriveError;
use thiserror::Error;

/// Why trees were not induced or compared.
#[derive(Debug, Error)]
pub enum TreesError {
    /// A window that holds no split.
    #[error("the window is 0, expected 1 or more splits of a cell")]
    Window,
    /// A sentence without a tree.
    #[error("{place} has {found} tokens, expected 2 or more")]
    Short {
        /// Where it stands.
        place: String,
        /// Its tokens.
        found: usize,
    },
    /// A span that is none of the sentence.
    #[error(
        "{place} has the span {start}..{end} of {len} tokens, expected 0 <= start < end <= {len}\nhint: spans count tokens from 0, the end is the first one behind"
    )]
    Outside {
        /// Where it stands.
        place: String,
        /// First token.
        start: usize,
        /// First token behind.
        end: usize,
        /// Tokens of the sentence.
        len: usize,
    },
    /// Two spans of no common tree.
    #[error("{place} has the spans {}..{} and {}..{}, which cross, expected those of one tree", first.0, first.1, second.0, second.1)]
    Crossing {
        /// Where they stand.
        place: String,
        /// The one that starts first.
        first: (usize, usize),
        /// The other one.
        second: (usize, usize),
    },
    /// Another number of scores than splits.
    #[error("{found} split scores for {len} tokens, expected {}", len.saturating_sub(1))]
    Scores {
        /// Tokens of the sentence.
        len: usize,
        /// Scores that were given.
        found: usize,
    },
    /// Another number of states than tokens.
    #[error("{found} states for {len} tokens\nhint: the spans may be those of another tokenisation")]
    States {
        /// Tokens of the sentence.
        len: usize,
        /// States that were given.
        found: usize,
    },
    /// A setting that a model cannot have.
    #[error("`{name}` is {found}, expected {expected}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// What was given.
        found: String,
        /// What it can be.
        expected: String,
    },
    /// A line of a file that is no sentence.
    #[error("{place} is no sentence, expected {{\"tokens\": [\"…\"], \"spans\": [[start, end], …]}}")]
    Line {
        /// Where it stands.
        place: String,
        /// Why it was not read.
        #[source]
        source: serde_json::Error,
    },
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// A task whose problems have no tree.
    #[error("the problems of task `{task}` have no tree here, expected one of {}", known.join(", "))]
    NoTrees {
        /// Name of the task.
        task: String,
        /// Those that have.
        known: Vec<&'static str>,
    },
    /// A text without sentences that can be used.
    #[error(
        "{source_name} has no sentences of {shortest} to {longest} tokens with a span inside, expected some to train on and some to compare"
    )]
    NoSentences {
        /// What was read.
        source_name: String,
        /// Fewest tokens.
        shortest: usize,
        /// Most tokens.
        longest: usize,
    },
    /// The loss is not a number any more.
    #[error("the loss is not finite after step {step} at a learning rate of {learning_rate}; try a smaller one")]
    Diverged {
        /// Steps done.
        step: usize,
        /// Learning rate.
        learning_rate: f64,
    },
    /// A tensor whose values cannot be read.
    #[error("values of a tensor cannot be read")]
    Values(#[source] burn::tensor::DataError),
    /// Steps that do not fit.
    #[error(transparent)]
    Drive(#[from] DriveError),
}
