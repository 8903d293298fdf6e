//! A file's bytes, taken out of gzip (<https://www.rfc-editor.org/rfc/rfc1952>) or Zstandard
//! (<https://www.rfc-editor.org/rfc/rfc8878>) where its name ends so. Members or frames behind one
//! another are one stream.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use retie_config::Disguise;

use crate::error::DataError;

const BUFFER_BYTES: usize = 1 << 20;

/// Base-2 logarithm of the largest window of a frame: that of `zstd --long=31`, the largest of the
/// format's encoder. The decoder reserves what a frame states, at most 2 GiB.
const ZSTD_WINDOW_LOG: u32 = 31;

/// Compression of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Zstandard,
}

impl Compression {
    /// By the extension behind that of the format.
    pub(super) const ALL: [(&'static str, Self); 2] = [("gz", Self::Gzip), ("zst", Self::Zstandard)];

    /// Refuses a file that is not compressed as its name says, or that no one can decompress
    /// without another file. `start` are its first bytes.
    pub(super) fn check(self, path: &Path, start: &[u8]) -> Result<(), DataError> {
        let (begins, extension) = match self {
            Self::Gzip => (start.starts_with(&[0x1f, 0x8b]), "gz"),
            // A frame, or one that is to be skipped.
            Self::Zstandard => {
                (start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || start.get(1..4) == Some(&[0x2a, 0x4d, 0x18]), "zst")
            }
        };
        let is_text = start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
        if !begins && !start.is_empty() && is_text && Disguise::of(start).is_none() {
            return Err(DataError::NotCompressed { path: path.to_owned(), compression: self.name(), extension });
        }
        match (self, zstd::zstd_safe::get_dict_id_from_frame(start)) {
            (Self::Zstandard, Some(id)) => Err(DataError::Dictionary { path: path.to_owned(), id: id.get() }),
            _ => Ok(()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstandard => "Zstandard",
        }
    }
}

/// The extensions of `path` that say what it is, in small letters: that of its format and, if it is
/// compressed, in what.
pub(super) fn extensions(path: &Path) -> (Option<String>, Option<Compression>) {
    let extension = |path: &Path| path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    let last = extension(path);
    match Compression::ALL.into_iter().find(|(name, _)| last.as_deref() == Some(*name)) {
        Some((_, compression)) => (path.file_stem().and_then(|stem| extension(Path::new(stem))), Some(compression)),
        None => (last, None),
    }
}

/// The open file.
pub(super) struct Bytes {
    path: PathBuf,
    compression: Option<Compression>,
    reader: BufReader<Box<dyn Read + Send>>,
    /// Bytes read from the file itself.
    taken: Arc<AtomicU64>,
    /// Bytes given out.
    given: u64,
}

impl Bytes {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let (_, compression) = extensions(path);
        let taken = Arc::new(AtomicU64::new(0));
        let file = Counted { file: fs_err::File::open(path)?, taken: taken.clone() };
        let reader: Box<dyn Read + Send> = match compression {
            None => Box::new(file),
            Some(Compression::Gzip) => Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, file))),
            Some(Compression::Zstandard) => {
                let mut decoder = zstd::stream::read::Decoder::new(file)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
        };
        let reader = BufReader::with_capacity(BUFFER_BYTES, reader);
        Ok(Self { path: path.to_owned(), compression, reader, taken, given: 0 })
    }

    /// Appends a line with its end; 0 bytes are the end of the file.
    pub(super) fn read_line(&mut self, line: &mut Vec<u8>) -> Result<usize, DataError> {
        let read = self.reader.read_until(b'\n', line);
        self.count(read)
    }

