//! Our own YAML files: read with every problem reported at once, each with `file:line:column`.
//!
//! The text becomes a tree with positions (`tree`), `--set` changes the tree (`overrides`), and
//! serde reads it (`reader`). Where that fails, the place is recorded and repaired (an unknown key
//! is removed, a wrong or missing value becomes a hole that reads as any type) and the tree is read
//! again. The resulting document is then checked for impossible values, except those that depend on
//! a hole.

mod overrides;
mod problem;
mod reader;
mod renamed;
mod scalar;
mod staged;
mod tree;

pub use problem::DocumentError;
pub use renamed::RenamedKey;
pub use staged::{Stage, StageKeys, load_staged};

use crate::ConfigError;
use problem::{Problem, nearest_name, quoted_list};
use reader::{Fault, ReadError, Reader};
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;
use tree::{KeyValue, Node, Value};

/// A kind of YAML file. Derive `Deserialize` with `deny_unknown_fields`.
pub trait Document: DeserializeOwned + Serialize {
    /// Keys that had another name in an earlier version.
    const RENAMED: &'static [RenamedKey] = &[];

    /// Records the values that cannot be.
    fn check(&self, checks: &mut Checks);
}

/// Reads `path` and applies `overrides` (`a.b=c`) in order.
///
/// # Errors
/// When the file cannot be read, or with every problem in it.
pub fn load<D: Document>(path: &Path, overrides: &[String]) -> Result<D, ConfigError> {
    parse(&fs_err::read_to_string(path)?, path, overrides)
}

/// Reads a document from text, like [`load`]; `path` is named in errors.
///
/// # Errors
/// With every problem in the text.
pub fn parse<D: Document>(text: &str, path: &Path, overrides: &[String]) -> Result<D, ConfigError> {
    let mut problems = Vec::new();
    let document = read(text, overrides, &mut problems);
    match document {
        Some(document) if problems.is_empty() => Ok(document),
        _ => Err(DocumentError::new(path, overrides, problems).into()),
    }
}

/// The document as YAML with every default written out; [`parse`] gives back the same document.
///
/// # Errors
/// When a value has no YAML form.
pub fn to_yaml<D: Document>(document: &D) -> Result<String, ConfigError> {
    serde_saphyr::to_string(document).map_err(ConfigError::WriteYaml)
}

fn read<D: Document>(text: &str, overrides: &[String], problems: &mut Vec<Problem>) -> Option<D> {
    let root = root(text, overrides, D::RENAMED, problems)?;
    finish(root, problems)
}

/// The tree of `text` with `overrides`, and with the names that keys have today.
fn root(text: &str, overrides: &[String], renamed: &[RenamedKey], problems: &mut Vec<Problem>) -> Option<Node> {
    let mut root = tree::parse(text, None, problems).map_err(|p| problems.push(p)).ok()?;
    renamed::rename(&mut root, &mut Vec::new(), renamed, problems);
    for (index, text) in overrides.iter().enumerate() {
        if let Err(problem) = overrides::apply(&mut root, text, index, renamed, problems) {
            problems.push(problem);
        }
    }
    Some(root)
}

/// Reads a tree into a document, repairing it after each error until it can be read, and checks it.
fn finish<D: Document>(mut root: Node, problems: &mut Vec<Problem>) -> Option<D> {
    let mut holes = Vec::new();
    let document = loop {
        match D::deserialize(Reader::new(&root)) {
            Ok(document) => break document,
            Err(error) => mend(&mut root, error, problems, &mut holes)?,
        }
    };
    let mut checks = Checks::default();
    document.check(&mut checks);
    for finding in checks.findings {
        let concerns_hole = finding.keys().any(|key| holes.iter().any(|hole| overlaps(key, hole)));
        if !concerns_hole {
            let origin = root.nearest(&segments(&finding.key)).origin;
            problems.push(Problem::new(origin, finding.message).with_hint(finding.hint));
        }
    }
    Some(document)
}

