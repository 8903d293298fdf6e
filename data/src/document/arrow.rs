//! `.arrow` and `.feather`: one string column of Arrow's IPC format
//! (<https://arrow.apache.org/docs/format/Columnar.html>), read a record batch at a time. It is the
//! file format where the file begins with `ARROW1`, which is also version 2 of Feather, else the
//! streaming format, in which the `datasets` library keeps its tables. Buffers may be compressed
//! with LZ4 or Zstandard.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType, Fields, SchemaRef};

use super::arrow_lengths::Lengths;
use super::compression::Counted;
use super::{Document, Inner};
use crate::error::{DataError, Place};

/// First bytes of the file format and of version 1 of Feather.
const FILE_MAGIC: &[u8] = b"ARROW1";
const FEATHER_1_MAGIC: &[u8] = b"FEA1";

/// Record batches, each with how far reading has come in the file, in bytes.
type Batches = Box<dyn Iterator<Item = Result<(RecordBatch, u64), ArrowError>> + Send>;

pub(super) fn open(path: &Path, text_field: &str) -> Result<Inner, DataError> {
    let mut file = fs_err::File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes == 0 {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    let wrap = |source| DataError::Arrow { path: path.to_owned(), source };
    let mut magic = Vec::new();
    file.by_ref().take(FILE_MAGIC.len() as u64).read_to_end(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    if magic.starts_with(FEATHER_1_MAGIC) {
        return Err(wrap(ArrowError::ParseError("it is version 1 of Feather, expected version 2".to_owned())));
    }
    let is_file = magic == FILE_MAGIC;
    let mut lengths = Lengths::new(&mut file, bytes);
    if is_file { lengths.check_file() } else { lengths.check_stream() }.map_err(wrap)?;
    file.seek(SeekFrom::Start(0))?;
    // The schema says which column is read; then only that one is.
    let schema = if is_file {
        FileReader::try_new_buffered(file.try_clone()?.into_file(), None).map_err(wrap)?.schema()
    } else {
        StreamReader::try_new_buffered(file.try_clone()?.into_file(), None).map_err(wrap)?.schema()
    };
    file.seek(SeekFrom::Start(0))?;
    let steps = column(&schema, path, text_field)?;
    let projection = Some(vec![steps[0]]);
    let batches = match is_file {
        true => in_file(file.into_file(), bytes, projection),
        false => in_stream(file, projection),
    };
    Ok(Box::new(ArrowRows {
        path: path.to_owned(),
        text_field: text_field.to_owned(),
        inner: steps[1..].to_vec(),
        batches: batches.map_err(wrap)?,
        row: 0,
        ready: Vec::new().into_iter(),
        position: 0,
    }))
}

fn in_file(file: File, bytes: u64, projection: Option<Vec<usize>>) -> Result<Batches, ArrowError> {
    let reader = FileReader::try_new_buffered(file, projection)?;
    let count = reader.num_batches().max(1) as u128;
    // Batches do not say where they lie: progress takes them to be of equal size.
    let end = move |index: usize| u64::try_from(u128::from(bytes) * (index as u128 + 1) / count).unwrap_or(bytes);
    Ok(Box::new(reader.enumerate().map(move |(index, batch)| Ok((batch?, end(index))))))
}

fn in_stream(file: fs_err::File, projection: Option<Vec<usize>>) -> Result<Batches, ArrowError> {
    let taken = Arc::new(AtomicU64::new(0));
    let counted = BufReader::new(Counted { file, taken: taken.clone() });
    let reader = StreamReader::try_new(counted, projection)?;
    Ok(Box::new(reader.map(move |batch| Ok((batch?, taken.load(Ordering::Relaxed))))))
}

/// The number of the column, then those of fields of structs in it.
fn column(schema: &SchemaRef, path: &Path, text_field: &str) -> Result<Vec<usize>, DataError> {
    let place = || Place { path: path.to_owned(), part: None };
    let mut paths = Vec::new();
    list(schema.fields(), &mut Vec::new(), "", &mut paths);
    let Some((_, steps, data_type)) = paths.iter().find(|(name, ..)| name == text_field) else {
        let found = paths.into_iter().map(|(name, ..)| name).collect();
        return Err(DataError::MissingField { place: place(), kind: "column", field: text_field.to_owned(), found });
    };
    let of_values = match data_type {
        DataType::Dictionary(_, of_values) => of_values.as_ref(),
        plain => plain,
    };
    match of_values {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(steps.clone()),
        _ => Err(DataError::NotAString {
            place: place(),
            field: text_field.to_owned(),
            found: format!("a column of type {data_type}"),
            expected: "a string",
        }),
    }
}

/// Every field that is no struct, by its names with dots between them.
fn list(fields: &Fields, steps: &mut Vec<usize>, prefix: &str, paths: &mut Vec<(String, Vec<usize>, DataType)>) {
    for (index, field) in fields.iter().enumerate() {
        steps.push(index);
        let name = format!("{prefix}{}", field.name());
        match field.data_type() {
            DataType::Struct(inner) => list(inner, steps, &format!("{name}."), paths),
            other => paths.push((name, steps.clone(), other.clone())),
        }
        steps.pop();
    }
}

struct ArrowRows {
    path: PathBuf,
    text_field: String,
    /// Fields of structs, from the column on.
    inner: Vec<usize>,
    batches: Batches,
    /// ArrowRows given so far.
    row: u64,
    /// ArrowRows of a batch: `None` is null.
    ready: std::vec::IntoIter<Option<String>>,
    position: u64,
}

impl Iterator for ArrowRows {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(value) = self.ready.next() {
                self.row += 1;
                return Some(self.document(value));
            }
            match self.batches.next()? {
                Ok((batch, position)) => {
                    self.position = position;
                    self.ready = texts(&batch, &self.inner).into_iter();
                }
                Err(source) => return Some(Err(DataError::Arrow { path: self.path.clone(), source })),
            }
        }
    }
}

