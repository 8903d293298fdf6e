//! `.parquet`: one string column, read row group by row group. Only the pages of that column are
//! read.

use std::path::Path;

use ::parquet::basic::Type as PhysicalType;
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::FileReader;
use ::parquet::schema::types::ColumnDescriptor;

use super::{Document, Inner};
use crate::error::{DataError, Place};
use crate::parquet_file::{ParquetFile, ROWS_PER_READ};

pub(super) fn open(path: &Path, text_field: &str) -> Result<Inner, DataError> {
    let file = ParquetFile::open(path)?;
    let place = Place { path: path.to_owned(), part: None };
    let Some(column) = file.columns().iter().position(|column| column.path().string() == text_field) else {
        let found = file.column_names();
        return Err(DataError::MissingField { place, kind: "column", field: text_field.to_owned(), found });
    };
    if let Some(found) = not_a_string(&file.columns()[column]) {
        return Err(DataError::NotAString { place, field: text_field.to_owned(), found, expected: "a string" });
    }
    file.check_codecs([column])?;
    Ok(Box::new(ParquetRows {
        text_field: text_field.to_owned(),
        column,
        max_def_level: file.columns()[column].max_def_level(),
        file,
        row_group: 0,
        values: None,
        row: 0,
        ready: Vec::new().into_iter(),
    }))
}

fn not_a_string(column: &ColumnDescriptor) -> Option<String> {
    if column.max_rep_level() > 0 {
        return Some("a list column".to_owned());
    }
    match column.physical_type() {
        PhysicalType::BYTE_ARRAY => None,
        other => Some(format!("a column of type {other}")),
    }
}

struct ParquetRows {
    file: ParquetFile,
    text_field: String,
    column: usize,
    /// That of a value that is there; 0 where none is null.
    max_def_level: i16,
    /// The next row group to open.
    row_group: usize,
    values: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Rows given so far.
    row: u64,
    /// Decoded rows: `None` is null.
    ready: std::vec::IntoIter<Option<ByteArray>>,
}

impl Iterator for ParquetRows {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

impl ParquetRows {
    fn next_row(&mut self) -> Result<Option<Document>, DataError> {
        loop {
            if let Some(value) = self.ready.next() {
                self.row += 1;
                return self.document(value).map(Some);
            }
            if !self.read_more().map_err(|source| self.file.error(source))? {
                return Ok(None);
            }
        }
    }

    fn document(&self, value: Option<ByteArray>) -> Result<Document, DataError> {
        let place = || Place { path: self.file.path().to_owned(), part: Some(("row", self.row)) };
        let Some(value) = value else {
            return Err(DataError::NotAString {
                place: place(),
                field: self.text_field.clone(),
                found: "null".to_owned(),
                expected: "a string",
            });
        };
        let text = std::str::from_utf8(value.data()).map_err(|error| DataError::NotUtf8 {
            place: place(),
            offset: error.valid_up_to() as u64,
            unit: "value",
        })?;
        Ok(Document { text: text.to_owned(), bytes_read: self.file.bytes_read(self.row) })
    }

