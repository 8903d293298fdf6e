//! `--set a.b=c`: a value that is put into the tree before it is read.
//!
//! The value is YAML, so `--set losses='[{cross_entropy: {weight: 1}}]'` works. A number selects
//! from a list (`losses.0`). The name of a choice can be left out: `schedule.warmup_steps` reaches
//! `schedule.cosine.warmup_steps`.

use super::{
    problem::{Origin, Problem},
    renamed::{RenamedKey, rename, rename_path},
    tree::{self, KeyValue, Node, Value},
};

/// Puts the override number `index` into `root`.
///
/// # Errors
/// When it is not `KEY=VALUE`, the value is not YAML, or the key leads through a value without
/// keys.
pub(super) fn apply(
    root: &mut Node,
    text: &str,
    index: usize,
    renamed: &[RenamedKey],
    problems: &mut Vec<Problem>,
) -> Result<(), Problem> {
    let origin = Origin::Set(index);
    let Some((key, value)) = text.split_once('=') else {
        return Err(Problem::new(origin, "expected `KEY=VALUE`"));
    };
    let path: Vec<&str> = key.trim().split('.').collect();
    if path.iter().any(|s| s.is_empty()) {
        return Err(Problem::new(origin, format!("`{key}` is not a key path, expected names with dots between")));
    }
    let path = rename_path(path, renamed);
    let mut node = tree::parse(value, Some(index), problems)?;
    rename(&mut node, &mut path.iter().map(|&segment| segment.to_owned()).collect(), renamed, problems);
    insert(root, &path, 0, node)
}

/// Puts `node` at `path[depth..]` under `target`, which is at `path[..depth]`.
fn insert(target: &mut Node, path: &[&str], depth: usize, node: Node) -> Result<(), Problem> {
    let Some(segment) = path.get(depth) else {
        *target = node;
        return Ok(());
    };
    let described = target.describe();
    let is_null = matches!(&target.value, Value::Scalar(s) if s.is_null());
    if is_null {
        target.value = Value::Map(Vec::new());
    }
    match &mut target.value {
        Value::List(items) => {
            let len = items.len();
            let item = segment.parse::<usize>().ok().and_then(|i| items.get_mut(i)).ok_or_else(|| {
                let here = path[..depth].join(".");
                Problem::new(node.origin, format!("`{here}` is a list of {len}, `{segment}` is not an index of it"))
            })?;
            insert(item, path, depth + 1, node)
        }
        Value::Map(entries) => {
            if let Some(entry) = entries.iter_mut().find(|e| e.key == *segment) {
                return insert(&mut entry.node, path, depth + 1, node);
            }
            if let [KeyValue { node: only, .. }] = entries.as_mut_slice()
                && depth > 0
                && matches!(only.value, Value::Map(_))
            {
                return insert(only, path, depth, node);
            }
            let origin = node.origin;
            let mut fresh = Node { origin, value: Value::Map(Vec::new()) };
            insert(&mut fresh, path, depth + 1, node)?;
            entries.push(KeyValue { key: (*segment).to_owned(), key_origin: origin, node: fresh });
            Ok(())
        }
        Value::Scalar(_) | Value::Hole => {
            let here = path[..depth].join(".");
            Err(Problem::new(node.origin, format!("`{here}` is {described} and has no key `{segment}`")))
        }
    }
}