impl ArrowRows {
    fn document(&self, value: Option<String>) -> Result<Document, DataError> {
        match value {
            Some(text) => Ok(Document { text, bytes_read: self.position }),
            None => Err(DataError::NotAString {
                place: Place { path: self.path.clone(), part: Some(("row", self.row)) },
                field: self.text_field.clone(),
                found: "null".to_owned(),
                expected: "a string",
            }),
        }
    }
}

/// The values of the only column of a batch. A field of a null is null.
fn texts(batch: &RecordBatch, inner: &[usize]) -> Vec<Option<String>> {
    let mut array: &dyn Array = batch.column(0);
    let mut present = vec![true; array.len()];
    let mut look = |array: &dyn Array| (0..array.len()).for_each(|row| present[row] &= array.is_valid(row));
    look(array);
    for field in inner {
        array = array.as_struct().column(*field);
        look(array);
    }
    let rows = present.iter().enumerate();
    match array.as_any_dictionary_opt() {
        None => rows.map(|(row, present)| present.then(|| string(array, row).to_owned())).collect(),
        // Each string once, and for each row its number; without a string every row is null.
        Some(dictionary) if dictionary.values().is_empty() => vec![None; array.len()],
        Some(dictionary) => {
            let (values, numbers) = (dictionary.values().as_ref(), dictionary.normalized_keys());
            let number = |row: usize| numbers.get(row).copied().filter(|number| values.is_valid(*number));
            let of_row = |row: usize| number(row).map(|number| string(values, number).to_owned());
            rows.map(|(row, present)| present.then(|| of_row(row)).flatten()).collect()
        }
    }
}