/// Records `error` and repairs `root` there, so that the next reading passes that place; `None` if
/// nothing more can be read.
fn mend(root: &mut Node, error: ReadError, problems: &mut Vec<Problem>, holes: &mut Vec<Vec<String>>) -> Option<()> {
    let ReadError { path, fault } = error;
    let mut path = path.unwrap_or_default();
    let key_path = |key: &str| path.iter().map(String::as_str).chain([key]).collect::<Vec<_>>().join(".");
    let origin = root.nearest(&path).origin;
    let node = root.get_mut(&path);
    let (problem, hole) = match (fault, node) {
        (Fault::Unknown { key, known }, Some(Node { value: Value::Map(entries), .. })) => {
            let index = entries.iter().position(|e| e.key == key)?;
            let removed = entries.remove(index);
            let absent: Vec<&str> = known.iter().copied().filter(|k| entries.iter().all(|e| e.key != *k)).collect();
            let meant = nearest_name(&key, &absent);
            if let Some(meant) = meant {
                let node = Node { origin: removed.key_origin, value: Value::Hole };
                entries.push(KeyValue { key: meant.to_owned(), key_origin: removed.key_origin, node });
            }
            let hint = meant.or_else(|| nearest_name(&key, known)).map_or_else(
                || format!("the keys here are {}", quoted_list(known)),
                |near| format!("did you mean `{near}`?"),
            );
            let message = format!("unknown key `{}`", key_path(&key));
            (Problem::new(removed.key_origin, message).with_hint(Some(hint)), meant)
        }
        (Fault::Missing { key }, Some(Node { value: Value::Map(entries), .. })) => {
            if entries.iter().any(|e| e.key == key) {
                return None;
            }
            let node = Node { origin, value: Value::Hole };
            entries.push(KeyValue { key: key.to_owned(), key_origin: origin, node });
            (Problem::new(origin, format!("key `{}` is missing", key_path(key))), Some(key))
        }
        (fault, Some(node)) if !matches!(node.value, Value::Hole) => {
            let name = if path.is_empty() { "the document".to_owned() } else { format!("`{}`", path.join(".")) };
            let problem = match fault {
                Fault::Expected { found, expected, hint } => {
                    let origin = match &node.value {
                        Value::Map(entries) if found.is_some() => entries.first().map_or(origin, |e| e.key_origin),
                        _ => origin,
                    };
                    let found = found.map_or_else(|| node.describe(), |name| format!("`{name}`"));
                    Problem::new(origin, format!("{name} is {found}, expected {expected}")).with_hint(hint)
                }
                Fault::Other(message) => Problem::new(origin, format!("{name}: {message}")),
                Fault::Missing { key } => Problem::new(origin, format!("{name} has no key `{key}`")),
                Fault::Unknown { key, .. } => Problem::new(origin, format!("{name} has an unknown key `{key}`")),
            };
            node.value = Value::Hole;
            holes.push(path.clone());
            problems.push(problem);
            return Some(());
        }
        _ => return None,
    };
    problems.push(problem);
    if let Some(key) = hole {
        path.push(key.to_owned());
        holes.push(path);
    }
    Some(())
}

fn segments(key: &str) -> Vec<String> {
    key.split('.').filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// True if one key path is a prefix of the other.
fn overlaps(key: &str, hole: &[String]) -> bool {
    segments(key).iter().zip(hole).all(|(a, b)| a == b)
}

/// Collects impossible values while a document is checked.
#[derive(Debug, Default)]
pub struct Checks {
    findings: Vec<Finding>,
}

/// One impossible value.
#[derive(Debug)]
pub struct Finding {
    key: String,
    also: Vec<String>,
    message: String,
    hint: Option<String>,
}

impl Finding {
    fn keys(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.key).chain(&self.also).map(String::as_str)
    }

    /// Names other keys that the finding depends on; it is dropped when one of them could not be
    /// read.
    pub fn also(&mut self, keys: &[&str]) -> &mut Self {
        self.also.extend(keys.iter().map(|k| (*k).to_owned()));
        self
    }

    /// Adds a hint on how to fix it.
    pub fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hint = Some(hint.into());
        self
    }
}

impl Checks {
    /// Records `message` for `key` (a path such as `losses.0.distill.weight`).
    pub fn problem(&mut self, key: impl Into<String>, message: impl Into<String>) -> &mut Finding {
        let index = self.findings.len();
        self.findings.push(Finding { key: key.into(), also: Vec::new(), message: message.into(), hint: None });
        &mut self.findings[index]
    }

    /// Records that `key` is `found` where `expected` is needed, unless `holds`.
    pub fn require(&mut self, holds: bool, key: impl Into<String>, found: impl std::fmt::Display, expected: &str) {
        if !holds {
            let key = key.into();
            let message = format!("`{key}` is `{found}`, expected {expected}");
            self.problem(key, message);
        }
    }
}

#[cfg(test)]
mod tests;
