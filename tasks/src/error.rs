//! Errors of this crate.

use std::{ops::RangeInclusive, path::PathBuf};

/// Why a task, a number or an interval cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A file cannot be read; the message holds its path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// There is no such task.
    #[error("unknown task `{name}`{}\nhint: the generated tasks are {}", did_you_mean.map(|m| format!(", did you mean `{m}`?")).unwrap_or_default(), known.join(", "))]
    UnknownTask {
        /// The name asked for.
        name: String,
        /// The most similar task, if one is similar.
        did_you_mean: Option<&'static str>,
        /// Every task.
        known: Vec<&'static str>,
    },
    /// There is no such variant of a task.
    #[error("task `{task}` has no variant `{found}`, expected {}", if known.is_empty() { "none".to_owned() } else { format!("one of {}", known.join(", ")) })]
    UnknownVariant {
        /// The task.
        task: &'static str,
        /// The variant asked for.
        found: String,
        /// Every variant.
        known: Vec<&'static str>,
    },
    /// A key that a task does not have.
    #[error("task `{task}` has no key `{key}`, expected one of {}", known.join(", "))]
    UnknownKey {
        /// The task.
        task: &'static str,
        /// The key.
        key: String,
        /// Every key.
        known: Vec<&'static str>,
    },
    /// A value that a key cannot have.
    #[error("`{key}` of task `{task}` is `{found}`, expected {expected}")]
    BadValue {
        /// The task.
        task: &'static str,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// Accepted values.
        expected: String,
    },
    /// A text that is no list of keys and values.
    #[error("`{found}` in `{spec}` is not `key=value`\nhint: e.g. `succ?length=1..10&seed=1`")]
    NotAPair {
        /// The task as it was named.
        spec: String,
        /// The part.
        found: String,
    },
    /// Lengths that a grammar does not have.
    #[error("problems of task `{task}` cannot have the lengths {} to {}, expected {} to {}\nhint: `length=A..B` sets them, and `longer=C` the longest beyond", found.start(), found.end(), possible.start(), possible.end())]
    Lengths {
        /// The task.
        task: &'static str,
        /// The lengths asked for.
        found: RangeInclusive<usize>,
        /// The lengths that the grammar has.
        possible: RangeInclusive<usize>,
    },
    /// Rows or settings that no network can be fitted with.
    #[error("a regression has {found}, expected {expected}")]
    Regression {
        /// What there is.
        found: String,
        /// What there should be.
        expected: String,
    },
    /// A fit whose losses left the numbers.
    #[error("the loss of the fit is not finite after epoch {epoch}\nhint: lower the learning rate of {learning_rate}")]
    Diverged {
        /// The epoch, from 1.
        epoch: usize,
        /// The learning rate.
        learning_rate: f64,
    },
    /// A level of significance outside (0, 1).
    #[error(
        "alpha is {found}, expected a number between 0 and 1\nhint: 0.1 asks for intervals that hold 90 % of the values"
    )]
    Alpha {
        /// Its value.
        found: f64,
    },
    /// A score of a calibration point that is not a number.
    #[error("calibration point {index} has the score {found}, expected a finite number")]
    Score {
        /// Index of the point, counted from 0.
        index: usize,
        /// Its score.
        found: f64,
    },
    /// Too few calibration points for a level.
    #[error(
        "{found} calibration points do not suffice for alpha {alpha}, expected at least {needed}\nhint: give more points, or ask for a larger alpha"
    )]
    TooFew {
        /// Points that there are.
        found: usize,
        /// Points that the level needs.
        needed: usize,
        /// The level.
        alpha: f64,
    },
    /// A pair without intersection numbers.
    #[error("there is no moduli space of curves of genus {genus} with {points} points, expected 2g - 2 + n > 0")]
    Unstable {
        /// The genus.
        genus: usize,
        /// Number of marked points.
        points: usize,
    },
    /// A number that does not fit its type.
    #[error("{what} does not fit a fraction of two 128-bit numbers")]
    Overflow {
        /// The number.
        what: String,
    },
    /// A line that is no fact.
    #[error("line {line} of `{}` is no fact, expected subject, relation and object with tabs between", path.display())]
    NotAFact {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
    },
    /// A graph without what a query needs.
    #[error("the graph has {found}, expected {expected}")]
    Graph {
        /// What it has.
        found: String,
        /// What it needs.
        expected: String,
    },
    /// Relations that a graph does not have.
    #[error("the graph has no relation {}\nhint: its relations are {}", unknown.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "), known.join(", "))]
    UnknownRelations {
        /// The relations asked for.
        unknown: Vec<String>,
        /// The graph's relations.
        known: Vec<String>,
    },
}
