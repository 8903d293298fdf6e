//! Documents of a data file, one at a time; the extension says the format.
//!
//! | extension  | a document is |
//! |------------|---------------|
//! | `.jsonl`   | the text field of one line, a JSON object; blank lines are passed over |
//! | `.txt`     | the whole file |
//! | `.parquet` | one row of the text column |
//! | `.arrow`, `.feather` | one row of the text column |
//!
//! `task://NAME?…` is no file: its documents are those that a generator of `retie-tasks` writes.
//!
//! `.tokens` files of [`crate::TokenDataset`]'s cache hold tokens, from which there is no way back
//! to a text.
//!
//! `.jsonl` and `.txt` may be compressed with gzip or Zstandard, and have `.gz` or `.zst` behind
//! them then. Text must be UTF-8; a byte-order mark at the start of `.jsonl` and `.txt` is taken
//! off, nothing else is changed.

mod arrow;
mod arrow_lengths;
mod compression;
mod jsonl;
mod messages;
mod parquet;
mod pattern;
mod task;
mod text;

use std::io::Read;
use std::path::{Path, PathBuf};

use retie_config::{DISGUISE_BYTES, Disguise};

use crate::error::DataError;
use crate::guarded::guarded;
use compression::{Compression, extensions};

pub use pattern::{check_distinct, expand};
pub use task::{check_symbols, generated, token_places};
pub use text::read_text;

pub(crate) use task::{check_generated, contents as task_contents};

/// Field or column that holds the text unless another is named.
pub const DEFAULT_TEXT_FIELD: &str = "text";

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its text, possibly empty.
    pub text: String,
    /// How far into the file reading has come with it, in bytes; for progress.
    pub bytes_read: u64,
}

/// A file format: opens a file and gives its documents.
struct Format {
    extension: &'static str,
    /// Whether a file may be compressed.
    compressed: bool,
    open: Open,
    /// Opens a file of conversations, whose documents are their messages as JSON.
    conversations: Option<Open>,
}

/// Opens a file, given the name of its text column.
type Open = fn(&Path, &str) -> Result<Inner, DataError>;

type Inner = Box<dyn Iterator<Item = Result<Document, DataError>> + Send>;

/// Every format that can be read.
const FORMATS: &[Format] = &[
    Format { extension: "jsonl", compressed: true, open: jsonl::open, conversations: Some(jsonl::open_conversations) },
    Format { extension: "txt", compressed: true, open: text::open, conversations: None },
    Format { extension: "parquet", compressed: false, open: parquet::open, conversations: Some(messages::open) },
    Format { extension: "arrow", compressed: false, open: arrow::open, conversations: None },
    Format { extension: "feather", compressed: false, open: arrow::open, conversations: None },
    Format { extension: TOKENS, compressed: false, open: no_text, conversations: None },
];

/// Extension of the files that `retie tokenize` makes.
const TOKENS: &str = "tokens";

fn no_text(path: &Path, _: &str) -> Result<Inner, DataError> {
    Err(DataError::NoText { path: path.to_owned() })
}

/// Whether a file of this name holds tokens, and no text.
pub(crate) fn is_tokens(path: &Path) -> bool {
    format_of(path).is_ok_and(|format| format.extension == TOKENS)
}

fn format_of(path: &Path) -> Result<&'static Format, DataError> {
    let (extension, compression) = extensions(path);
    let fits = |format: &&Format| {
        extension.as_deref() == Some(format.extension) && (format.compressed || compression.is_none())
    };
    FORMATS.iter().find(fits).ok_or_else(|| {
        let compressed = Compression::ALL.map(|(name, _)| format!(".{name}")).join("|");
        let name = |format: &Format| match format.compressed {
            true => format!(".{}[{compressed}]", format.extension),
            false => format!(".{}", format.extension),
        };
        DataError::UnknownExtension { path: path.to_owned(), supported: FORMATS.iter().map(name).collect() }
    })
}

/// Whether a file of this name has a document a row, and is not one document.
pub fn has_rows(path: &Path) -> bool {
    generated(path).is_some() || format_of(path).is_ok_and(|format| format.extension != "txt")
}

/// Bytes that reading the documents of `path` goes through, for progress.
///
/// # Errors
/// There is no such file or task.
pub(crate) fn document_bytes(path: &Path) -> Result<u64, DataError> {
    match generated(path) {
        Some(spec) => Ok(task::bytes(&spec?)),
        None => Ok(fs_err::metadata(path)?.len()),
    }
}

/// Format and compression of a file of this name.
pub(crate) fn encoding(path: &Path) -> String {
    if generated(path).is_some() {
        return "task".to_owned();
    }
    let (extension, compression) = extensions(path);
    format!("{} {compression:?}", extension.unwrap_or_default())
}

