//! A `.parquet` file that can be believed (<https://parquet.apache.org/docs/file-format/>): the
//! parser of `parquet` reserves memory, or counts, by what a damaged file of a few hundred bytes
//! says. Metadata, headers and pages are looked at before it sees them.
//!
//! Compression: every codec of the format but LZO, which no writer of today has.

mod format;
mod headers;
mod pages;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ::parquet::basic::Compression;
use ::parquet::bloom_filter::Sbbf;
use ::parquet::column::page::PageReader;
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::ByteArrayType;
use ::parquet::errors::ParquetError;
use ::parquet::file::FOOTER_SIZE;
use ::parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use ::parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use ::parquet::record::Row;
use ::parquet::record::reader::RowIter;
use ::parquet::schema::types::{ColumnDescPtr, Type};

use self::headers::{PageSize, check_metadata, page_size};
use self::pages::CheckedPages;
use crate::error::DataError;
use crate::guarded::guarded;

/// Rows decoded at a time: enough to spread the cost of a call, few enough that long texts fit.
pub(crate) const ROWS_PER_READ: usize = 256;

/// The end of a file that is not encrypted.
const MAGIC: &[u8] = b"PAR1";
/// Bytes that any page may have when it is decompressed, above those that its bytes allow.
const PAGE_BYTES: u64 = 64 << 20;
/// Bytes that a byte of a compressed page may become.
const BYTES_PER_BYTE: u64 = 1 << 10;

/// Values that the rows of any file may have when they are read at once, above those that its bytes
/// allow.
const CELLS: u64 = 1 << 20;
/// Values for each byte of a file.
const CELLS_PER_BYTE: u64 = 8;

/// An open file.
pub(crate) struct ParquetFile {
    path: PathBuf,
    /// Size of the file.
    bytes: u64,
    /// For the headers of pages.
    file: File,
    reader: SerializedFileReader<File>,
}

impl ParquetFile {
    /// Opens `path` and reads its metadata.
    ///
    /// # Errors
    /// No such file, an empty one, one that is no parquet file.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let mut file = fs_err::File::open(path)?.into_file();
        let bytes = file.metadata()?.len();
        if bytes == 0 {
            return Err(DataError::Empty { path: path.to_owned() });
        }
        let wrap = |source| DataError::Parquet { path: path.to_owned(), source };
        check_footer(&mut file, bytes).map_err(wrap)?;
        let reader = SerializedFileReader::new(file.try_clone()?).map_err(wrap)?;
        Ok(Self { path: path.to_owned(), bytes, file, reader })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The columns that hold values.
    pub(crate) fn columns(&self) -> &[ColumnDescPtr] {
        self.reader.metadata().file_metadata().schema_descr().columns()
    }

    /// The names of [`ParquetFile::columns`], those of a struct with dots.
    pub(crate) fn column_names(&self) -> Vec<String> {
        self.columns().iter().map(|column| column.path().string()).collect()
    }

    /// Refuses a file in which one of `columns` has a codec that is not read.
    ///
    /// # Errors
    /// Names the codec.
    pub(crate) fn check_codecs(&self, columns: impl IntoIterator<Item = usize> + Clone) -> Result<(), DataError> {
        use Compression::{BROTLI, GZIP, LZ4, LZ4_RAW, SNAPPY, UNCOMPRESSED, ZSTD};
        let groups = self.reader.metadata().row_groups().iter();
        let mut codecs =
            groups.flat_map(|group| columns.clone().into_iter().map(|column| group.column(column).compression()));
        let is_read = |codec: &Compression| {
            matches!(codec, UNCOMPRESSED | SNAPPY | GZIP(_) | BROTLI(_) | LZ4 | LZ4_RAW | ZSTD(_))
        };
        match codecs.find(|codec| !is_read(codec)) {
            Some(codec) => Err(DataError::ParquetCodec { path: self.path.clone(), codec: codec.to_string() }),
            None => Ok(()),
        }
    }

