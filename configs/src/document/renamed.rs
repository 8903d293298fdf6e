//! Keys that had another name in an earlier version: the old spelling is read as the new one.
//!
//! serde's `alias` cannot do this here. A struct that reads a hole gets a value for each of its
//! keys, and would get one twice; and hints would offer old names.

use super::{
    problem::Problem,
    tree::{KeyValue, Node, Value},
};

/// A key that was renamed.
#[derive(Clone, Copy, Debug)]
pub struct RenamedKey {
    /// The key that it stands under, at any depth of the document.
    pub under: &'static str,
    /// Its earlier name.
    pub old: &'static str,
    /// Its name.
    pub new: &'static str,
}

/// Gives the keys in `node`, which stands at `path`, their names of today.
pub(super) fn rename(node: &mut Node, path: &mut Vec<String>, renamed: &[RenamedKey], problems: &mut Vec<Problem>) {
    if renamed.is_empty() {
        return;
    }
    match &mut node.value {
        Value::Map(entries) => {
            for key in renamed.iter().filter(|key| path.last().is_some_and(|last| last == key.under)) {
                rename_entry(entries, path, *key, problems);
            }
            for KeyValue { key, node, .. } in entries {
                path.push(key.clone());
                rename(node, path, renamed, problems);
                path.pop();
            }
        }
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                path.push(index.to_string());
                rename(item, path, renamed, problems);
                path.pop();
            }
        }
        Value::Scalar(_) | Value::Hole => {}
    }
}

fn rename_entry(entries: &mut Vec<KeyValue>, path: &[String], key: RenamedKey, problems: &mut Vec<Problem>) {
    let RenamedKey { old, new, .. } = key;
    let Some(index) = entries.iter().position(|entry| entry.key == old) else { return };
    if entries.iter().any(|entry| entry.key == new) {
        let removed = entries.remove(index);
        let path = path.join(".");
        let message = format!("`{path}.{old}` is the earlier name of `{path}.{new}`, which is given too");
        problems.push(Problem::new(removed.key_origin, message));
    } else {
        entries[index].key = new.to_owned();
    }
}

/// The key path of a `--set` with today's names.
pub(super) fn rename_path<'p>(path: Vec<&'p str>, renamed: &[RenamedKey]) -> Vec<&'p str> {
    let under = |index: usize| index.checked_sub(1).map(|before| path[before]);
    let segment = |(index, segment): (usize, &&'p str)| {
        let key = renamed.iter().find(|key| under(index) == Some(key.under) && key.old == *segment);
        key.map_or(*segment, |key| key.new)
    };
    path.iter().enumerate().map(segment).collect()
}