/// Documents of one file, in the file's order. Stops at the first error.
pub struct Documents {
    path: PathBuf,
    inner: Inner,
    any_text: bool,
    done: bool,
}

impl Iterator for Documents {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let inner = &mut self.inner;
        let next = guarded(|| inner.next())
            .unwrap_or_else(|message| Some(Err(DataError::Unparseable { path: self.path.clone(), message })));
        match next {
            Some(Ok(document)) => {
                self.any_text |= !document.text.is_empty();
                Some(Ok(document))
            }
            Some(Err(error)) => {
                self.done = true;
                Some(Err(error))
            }
            None => {
                self.done = true;
                (!self.any_text).then(|| Err(DataError::Empty { path: self.path.clone() }))
            }
        }
    }
}

/// Opens `path`; `text_field` names the JSON field or parquet column that holds the text (`.txt`
/// has none).
///
/// # Errors
/// A file that is not there or cannot be read, an unknown extension, a parquet file without the
/// column. The iterator gives the errors of single rows, and an error at the end where no row had
/// any text.
pub fn documents(path: &Path, text_field: &str) -> Result<Documents, DataError> {
    let inner = match generated(path) {
        Some(spec) => task::open(spec?),
        None => {
            check_file(path)?;
            check_start(path)?;
            let open = format_of(path)?.open;
            opened(path, || open(path, text_field))?
        }
    };
    Ok(Documents { path: path.to_owned(), inner, any_text: false, done: false })
}

/// What `open` gives, or the error that names `path` where its parser panics.
fn opened(path: &Path, open: impl FnOnce() -> Result<Inner, DataError>) -> Result<Inner, DataError> {
    guarded(open).map_err(|message| DataError::Unparseable { path: path.to_owned(), message })?
}

/// Opens `path`, a file of conversations in the field `field`: its documents are the messages of a
/// row as JSON, an array of objects.
///
/// # Errors
/// As [`documents`], and a format that has no conversations.
pub fn conversations(path: &Path, field: &str) -> Result<Documents, DataError> {
    check_file(path)?;
    check_start(path)?;
    let none = || DataError::NoConversations { path: path.to_owned() };
    let open = format_of(path)?.conversations.ok_or_else(none)?;
    let inner = opened(path, || open(path, field))?;
    Ok(Documents { path: path.to_owned(), inner, any_text: false, done: false })
}

/// The text of `path` as one string: the texts of its rows with blank lines between, or the whole
/// file where it has no rows.
///
/// # Errors
/// As [`documents`] and [`read_text`].
pub fn joined_text(path: &Path) -> Result<String, DataError> {
    if !has_rows(path) {
        return read_text(path);
    }
    let texts = documents(path, DEFAULT_TEXT_FIELD)?.map(|document| Ok(document?.text));
    Ok(texts.collect::<Result<Vec<_>, DataError>>()?.join("\n\n"))
}

/// Checks, without reading text, that all of `paths` are files of a known format, and that there is
/// one.
///
/// # Errors
/// Lists every bad path.
pub fn check_files(paths: &[PathBuf]) -> Result<(), DataError> {
    if paths.is_empty() {
        return Err(DataError::NoFiles);
    }
    let check = |path: &PathBuf| match generated(path) {
        Some(spec) => spec.err(),
        None => check_file(path).and_then(|()| format_of(path).map(|_| ())).err(),
    };
    let mut errors: Vec<DataError> = paths.iter().filter_map(check).collect();
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(DataError::Files(errors)),
    }
}

/// Refuses a file that is not what its name says.
fn check_start(path: &Path) -> Result<(), DataError> {
    let mut start = Vec::new();
    fs_err::File::open(path)?.take(DISGUISE_BYTES as u64).read_to_end(&mut start)?;
    let (extension, compression) = extensions(path);
    if let Some(compression) = compression {
        compression.check(path, &start)?;
    }
    let is_expected = |found: &Disguise| match found {
        Disguise::Gzip => compression == Some(Compression::Gzip),
        Disguise::Zstandard => compression == Some(Compression::Zstandard),
        // A text may be a page or begin like a message.
        Disguise::WebPage | Disguise::HubMessage => extension.as_deref() == Some("txt") || !has_rows(path),
        _ => false,
    };
    match Disguise::of(&start).filter(|found| !is_expected(found)) {
        Some(found) => Err(DataError::Disguised { path: path.to_owned(), found }),
        None => Ok(()),
    }
}

