//! `.parquet`: one string column, read row group by row group
//! (<https://parquet.apache.org/docs/file-format/>).
//!
//! Only the pages of that column are read. Compression: every codec of the format but LZO, which no
//! writer of today has.

mod pages;

use std::path::{Path, PathBuf};

use ::parquet::basic::{Compression, Type as PhysicalType};
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::ByteArrayType;
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::schema::types::ColumnDescriptor;

use self::pages::CheckedPages;
use super::{Document, Inner};
use crate::error::{DataError, Place};

/// ParquetRows decoded at a time: enough to spread the cost of a call, few enough that long texts
/// fit.
const ROWS_PER_READ: usize = 256;

pub(super) fn open(path: &Path, text_field: &str) -> Result<Inner, DataError> {
    let file = fs_err::File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes == 0 {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    let wrap = |source| DataError::Parquet { path: path.to_owned(), source };
    let reader = SerializedFileReader::new(file.into_file()).map_err(wrap)?;
    let metadata = reader.metadata().file_metadata();
    let columns = metadata.schema_descr().columns();
    let place = Place { path: path.to_owned(), part: None };
    let Some(column) = columns.iter().position(|column| column.path().string() == text_field) else {
        return Err(DataError::MissingField {
            place,
            kind: "column",
            field: text_field.to_owned(),
            found: columns.iter().map(|column| column.path().string()).collect(),
        });
    };
    if let Some(found) = not_a_string(&columns[column]) {
        return Err(DataError::NotAString { place, field: text_field.to_owned(), found, expected: "a string" });
    }
    let groups = reader.metadata().row_groups();
    if let Some(codec) = groups.iter().map(|group| group.column(column).compression()).find(|codec| !is_read(*codec)) {
        return Err(DataError::ParquetCodec { path: path.to_owned(), codec: codec.to_string() });
    }
    let num_rows = u64::try_from(metadata.num_rows()).unwrap_or(0);
    Ok(Box::new(ParquetRows {
        path: path.to_owned(),
        text_field: text_field.to_owned(),
        column,
        nullable: columns[column].max_def_level() > 0,
        max_def_level: columns[column].max_def_level(),
        bytes,
        num_rows,
        reader,
        row_group: 0,
        values: None,
        row: 0,
        ready: Vec::new().into_iter(),
    }))
}

fn is_read(codec: Compression) -> bool {
    use Compression::{BROTLI, GZIP, LZ4, LZ4_RAW, SNAPPY, UNCOMPRESSED, ZSTD};
    matches!(codec, UNCOMPRESSED | SNAPPY | GZIP(_) | BROTLI(_) | LZ4 | LZ4_RAW | ZSTD(_))
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
    path: PathBuf,
    text_field: String,
    column: usize,
    nullable: bool,
    max_def_level: i16,
    /// Size of the file.
    bytes: u64,
    num_rows: u64,
    reader: SerializedFileReader<std::fs::File>,
    /// The next row group to open.
    row_group: usize,
    values: Option<ColumnReaderImpl<ByteArrayType>>,
    /// ParquetRows given so far.
    row: u64,
    /// Decoded rows: `None` is null.
    ready: std::vec::IntoIter<Option<::parquet::data_type::ByteArray>>,
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
            let more = self.read_more();
            if !more.map_err(|source| DataError::Parquet { path: self.path.clone(), source })? {
                return Ok(None);
            }
        }
    }

    fn document(&self, value: Option<::parquet::data_type::ByteArray>) -> Result<Document, DataError> {
        let place = || Place { path: self.path.clone(), part: Some(("row", self.row)) };
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
        // ParquetRows do not say where they lie: progress takes them to be of equal size.
        let bytes_read = u128::from(self.bytes) * u128::from(self.row) / u128::from(self.num_rows.max(1));
        Ok(Document { text: text.to_owned(), bytes_read: u64::try_from(bytes_read).unwrap_or(self.bytes) })
    }

    /// Decodes some rows into `ready`; false at the end of the file.
    fn read_more(&mut self) -> Result<bool, ParquetError> {
        loop {
            let Some(values) = &mut self.values else {
                if self.row_group == self.reader.num_row_groups() {
                    return Ok(false);
                }
                let pages = self.reader.get_row_group(self.row_group)?.get_column_page_reader(self.column)?;
                let pages = CheckedPages::new(pages, self.max_def_level);
                let column = self.reader.metadata().file_metadata().schema_descr().column(self.column);
                self.values = Some(ColumnReaderImpl::new(column, Box::new(pages)));
                self.row_group += 1;
                continue;
            };
            let mut present = Vec::new();
            let mut levels = Vec::new();
            let levels_or_none = self.nullable.then_some(&mut levels);
            let (rows, _, _) = values.read_records(ROWS_PER_READ, levels_or_none, None, &mut present)?;
            if rows == 0 {
                self.values = None;
                continue;
            }
            self.ready = if self.nullable {
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
        fs_err::write(&path, include_bytes!("../../../../fuzz/corpus/parquet/found_negative")).unwrap();
        let documents = crate::documents(&path, "text");
        let error = documents.and_then(|documents| documents.collect::<Result<Vec<_>, _>>()).unwrap_err();
        assert!(matches!(error, DataError::Unparseable { .. }), "{error}");
    }

    // Found by `scripts/fuzz`: a dictionary of 1.4 billion values in a file of 282 bytes.
    #[test]
    fn a_dictionary_that_is_larger_than_its_page_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        fs_err::write(&path, include_bytes!("../../../../fuzz/corpus/parquet/found_dictionary")).unwrap();
        let documents = crate::documents(&path, "text").unwrap();
        let error = documents.collect::<Result<Vec<_>, _>>().unwrap_err();
        assert!(
            matches!(&error, DataError::Parquet { source, .. } if source.to_string().contains("values")),
            "{error}"
        );
    }
}