    /// The values of a column of strings in one row group.
    pub(crate) fn strings(
        &self,
        row_group: usize,
        column: usize,
    ) -> Result<ColumnReaderImpl<ByteArrayType>, ParquetError> {
        let pages = self.get_row_group(row_group)?.get_column_page_reader(column)?;
        Ok(ColumnReaderImpl::new(self.columns()[column].clone(), pages))
    }

    /// How far into the file reading has come with its first `row` rows, in bytes. Rows do not say
    /// where they lie: they are taken to be of equal size.
    pub(crate) fn bytes_read(&self, row: u64) -> u64 {
        let num_rows = u128::try_from(self.reader.metadata().file_metadata().num_rows()).unwrap_or(0);
        let bytes = u128::from(self.bytes) * u128::from(row) / num_rows.max(1);
        u64::try_from(bytes).unwrap_or(self.bytes)
    }

    fn rows(&self) -> Result<Vec<Row>, ParquetError> {
        let cells = CELLS.saturating_add(self.bytes.saturating_mul(CELLS_PER_BYTE));
        let most = cells / (self.columns().len() as u64).max(1);
        let mut rows = Vec::new();
        for row in self.get_row_iter(None)? {
            if rows.len() as u64 == most {
                return Err(general(format!("more than {most} rows in a file of {} bytes", self.bytes)));
            }
            rows.push(row?);
        }
        Ok(rows)
    }

    pub(crate) fn error(&self, source: ParquetError) -> DataError {
        DataError::Parquet { path: self.path.clone(), source }
    }

    /// Walks the headers of the pages of a column of a row group, and compares their sizes with the
    /// file's.
    fn check_pages(&self, chunk: &ColumnChunkMetaData) -> Result<(), ParquetError> {
        let (start, len) = chunk.byte_range();
        let mut reader = BufReader::new(self.file.try_clone()?);
        reader.seek(SeekFrom::Start(start))?;
        let mut left = len;
        while left > 0 {
            let size = page_size(&mut reader)?;
            left = (size.header.checked_add(size.compressed))
                .and_then(|bytes| left.checked_sub(bytes))
                .ok_or_else(|| general(format!("a page of {} bytes ends behind its column", size.compressed)))?;
            if size.uncompressed > PAGE_BYTES.saturating_add(size.compressed.saturating_mul(BYTES_PER_BYTE)) {
                let PageSize { compressed, uncompressed, .. } = size;
                return Err(general(format!("a page of {compressed} bytes says that it becomes {uncompressed}")));
            }
            reader.seek_relative(size.compressed.cast_signed())?;
        }
        Ok(())
    }
}

/// Walks the metadata at the end of a file of `bytes` bytes. What is no parquet file is left to the
/// parser, which says so.
fn check_footer(file: &mut File, bytes: u64) -> Result<(), ParquetError> {
    let Some(end) = bytes.checked_sub(FOOTER_SIZE as u64) else { return Ok(()) };
    let mut footer = [0; FOOTER_SIZE];
    file.seek(SeekFrom::Start(end))?;
    file.read_exact(&mut footer)?;
    let [len @ .., _, _, _, _] = footer;
    let len = u64::from(u32::from_le_bytes(len));
    let Some(start) = end.checked_sub(len).filter(|_| footer.ends_with(MAGIC)) else { return Ok(()) };
    let mut metadata = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.take(len).read_to_end(&mut metadata)?;
    check_metadata(&metadata)
}

impl FileReader for ParquetFile {
    fn metadata(&self) -> &ParquetMetaData {
        self.reader.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    fn get_row_group(&self, i: usize) -> Result<Box<dyn RowGroupReader + '_>, ParquetError> {
        Ok(Box::new(RowGroup { file: self, reader: self.reader.get_row_group(i)? }))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>, ParquetError> {
        RowIter::from_file(projection, self)
    }
}

/// A row group of a [`ParquetFile`].
struct RowGroup<'a> {
    file: &'a ParquetFile,
    reader: Box<dyn RowGroupReader + 'a>,
}

