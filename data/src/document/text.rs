//! `.txt`: the whole file is one document.

use std::path::Path;

use super::compression::Bytes;
use super::{Document, Inner};
use crate::error::{DataError, Place};

/// U+FEFF in UTF-8.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Text of a file of any extension, whole, without a byte-order mark; of one that ends in `.gz` or
/// `.zst` what is compressed in it.
///
/// # Errors
/// The file cannot be read or decompressed, holds nothing, or is not UTF-8 (the error gives the
/// byte offset).
pub fn read_text(path: &Path) -> Result<String, DataError> {
    super::check_file(path)?;
    super::check_start(path)?;
    let mut file = Bytes::open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let mut skipped = 0;
    if bytes.starts_with(BYTE_ORDER_MARK) {
        skipped = BYTE_ORDER_MARK.len();
        bytes.drain(..skipped);
    }
    if bytes.is_empty() {
        return Err(DataError::Empty { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| DataError::NotUtf8 {
        place: Place { path: path.to_owned(), part: None },
        offset: (skipped + error.utf8_error().valid_up_to()) as u64,
        unit: file.unit(),
    })
}

pub(super) fn open(path: &Path, _text_field: &str) -> Result<Inner, DataError> {
    let text = read_text(path)?;
    let bytes_read = fs_err::metadata(path)?.len();
    Ok(Box::new(std::iter::once(Ok(Document { text, bytes_read }))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs_err::write(&path, content).unwrap();
        (folder, path)
    }

    #[test]
    fn text_comes_back_unchanged_but_for_the_byte_order_mark() {
        let (_folder, path) = file("\u{feff} one\r\n\ntwo é \n".as_bytes());
        assert_eq!(read_text(&path).unwrap(), " one\r\n\ntwo é \n");
    }

    #[test]
    fn a_bad_byte_is_named_by_its_offset_in_the_file() {
        let (_folder, path) = file(b"\xef\xbb\xbfabc\xffd");
        let error = read_text(&path).unwrap_err();
        assert!(error.to_string().contains("byte at offset 6 of the file"), "{error}");
    }

    #[test]
    fn an_empty_file_is_an_error() {
        for content in [b"".as_slice(), BYTE_ORDER_MARK] {
            let (_folder, path) = file(content);
            assert!(matches!(read_text(&path), Err(DataError::Empty { .. })));
        }
    }
}
