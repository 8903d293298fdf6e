use crate::drive::DriveError;
use retie_tasks::TaskError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a reference system was not made or trained.
#[derive(Debug, Error)]
pub enum LabError {
    /// The loss is not a number any more.
    #[error("the loss is not finite after step {step} at a learning rate of {learning_rate}; try a smaller one")]
    Diverged {
        /// Steps done.
        step: usize,
        /// Learning rate.
        learning_rate: f64,
    },
    /// A setting, or what is to be learned, that does not do.
    #[error("{found}, expected {expected}")]
    Setting {
        /// What it is.
        found: String,
        /// What does.
        expected: String,
    },
    /// A folder that is no split of a knowledge graph.
    #[error("`{}` has no {missing}\nhint: a split is train.txt, valid.txt and test.txt, each with a fact a line: subject, relation and object, with tabs between", folder.display())]
    NoSplit {
        /// The folder.
        folder: PathBuf,
        /// Files that it should have.
        missing: String,
    },
    /// Held-out facts about what nothing is learned of.
    #[error("`{}` has {}, which train.txt does not have\nhint: nothing can be learned of them; leave their facts out", path.display(), names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))]
    NotTrained {
        /// The file.
        path: PathBuf,
        /// Entities, then relations.
        names: Vec<String>,
    },
    /// A query about what the graph does not have.
    #[error("a query has {what} number {index}, expected one below {known}")]
    Unknown {
        /// Entity or relation.
        what: &'static str,
        /// Its number.
        index: usize,
        /// How many there are.
        known: usize,
    },
    /// No queries of a type were found.
    #[error(
        "no {kind} query has {expected}\nhint: the graph may be too small for this type, or too few facts are held out"
    )]
    NoQuery {
        /// The type.
        kind: &'static str,
        /// What it should have.
        expected: &'static str,
    },
    /// States were not made in steps.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// A graph or a query that cannot be had.
    #[error(transparent)]
    Task(#[from] TaskError),
}