/// A string of an array of strings.
fn string(array: &dyn Array, index: usize) -> &str {
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(index),
        DataType::LargeUtf8 => array.as_string::<i64>().value(index),
        _ => array.as_string_view().value(index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Written by pyarrow: see tests/golden/make_arrow.py.
    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
    }

    fn texts(path: &Path, field: &str) -> Result<Vec<String>, DataError> {
        crate::documents(path, field)?.map(|document| Ok(document?.text)).collect()
    }

    /// Files of the three kinds of strings, in the file format with each compression and in the
    /// streaming format.
    const FILES: [&str; 4] = ["plain.arrow", "lz4.feather", "zstd.arrow", "stream.arrow"];

    #[test]
    fn rows_come_in_order_across_batches_formats_and_kinds_of_strings() {
        let expected: Vec<String> = (0..300).map(|row| format!("row {row} {}é", "ab ".repeat(row % 7))).collect();
        for name in FILES {
            for field in ["text", "large", "view", "meta.title"] {
                assert_eq!(texts(&golden(name), field).unwrap(), expected, "{name}, {field}");
            }
            let rows: Vec<_> = crate::documents(&golden(name), "text").unwrap().map(Result::unwrap).collect();
            assert!(rows.is_sorted_by_key(|row| row.bytes_read) && rows[0].bytes_read > 0);
            let bytes = fs_err::metadata(golden(name)).unwrap().len();
            assert!(rows[299].bytes_read <= bytes && rows[299].bytes_read > bytes / 2, "{name}");
        }
    }

    #[test]
    fn strings_that_a_dictionary_holds_once_are_read_and_null_rows_are_errors() {
        let expected: Vec<String> = (0..300).map(|row| format!("row {} é", row % 7)).collect();
        assert_eq!(texts(&golden("dictionary.arrow"), "text").unwrap(), expected);
        let message = |field| texts(&golden("dictionary.arrow"), field).unwrap_err().to_string();
        assert!(message("some").starts_with("row 2 of `"), "{}", message("some"));
        assert!(message("none").starts_with("row 1 of `"), "{}", message("none"));
        assert!(message("number").contains("a column of type Dictionary(Int32, Int64)"), "{}", message("number"));
    }

    #[test]
    fn columns_that_are_missing_or_no_strings_and_null_rows_are_errors() {
        for name in FILES {
            let message = |field| texts(&golden(name), field).unwrap_err().to_string();
            let missing = message("body");
            let found = "has no column `body`, found: `id`, `text`, `large`, `view`, `meta.title`, `meta.note`";
            assert!(missing.contains(found), "{missing}");
            assert!(
                message("id").ends_with("has a column of type Int64 in `id`, expected a string"),
                "{}",
                message("id")
            );
            // In the second row the field is null, in the first the struct that it is in.
            let null = message("meta.note");
            assert!(
                null.starts_with("row 2 of `") && null.ends_with("has null in `meta.note`, expected a string"),
                "{null}"
            );
        }
    }

    #[test]
    fn damaged_and_other_files_are_errors_that_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.arrow");
        for name in FILES {
            let whole = fs_err::read(golden(name)).unwrap();
            for length in [1, 7, 40, whole.len() / 2, whole.len() - 9] {
                fs_err::write(&path, &whole[..length]).unwrap();
                let result = texts(&path, "text");
                // A stream that ends without its mark is read to its end.
                let cut_mark = name == "stream.arrow" && length == whole.len() - 9;
                assert!(
                    cut_mark || matches!(result, Err(DataError::Arrow { .. })),
                    "{name}, {length} bytes: {result:?}"
                );
            }
        }
        fs_err::write(&path, "FEA1 and so on").unwrap();
        let error = texts(&path, "text").unwrap_err();
        assert!(error.to_string().ends_with("a.arrow` cannot be read as Arrow IPC"), "{error}");
        fs_err::write(&path, "").unwrap();
        assert!(matches!(texts(&path, "text"), Err(DataError::Empty { .. })));
    }

    // Found by `scripts/fuzz`: a buffer that is longer than the file; arrow's reader panics on it.
    #[test]
    fn a_length_beyond_the_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.arrow");
        fs_err::write(&path, include_bytes!("../../../fuzz/corpus/arrow/found_length")).unwrap();
        let error = texts(&path, "text").unwrap_err();
        assert!(error.to_string().contains("a.arrow` cannot be read as Arrow IPC"), "{error}");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("the file is damaged"), "{source}");
    }
}
