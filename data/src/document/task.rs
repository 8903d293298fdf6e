//! `task://NAME?key=value&…`: text that a generator of `retie-tasks` writes, a document for each
//! example.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use retie_tasks::{Form, GRAMMAR_VERSION, Purpose, SCHEME, TaskDocuments, TaskSpec};

use super::{Document, Inner};
use crate::error::DataError;
use crate::tokenizer::Tokenizer;

/// Examples whose symbols are compared with tokens.
const CHECKED: u64 = 64;

/// Merged symbols that a message names.
const NAMED: usize = 5;

/// Whether `path` names a task.
pub(crate) fn is_generated(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(SCHEME))
}

/// The task that `path` names, if it names one and no file.
pub fn generated(path: &Path) -> Option<Result<TaskSpec, DataError>> {
    let name = path.to_str().filter(|text| text.starts_with(SCHEME))?;
    Some(TaskSpec::parse(name).map_err(DataError::from))
}

/// What the documents of a task follow from.
pub(crate) fn contents(spec: &TaskSpec) -> String {
    format!("{GRAMMAR_VERSION} {spec}")
}

/// Bytes of the documents of a task, estimated from the first ones.
pub(crate) fn bytes(spec: &TaskSpec) -> u64 {
    let sizes: Vec<u64> = TaskDocuments::new(spec.clone()).take(64).map(|text| text.len() as u64).collect();
    sizes.iter().sum::<u64>().max(1).div_ceil(sizes.len().max(1) as u64) * spec.count
}

pub(super) fn open(spec: TaskSpec) -> Inner {
    let each = bytes(&spec) / spec.count;
    let numbered = TaskDocuments::new(spec).zip(1..);
    Box::new(numbered.map(move |(text, number): (String, u64)| Ok(Document { text, bytes_read: number * each })))
}

/// Checks that no token of a generated text reaches over the end of a symbol; other texts are not
/// checked.
///
/// # Errors
/// [`DataError::MergedSymbols`].
pub(crate) fn check_generated(path: &Path, tokenizer: &Tokenizer) -> Result<(), DataError> {
    match generated(path) {
        Some(spec) => check_symbols(&spec?, tokenizer),
        None => Ok(()),
    }
}

/// Checks that no token of a text of `spec` reaches over the end of a symbol.
///
/// # Errors
/// [`DataError::MergedSymbols`] with such tokens.
pub fn check_symbols(spec: &TaskSpec, tokenizer: &Tokenizer) -> Result<(), DataError> {
    let mut merged = BTreeSet::new();
    for index in 0..CHECKED {
        let example = spec.example(Purpose::Train, index, &spec.lengths, false);
        for symbols in [&example.input, &example.output] {
            merged.extend(merged_in(symbols, tokenizer)?);
        }
    }
    if merged.is_empty() {
        return Ok(());
    }
    let merged = merged.into_iter().take(NAMED).map(|token| format!("`{token}`")).collect();
    Err(DataError::MergedSymbols { task: spec.name().to_owned(), merged, spaced: spec.form == Form::Spaced })
}

/// Tokens that hold the end of one symbol and the beginning of the next.
fn merged_in(symbols: &retie_tasks::Symbols, tokenizer: &Tokenizer) -> Result<Vec<String>, DataError> {
    let text = symbols.text();
    let ids = tokenizer.encode(text)?;
    let merges = |place: &Range<usize>| match (symbols.symbol_at(place.start), place.end) {
        (Some(symbol), end) => (symbols.ends()[symbol] as usize) < end,
        (None, _) => false,
    };
    let places = token_places(tokenizer, text, &ids).into_iter().filter(|place| !place.is_empty());
    Ok(places.filter(merges).map(|place| text[place].to_owned()).collect())
}

/// Where each of the tokens `ids` of `text` stands in it, in bytes, without the space around it. An
/// empty range at the end of the token before stands for a token that is not in the text, such as
/// the BOS token, and for space alone.
pub fn token_places(tokenizer: &Tokenizer, text: &str, ids: &[u32]) -> Vec<Range<usize>> {
    let mut end = 0;
    let place = |id: &u32| {
        // A token's text is looked for: tokenizers that drop or replace space give less than the
        // bytes of the text. What is passed over may only be space.
        let bytes = tokenizer.token_bytes(*id);
        let token = String::from_utf8_lossy(&bytes);
        let (token, rest) = (token.trim(), &text[end..]);
        let skipped = rest.len() - rest.trim_start().len();
        if token.is_empty() || !rest.trim_start().starts_with(token) {
            return end..end;
        }
        let start = end + skipped;
        end = start + token.len();
        start..end
    };
    ids.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{check_distinct, check_files, documents, expand, joined_text};
    use crate::tokenizer::tests::tiny;
    use std::path::PathBuf;

    #[test]
    fn a_task_stands_in_the_place_of_a_file() {
        let path = PathBuf::from("task://succ?length=1..3&count=5");
        let all = [path.clone(), PathBuf::from("task://succ?length=1..3&count=5&seed=1")];
        assert_eq!(expand(&all).unwrap(), all);
        check_files(&all).unwrap();
        check_distinct(&all).unwrap();
        assert!(check_distinct([&path, &path]).is_err());
        let found: Vec<Document> = documents(&path, "text").unwrap().map(Result::unwrap).collect();
        let spec = generated(&path).unwrap().unwrap();
        assert_eq!(
            found.iter().map(|document| document.text.clone()).collect::<Vec<_>>(),
            TaskDocuments::new(spec.clone()).collect::<Vec<_>>()
        );
        assert_eq!(found.last().unwrap().bytes_read, bytes(&spec));
        assert!(joined_text(&path).unwrap().contains("01 = "));
        let message = check_files(&[PathBuf::from("task://suc")]).unwrap_err().to_string();
        assert!(message.contains("did you mean `succ`?"), "{message}");
    }

    #[test]
    fn a_tokenizer_that_merges_symbols_is_refused_with_the_tokens() {
        // A byte-level BPE: it has tokens of several letters and digits, but none with a space
        // between them.
        let check = |name: &str| check_symbols(&TaskSpec::parse(name).unwrap(), &tiny());
        check("tree?length=9").unwrap();
        check("copy?length=20").unwrap();
        let message = check("copy?length=20&form=plain").unwrap_err().to_string();
        assert!(message.contains("merges symbols of task `copy?length=20&form=plain`: `"), "{message}");
        assert!(message.ends_with("hint: `form=spaced` puts a space between symbols"), "{message}");
    }
}
