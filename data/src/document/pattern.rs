//! File names with `*`, `?`, `[…]` and `**`, as shells and the `glob` crate read them.

use std::path::PathBuf;

use super::task::is_generated;
use crate::error::DataError;

/// Puts in the place of each pattern the files whose names match, sorted; anything else stays as it
/// is, and so does a name with such signs that is there.
///
/// # Errors
/// A pattern is malformed or matches no file: all of them are named. A folder that it leads through
/// cannot be read.
pub fn expand(entries: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    for entry in entries {
        let is_pattern = |text: &&str| text.contains(['*', '?', '[']) && !is_generated(entry) && !entry.exists();
        let pattern = entry.to_str().filter(is_pattern);
        match pattern.map(matches) {
            None => files.push(entry.clone()),
            Some(Ok(found)) if found.is_empty() => errors.push(DataError::NoMatch { pattern: entry.clone() }),
            Some(Ok(found)) => files.extend(found),
            Some(Err(error)) => errors.push(error),
        }
    }
    match errors.len() {
        0 => Ok(files),
        1 => Err(errors.remove(0)),
        _ => Err(DataError::Files(errors)),
    }
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>, DataError> {
    let bad = |source| DataError::Pattern { pattern: pattern.to_owned(), source };
    let mut files = Vec::new();
    for path in glob::glob(pattern).map_err(bad)? {
        let path = path.map_err(|error| DataError::Io(error.into()))?;
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Checks that no file stands twice in `files`, also under another name.
///
/// # Errors
/// [`DataError::Twice`].
pub fn check_distinct<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), DataError> {
    let mut seen = std::collections::HashSet::new();
    for file in files {
        let place = if is_generated(file) { file.clone() } else { fs_err::canonicalize(file)? };
        if !seen.insert(place) {
            return Err(DataError::Twice { path: file.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_give_their_files_in_order_and_other_names_stay() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(folder.path().join("deep/x.jsonl")).unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["b.jsonl", "a.jsonl", "c.txt", "deep/d.jsonl", "[odd].txt"] {
            fs_err::write(at(name), "x").unwrap();
        }
        let files = expand(&[at("c.txt"), at("*.jsonl"), at("absent.txt"), at("[odd].txt")]).unwrap();
        assert_eq!(files, [at("c.txt"), at("a.jsonl"), at("b.jsonl"), at("absent.txt"), at("[odd].txt")]);
        assert_eq!(expand(&[at("**/[d-z].jsonl")]).unwrap(), [at("deep/d.jsonl")], "not the folder `x.jsonl`");
        let message = expand(&[at("*.zip"), at("[.txt")]).unwrap_err().to_string();
        let lines: Vec<&str> = message.lines().collect();
        assert_eq!(lines[0], "2 data files cannot be used:");
        assert!(
            lines[1].ends_with("*.zip` matches no data file")
                && lines[2].ends_with("[.txt` is neither a data file nor a pattern"),
            "{message}"
        );
    }

    #[test]
    fn a_file_that_stands_twice_is_found_under_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a.txt", "b.txt"].map(|name| folder.path().join(name));
        [&a, &b].into_iter().for_each(|path| fs_err::write(path, "x").unwrap());
        check_distinct([&a, &b]).unwrap();
        let other = folder.path().join(".").join("a.txt");
        assert!(matches!(check_distinct([&a, &b, &other]), Err(DataError::Twice { path }) if path == other));
    }
}