impl RowGroupReader for RowGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.reader.metadata()
    }

    fn num_columns(&self) -> usize {
        self.reader.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>, ParquetError> {
        self.file.check_pages(self.metadata().column(i))?;
        let pages = self.reader.get_column_page_reader(i)?;
        Ok(Box::new(CheckedPages::new(pages, self.file.columns()[i].clone())))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.reader.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>, ParquetError> {
        RowIter::from_row_group(projection, self)
    }
}

/// Every row of a file, whatever its columns are.
///
/// # Errors
/// A file that is not there, is no parquet file, is damaged or has a codec that is not read.
pub fn parquet_rows(path: &Path) -> Result<Vec<Row>, DataError> {
    let read = || {
        let file = ParquetFile::open(path)?;
        file.check_codecs(0..file.columns().len())?;
        file.rows().map_err(|source| file.error(source))
    };
    guarded(read).map_err(|message| DataError::Unparseable { path: path.to_owned(), message })?
}

fn general(message: String) -> ParquetError {
    ParquetError::General(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> Vec<u8> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        fs_err::read(golden.join(name)).unwrap()
    }

    /// Reads all of a file with these bytes.
    fn rows(bytes: &[u8]) -> Result<Vec<Row>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        fs_err::write(&path, bytes).unwrap();
        parquet_rows(&path).map_err(|error| match error {
            DataError::Parquet { source, .. } => source.to_string(),
            other => other.to_string(),
        })
    }

    /// A file whose metadata end with more fields.
    fn with_fields(bytes: &[u8], fields: &[u8]) -> Vec<u8> {
        let (before, footer) = bytes.split_at(bytes.len() - FOOTER_SIZE);
        let len = u32::from_le_bytes(*footer.first_chunk().unwrap()) + fields.len() as u32;
        let (stop, before) = before.split_last().unwrap();
        assert_eq!(*stop, 0);
        [before, fields, &[0], &len.to_le_bytes(), MAGIC].concat()
    }

    #[test]
    fn every_column_is_read_whatever_its_type() {
        let read = rows(&golden("mixed.parquet")).unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0].to_string(), "{id: 0, body: \"a\", meta: {title: \"t0\"}, tags: [\"x\"]}",);
        assert_eq!(rows(&golden("chats.parquet")).unwrap().len(), 8);
    }

    // A number of rows is not believed: optional values are null without end.
    #[test]
    fn metadata_that_would_cost_turns_without_bytes_are_refused() {
        let file = golden("mixed.parquet");
        // Field 40: three 64-bit numbers, which are passed over.
        assert_eq!(rows(&with_fields(&file, &[0x09, 80, 0x36, 2, 4, 6])).unwrap().len(), 3);
        let booleans = with_fields(&file, &[0x09, 80, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07]);
        assert!(rows(&booleans).unwrap_err().contains("a list of 2147483647 booleans"));
        // Field 6 is the name of the program that wrote the file.
        let other_type = with_fields(&file, &[0x09, 12, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07]);
        assert!(rows(&other_type).unwrap_err().contains("a field of type 9 that the format gives type 8"));
    }

    #[test]
    fn pages_that_leave_their_column_are_refused() {
        let file = golden("plain_required.parquet");
        // The header of the first page: type 0, then its size out of compression and in the file.
        let page = &file[MAGIC.len()..];
        assert_eq!(&page[..3], &[0x15, 0, 0x15]);
        let size = page_size(page).unwrap();
        assert_eq!(size.compressed, size.uncompressed);
        let patched = |at: usize, to: u8| {
            let mut bytes = file.clone();
            bytes[MAGIC.len() + at] = to;
            rows(&bytes)
        };
        let len = page[3..].iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
        let behind = patched(3 + len + 1 + len - 1, 0x7f).unwrap_err();
        assert!(behind.contains("ends behind its column"), "{behind}");
    }
}
