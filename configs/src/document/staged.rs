//! A document in stages: what all have in common, and a list `stages` of what each says otherwise.
//!
//! A stage becomes a whole document before it is read and checked, so a problem of it has its place in the file, and one of what
//! is common is said once.

use super::{
    Document, DocumentError, finish,
    problem::{Problem, nearest_name, quoted_list},
    root,
    tree::{Entry, Node, Value},
};
use crate::ConfigError;
use std::path::Path;

/// The key of the list.
const STAGES: &str = "stages";
/// The key of a stage's name.
const NAME: &str = "name";

/// What a stage may say.
#[derive(Clone, Copy, Debug)]
pub struct StageKeys {
    /// Keys that stand in place of the document's.
    pub replaced: &'static [&'static str],
    /// Keys whose entries stand in place of the document's entries of the same name.
    pub merged: &'static [&'static str],
}

/// One document of several.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage<D> {
    /// Its name; `None` where the file has no stages, and is the document.
    pub name: Option<String>,
    /// What is common, with what it says.
    pub document: D,
}

/// Reads `path` after applying `overrides`: a document for each stage, or the only one.
///
/// # Errors
/// When the file cannot be read, or with every problem of it.
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
    let mut common = root(text, overrides, problems)?;
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

/// Puts what a stage says into `document`; gives its name, if that is one.
fn put(
    document: &mut Node,
    entries: Vec<Entry>,
    key: &str,
    keys: StageKeys,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let mut name = None;
    for entry in entries {
        let of = |list: &[&str]| list.contains(&entry.key.as_str());
        if entry.key == NAME {
            name = match &entry.node.value {
                Value::Scalar(scalar) if is_name(&scalar.text) => Some(scalar.text.clone()),
                _ => None,
            };
        } else if of(keys.replaced) {
            replace(document, entry);
        } else if of(keys.merged) {
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

/// A name that a folder can have.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

fn take(node: &mut Node, key: &str) -> Option<Node> {
    let Value::Map(entries) = &mut node.value else { return None };
    let index = entries.iter().position(|entry| entry.key == key)?;
    Some(entries.remove(index).node)
}

fn replace(node: &mut Node, entry: Entry) {
    let _ = take(node, &entry.key);
    if let Value::Map(entries) = &mut node.value {
        entries.push(entry);
    }
}

/// The entries of `entry` in place of those of its key; the whole, where one of the two has none.
fn merge(node: &mut Node, entry: Entry) {
    let Value::Map(entries) = &mut node.value else { return };
    let there = entries.iter_mut().find(|other| other.key == entry.key).map(|other| &mut other.node);
    match (there, entry.node.value) {
        (Some(there @ Node { value: Value::Map(_), .. }), Value::Map(own)) => {
            own.into_iter().for_each(|entry| replace(there, entry));
        }
        (_, value) => replace(node, Entry { node: Node { value, ..entry.node }, ..entry }),
    }
}