    /// Goes over lines of nothing but white space, as far as they are whole, and counts them.
    pub(super) fn skip_blank_lines(&mut self) -> Result<u64, DataError> {
        let mut lines = 0;
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) => return self.count(Err(error)).map(|_| lines),
            };
            let is_text = |byte: &u8| !byte.is_ascii_whitespace();
            let blank = &buffer[..buffer.iter().position(is_text).unwrap_or(buffer.len())];
            let Some(last) = blank.iter().rposition(|byte| *byte == b'\n') else { return Ok(lines) };
            lines += blank.iter().filter(|byte| **byte == b'\n').count() as u64;
            self.reader.consume(last + 1);
            self.given += last as u64 + 1;
        }
    }

    /// Appends everything that is left.
    pub(super) fn read_to_end(&mut self, bytes: &mut Vec<u8>) -> Result<usize, DataError> {
        let read = self.reader.read_to_end(bytes);
        self.count(read)
    }

    fn count(&mut self, read: std::io::Result<usize>) -> Result<usize, DataError> {
        let read = read.map_err(|source| match self.compression {
            None => DataError::Io(source),
            Some(compression) => {
                DataError::Compressed { path: self.path.clone(), compression: compression.name(), source }
            }
        })?;
        self.given += read as u64;
        Ok(read)
    }

    /// Bytes given out so far: where the next ones lie in the text.
    pub(super) fn given(&self) -> u64 {
        self.given
    }

    /// How far into the file reading has come, in its own bytes.
    pub(super) fn position(&self) -> u64 {
        match self.compression {
            None => self.given,
            Some(_) => self.taken.load(Ordering::Relaxed),
        }
    }

    /// Unit of [`Bytes::given`].
    pub(super) fn unit(&self) -> &'static str {
        match self.compression {
            None => "file",
            Some(_) => "decompressed text",
        }
    }
}

/// A file that counts what is read from it.
pub(super) struct Counted {
    pub(super) file: fs_err::File,
    pub(super) taken: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.taken.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DataError, documents, read_text};

    // Written by gzip and zstd: see tests/golden/make_compressed.
    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
    }

    #[test]
    fn packed_rows_are_those_of_the_plain_file_also_in_several_members() {
        let expected: Vec<String> = (0..300).map(|row| format!("row {row} é")).collect();
        for name in ["rows.jsonl.gz", "rows.jsonl.zst", "long.jsonl.zst"] {
            let rows: Vec<_> = documents(&golden(name), "text").unwrap().map(Result::unwrap).collect();
            assert!(rows.iter().map(|row| &row.text).eq(&expected), "{name}");
            assert!(rows.is_sorted_by_key(|row| row.bytes_read));
            assert_eq!(rows[299].bytes_read, fs_err::metadata(golden(name)).unwrap().len());
        }
    }

    #[test]
    fn a_packed_text_is_read_whole_whatever_the_case_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("A.TXT.Zst");
        fs_err::write(&path, zstd::encode_all("\u{feff}one é\n".as_bytes(), 1).unwrap()).unwrap();
        assert_eq!(read_text(&path).unwrap(), "one é\n");
        assert_eq!(documents(&path, "text").unwrap().next().unwrap().unwrap().text, "one é\n");
        fs_err::write(&path, zstd::encode_all(&b"one\xff"[..], 1).unwrap()).unwrap();
        let message = read_text(&path).unwrap_err().to_string();
        assert!(message.contains("the byte at offset 3 of the decompressed text cannot"), "{message}");
    }

    #[test]
    fn a_cut_or_changed_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["rows.jsonl.gz", "rows.jsonl.zst"] {
            let whole = fs_err::read(golden(name)).unwrap();
            let path = folder.path().join(name);
            let mut changed = whole.clone();
            changed[whole.len() / 2] ^= 0x55;
            for bytes in [&whole[..whole.len() - 3], &whole[..20], &changed, b"\x01neither of the two"] {
                fs_err::write(&path, bytes).unwrap();
                let error = documents(&path, "text").unwrap().find_map(Result::err);
                assert!(error.is_some(), "{name}, {} bytes", bytes.len());
                // A changed byte may also leave a row that is not JSON or not UTF-8.
                if bytes.len() < whole.len() {
                    assert!(matches!(error, Some(DataError::Compressed { .. })), "{name}: {error:?}");
                }
            }
        }
    }
}