fn check_file(path: &Path) -> Result<(), DataError> {
    let not_a_file = |problem| DataError::NotAFile { path: path.to_owned(), problem };
    match fs_err::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(not_a_file("is a folder")),
        Ok(metadata) if !metadata.is_file() => Err(not_a_file("is a pipe or a device, expected a file")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(not_a_file("does not exist")),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_extension_lists_the_known_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        fs_err::write(&path, "x").unwrap();
        let message = documents(&path, "text").err().unwrap().to_string();
        let supported = ".jsonl[.gz|.zst], .txt[.gz|.zst], .parquet, .arrow, .feather, .tokens";
        assert!(
            message.contains(&format!("has an unknown extension, expected one of: {supported}\nhint: ")),
            "{message}"
        );
        for name in ["a.parquet.gz", "a.gz", "jsonl.zst", "b"] {
            assert!(matches!(format_of(Path::new(name)), Err(DataError::UnknownExtension { .. })), "{name}");
        }
        assert!(has_rows(Path::new("a.JSONL.gz")) && !has_rows(Path::new("a.txt.gz")));
    }

    #[test]
    fn a_file_that_is_not_what_its_name_says_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            fs_err::write(&path, content).unwrap();
            match documents(&path, "text").err().or_else(|| read_text(&path).err()) {
                Some(error) => error.to_string(),
                None => String::new(),
            }
        };
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        for name in ["a.jsonl", "a.jsonl.gz", "a.txt.zst", "a.parquet", "a.arrow", "a.txt"] {
            assert!(message(name, pointer).contains(&format!("{name}` is a Git LFS pointer")), "{name}");
        }
        assert!(message("b.jsonl", b"\x1f\x8b\x08").contains("compressed with gzip\nhint: name it `.gz`"));
        assert!(message("b.jsonl.gz", b"\x28\xb5\x2f\xfd").contains("compressed with Zstandard"));
        assert!(
            message("c.jsonl.gz", b"{\"text\"")
                .contains("is not compressed with gzip, as its name says\nhint: take `.gz`")
        );
        assert!(message("c.txt.zst", b"plain").contains("is not compressed with Zstandard"));
        // A frame of `zstd -D`: its header states the number of the dictionary.
        let with_dictionary = b"\x28\xb5\x2f\xfd\x23\x39\x30\x00\x00\x02\x01\x00\x00";
        assert!(
            message("d.jsonl.zst", with_dictionary)
                .contains("with the Zstandard dictionary 12345, which is another file")
        );
        assert!(message("b.parquet", b"<!DOCTYPE html>").contains("is a web page"));
        assert_eq!(message("page.txt", b"<!DOCTYPE html>"), "");
        assert!(message("c.txt", b"\xff\xfea\0").contains("is UTF-16 text\nhint: save it as UTF-8"));
        let hint = |name: &str| DataError::UnknownExtension { path: name.into(), supported: vec![] }.to_string();
        assert!(hint("a.json").contains("`jq -c '.[]'`") && hint("a.jsonl.xz").contains("`unxz`"));
    }

    #[test]
    fn all_bad_files_are_reported_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let good = folder.path().join("a.TXT");
        fs_err::write(&good, "x").unwrap();
        let missing = folder.path().join("b.txt");
        let message = check_files(&[good.clone(), missing.clone(), folder.path().to_owned()]).unwrap_err().to_string();
        let lines: Vec<&str> = message.lines().collect();
        assert_eq!(lines.len(), 3, "{message}");
        assert_eq!(lines[0], "2 data files cannot be used:");
        assert!(lines[1].ends_with("b.txt` does not exist"), "{message}");
        assert!(lines[2].ends_with("is a folder"), "{message}");
        #[cfg(unix)]
        assert!(
            check_files(&["/dev/null".into()])
                .unwrap_err()
                .to_string()
                .ends_with("is a pipe or a device, expected a file")
        );
        assert!(check_files(&[good]).is_ok());
        assert!(matches!(check_files(&[]), Err(DataError::NoFiles)));
    }

    #[test]
    fn rows_are_joined_and_other_files_are_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let [rows, raw] = ["a.jsonl", "a.raw"].map(|name| folder.path().join(name));
        fs_err::write(&rows, "{\"text\": \"a\"}\n{\"text\": \"b\"}\n").unwrap();
        fs_err::write(&raw, "{\"text\"").unwrap();
        assert_eq!(joined_text(&rows).unwrap(), "a\n\nb");
        assert_eq!(joined_text(&raw).unwrap(), "{\"text\"");
    }

    #[test]
    fn a_file_whose_rows_are_all_empty_holds_no_text() {
        let folder = tempfile::tempdir().unwrap();
        for content in ["", "\n\n", "{\"text\": \"\"}\n{\"text\": \"\"}"] {
            let path = folder.path().join("a.jsonl");
            fs_err::write(&path, content).unwrap();
            let last = documents(&path, "text").unwrap().last().unwrap();
            assert!(matches!(last, Err(DataError::Empty { .. })), "{content:?} gave {last:?}");
        }
    }
}