    /// Decodes some rows into `ready`; false at the end of the file.
    fn read_more(&mut self) -> Result<bool, ParquetError> {
        loop {
            let Some(values) = &mut self.values else {
                if self.row_group == self.file.num_row_groups() {
                    return Ok(false);
                }
                self.values = Some(self.file.strings(self.row_group, self.column)?);
                self.row_group += 1;
                continue;
            };
            let nullable = self.max_def_level > 0;
            let mut present = Vec::new();
            let mut levels = Vec::new();
            let (rows, _, _) =
                values.read_records(ROWS_PER_READ, nullable.then_some(&mut levels), None, &mut present)?;
            if rows == 0 {
                self.values = None;
                continue;
            }
            self.ready = if nullable {
                let mut present = present.into_iter();
                let of_level = |level| if level == self.max_def_level { present.next() } else { None };
                levels.into_iter().map(of_level).collect::<Vec<_>>().into_iter()
            } else {
                present.into_iter().map(Some).collect::<Vec<_>>().into_iter()
            };
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    // Written by pyarrow: see tests/golden/make_parquet.py.
    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
    }

    fn texts(name: &str, field: &str) -> Result<Vec<String>, DataError> {
        crate::documents(&golden(name), field)?.map(|document| Ok(document?.text)).collect()
    }

    #[test]
    fn rows_come_in_order_across_row_groups_and_encodings() {
        let expected: Vec<String> = (0..700).map(|row| format!("row {row} {}é", "ab ".repeat(row % 7))).collect();
        let codecs = ["gzip.parquet", "brotli.parquet", "lz4.parquet"];
        for name in ["snappy.parquet", "zstd_v2.parquet", "plain_required.parquet"].into_iter().chain(codecs) {
            assert_eq!(texts(name, "text").unwrap(), expected, "{name}");
        }
        let last = crate::documents(&golden("snappy.parquet"), "text").unwrap().last().unwrap().unwrap();
        assert_eq!(last.bytes_read, fs_err::metadata(golden("snappy.parquet")).unwrap().len());
    }

    #[test]
    fn a_field_of_a_struct_is_named_with_a_dot() {
        assert_eq!(texts("mixed.parquet", "meta.title").unwrap(), ["t0", "t1", "t2"]);
    }

    #[test]
    fn a_missing_column_lists_the_columns_of_the_file() {
        let message = texts("mixed.parquet", "text").unwrap_err().to_string();
        assert!(
            message.contains("has no column `text`, found: `id`, `body`, `meta.title`, `tags.list.element`"),
            "{message}"
        );
    }

    #[test]
    fn columns_that_are_not_strings_and_null_rows_are_errors() {
        let message = |field| texts("mixed.parquet", field).unwrap_err().to_string();
        assert!(message("id").ends_with("has a column of type INT64 in `id`, expected a string"), "{}", message("id"));
        assert!(message("tags.list.element").contains("a list column"));
        let null = message("body");
        assert!(null.starts_with("row 2 of `") && null.ends_with("has null in `body`, expected a string"), "{null}");
    }

    #[test]
    fn bytes_that_are_not_parquet_or_not_text_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        fs_err::write(&path, "not parquet, but long enough").unwrap();
        assert!(matches!(crate::documents(&path, "text"), Err(DataError::Parquet { .. })));
        fs_err::write(&path, "").unwrap();
        assert!(matches!(crate::documents(&path, "text"), Err(DataError::Empty { .. })));
        let message = texts("binary.parquet", "text").unwrap_err().to_string();
        assert!(message.starts_with("row 2 of `") && message.contains("offset 3 of the value"), "{message}");
    }

    // Found by `scripts/fuzz`: a column that begins before the file.
    #[test]
    fn a_file_on_which_the_parser_panics_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        fs_err::write(&path, include_bytes!("../../../fuzz/corpus/parquet/found_negative")).unwrap();
        let documents = crate::documents(&path, "text");
        let error = documents.and_then(|documents| documents.collect::<Result<Vec<_>, _>>()).unwrap_err();
        assert!(matches!(error, DataError::Unparseable { .. }), "{error}");
    }

    // Found by `scripts/fuzz`: a dictionary of 1.4 billion values in a file of 282 bytes, and lists
    // of as many booleans that no field is, to which numbers of another type than their field's
    // lead.
    #[test]
    fn files_that_would_take_memory_or_time_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        for bytes in [
            include_bytes!("../../../fuzz/corpus/parquet/found_dictionary").as_slice(),
            include_bytes!("../../../fuzz/corpus/parquet/found_list"),
            include_bytes!("../../../fuzz/corpus/parquet/found_field"),
        ] {
            fs_err::write(&path, bytes).unwrap();
            let documents = crate::documents(&path, "text");
            let error = documents.and_then(|documents| documents.collect::<Result<Vec<_>, _>>()).unwrap_err();
            let DataError::Parquet { source, .. } = error else { panic!("{error}") };
            assert!(source.to_string().contains("that the format gives type"), "{source}");
        }
    }
}
