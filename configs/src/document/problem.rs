//! All problems of a document as one error: a line per problem, each with its position.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Place of a node in a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// In the file; both count from 1.
    File { line: usize, column: usize },
    /// In the n-th `--set`.
    Set(usize),
}

/// One problem, before the document's name is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) origin: Origin,
    message: String,
    hint: Option<String>,
}

impl Problem {
    pub(super) fn new(origin: Origin, message: impl Into<String>) -> Self {
        Self { origin, message: message.into(), hint: None }
    }

    pub(super) fn syntax(origin: Origin, what: impl fmt::Display) -> Self {
        Self::new(origin, format!("not valid YAML: {what}"))
    }

    #[must_use]
    pub(super) fn with_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

/// All problems of one document, in the order of its lines; problems of `--set` come last.
///
/// ```text
/// `uptrain.yaml` has 2 problems
/// uptrain.yaml:3:3: unknown key `train.step`
///   hint: did you mean `steps`?
/// --set train.batch_size=0: `train.batch_size` is `0`, expected a positive integer
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentError {
    path: PathBuf,
    problems: Vec<(String, Problem)>,
}

impl DocumentError {
    pub(super) fn new(path: &Path, overrides: &[String], mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|p| p.origin);
        problems.dedup();
        let place = |origin| match origin {
            Origin::File { line, column } => format!("{}:{line}:{column}", path.display()),
            Origin::Set(index) => format!("--set {}", overrides.get(index).map_or("", String::as_str)),
        };
        Self { path: path.to_owned(), problems: problems.into_iter().map(|p| (place(p.origin), p)).collect() }
    }

    /// Number of problems.
    #[must_use]
    pub fn num_problems(&self) -> usize {
        self.problems.len()
    }
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.problems.len() == 1 { "" } else { "s" };
        write!(f, "`{}` has {} problem{plural}", self.path.display(), self.problems.len())?;
        for (place, problem) in &self.problems {
            write!(f, "\n{place}: {}", problem.message)?;
            if let Some(hint) = &problem.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for DocumentError {}

/// The member of `known` that `word` is most likely a misspelling of, if any is close.
pub(super) fn nearest_name<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|name| (strsim::osa_distance(word, name), *name))
        .filter(|(distance, name)| *distance <= (name.len().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The names as `` `a`, `b`, `c` ``.
pub(super) fn quoted_list(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}
