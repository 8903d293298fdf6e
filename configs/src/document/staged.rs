//! Documents in stages: keys that all stages have in common, and a list `stages` of each stage's
//! differences.
//!
//! A stage becomes a whole document before it is read and checked. So a problem of a stage has its
//! position in the file, and a problem of the common part is reported once.

use super::{
    Document, DocumentError, finish,
    problem::{Problem, nearest_name, quoted_list},
    root,
    tree::{KeyValue, Node, Value},
};
use crate::ConfigError;
use std::path::Path;

/// Key of the list.
const STAGES: &str = "stages";
/// Key of a stage's name.
const NAME: &str = "name";

/// Keys that a stage may set.
#[derive(Clone, Copy, Debug)]
pub struct StageKeys {
    /// Keys that replace those of the document.
    pub replaced: &'static [&'static str],
    /// Keys whose entries replace the document's entries of the same name.
    pub merged: &'static [&'static str],
}

/// One document of several.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage<D> {
    /// Its name; `None` where the file has no stages and is itself the document.
    pub name: Option<String>,
    /// The common part with the stage's changes.
    pub document: D,
}

/// Reads `path` and applies `overrides`: one document for each stage, or a single one without
/// stages.
///
/// # Errors
/// When the file cannot be read, or with every problem in it.
pub fn load_staged<D: Document>(
    path: &Path,
    overrides: &[String],
    keys: StageKeys,
) -> Result<Vec<Stage<D>>, ConfigError> {
    let text = fs_err::read_to_string(path)?;
    let mut problems = Vec::new();
    let stages = read(&text, overrides, keys, &mut problems);
    match stages {
        Some(stages) if problems.is_empty() => Ok(stages),
        _ => Err(DocumentError::new(path, overrides, problems).into()),
    }
}

fn read<D: Document>(
    text: &str,
    overrides: &[String],
    keys: StageKeys,
    problems: &mut Vec<Problem>,
) -> Option<Vec<Stage<D>>> {
    let mut common = root(text, overrides, D::RENAMED, problems)?;
    let Some(list) = take(&mut common, STAGES) else {
        return Some(vec![Stage { name: None, document: finish(common, problems)? }]);
    };
    let Value::List(items) = list.value else {
        let message = format!("`{STAGES}` is {}, expected a list", list.describe());
        problems.push(Problem::new(list.origin, message));
        return None;
    };
    if items.is_empty() {
        problems.push(Problem::new(list.origin, format!("`{STAGES}` is empty, expected at least one")));
    }
    let mut stages: Vec<Stage<D>> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let key = format!("{STAGES}.{index}");
        let origin = item.origin;
        let Value::Map(entries) = item.value else {
            let message = format!("`{key}` is {}, expected a mapping", item.describe());
            problems.push(Problem::new(origin, message));
            continue;
        };
        let mut document = common.clone();
        let name = put(&mut document, entries, &key, keys, problems);
        let name = match name {
            Some(name) if stages.iter().any(|other| other.name.as_ref() == Some(&name)) => {
                problems.push(Problem::new(origin, format!("`{key}` is called `{name}`, as one before it")));
                None
            }
            Some(name) => Some(name),
            None => {
                let message = format!("`{key}` has no `{NAME}`, expected one of letters, digits, `-` and `_`");
                problems.push(Problem::new(origin, message));
                None
            }
        };
        if let Some(document) = finish(document, problems) {
            stages.push(Stage { name, document });
        }
    }
    Some(stages)
}

/// Applies a stage's entries to `document`; returns the stage's name, if it has a valid one.
fn put(
    document: &mut Node,
    entries: Vec<KeyValue>,
    key: &str,
    keys: StageKeys,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let mut name = None;
    for entry in entries {
        let contains = |list: &[&str]| list.contains(&entry.key.as_str());
        if entry.key == NAME {
            name = match &entry.node.value {
                Value::Scalar(scalar) if is_name(&scalar.text) => Some(scalar.text.clone()),
                _ => None,
            };
        } else if contains(keys.replaced) {
            replace(document, entry);
        } else if contains(keys.merged) {
            merge(document, entry);
        } else {
            let known: Vec<&str> = [NAME].iter().chain(keys.replaced).chain(keys.merged).copied().collect();
            let hint = nearest_name(&entry.key, &known).map_or_else(
                || format!("a stage may say {}", quoted_list(&known)),
                |near| format!("did you mean `{near}`?"),
            );
            let message = format!("unknown key `{key}.{}`", entry.key);
            problems.push(Problem::new(entry.key_origin, message).with_hint(Some(hint)));
        }
    }
    name
}

/// True if a folder can have this name.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

fn take(node: &mut Node, key: &str) -> Option<Node> {
    let Value::Map(entries) = &mut node.value else { return None };
    let index = entries.iter().position(|entry| entry.key == key)?;
    Some(entries.remove(index).node)
}

fn replace(node: &mut Node, entry: KeyValue) {
    let _ = take(node, &entry.key);
    if let Value::Map(entries) = &mut node.value {
        entries.push(entry);
    }
}

/// Merges the entries of `entry` into those of its key; replaces the whole if either is no mapping.
fn merge(node: &mut Node, entry: KeyValue) {
    let Value::Map(entries) = &mut node.value else { return };
    let there = entries.iter_mut().find(|other| other.key == entry.key).map(|other| &mut other.node);
    match (there, entry.node.value) {
        (Some(there @ Node { value: Value::Map(_), .. }), Value::Map(own)) => {
            own.into_iter().for_each(|entry| replace(there, entry));
        }
        (_, value) => replace(node, KeyValue { node: Node { value, ..entry.node }, ..entry }),
    }
}
