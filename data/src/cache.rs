//! Tokens of a set of files on disk, so that a second run does not tokenise again.
//!
//! A cache file is `DIR/<key>.tokens`. The key is the SHA-256 of everything that the tokens follow from: the contents of the
//! files in their order, the tokenizer, the end-of-text id, the text fields, the part of the documents and the version of this code. So a file is never out of
//! date, and may be deleted at any time. Layout, numbers little-endian:
//!
//! ```text
//! 8 bytes   "retietok"
//! u32       bytes of a token, 2 or 4
//! u64       documents with text
//! u64       documents without text
//! u64       tokens
//! 32 bytes  SHA-256 of the tokens
//! …         the tokens
//! ```
//!
//! It is written under another name and renamed when whole. A file that does not match its own header is made anew.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::dataset::DatasetOptions;
use crate::document::encoding;
use crate::error::DataError;
use crate::tokenizer::{Tokenizer, hex};
use crate::tokens::Tokens;
use crate::whole_file::write_whole;

const MAGIC: &[u8; 8] = b"retietok";
const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 8 + 32;
/// Goes up whenever the same text would give other tokens or the layout changes.
const FORMAT_VERSION: u32 = 2;

/// The stream of a set of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) tokens: Tokens,
    pub(crate) num_documents: u64,
    pub(crate) num_empty_documents: u64,
    /// SHA-256 of the tokens as little-endian bytes.
    pub(crate) digest: [u8; 32],
}

impl Stream {
    pub(crate) fn new(tokens: Tokens, num_documents: u64, num_empty_documents: u64) -> Self {
        let mut hasher = Sha256::new();
        let Ok(()) = tokens.write_bytes(|bytes| {
            hasher.update(bytes);
            Ok::<(), Infallible>(())
        });
        Self { tokens, num_documents, num_empty_documents, digest: hasher.finalize().into() }
    }
}

/// Where the stream of these files belongs. Reads the files whole.
pub(crate) fn path(dir: &Path, options: &DatasetOptions, tokenizer: &Tokenizer) -> Result<PathBuf, DataError> {
    let mut hasher = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(&FORMAT_VERSION.to_le_bytes());
    field(tokenizer.fingerprint().as_bytes());
    field(&options.eos_token_id.to_le_bytes());
    field(format!("{:?}", options.part).as_bytes());
    for file in &options.files {
        field(file.text_field.as_bytes());
        field(encoding(&file.path).as_bytes());
        field(&digest_of_file(&file.path)?);
    }
    Ok(dir.join(format!("{}.tokens", hex(&hasher.finalize()))))
}

fn digest_of_file(path: &Path) -> Result<[u8; 32], DataError> {
    let mut file = fs_err::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&buffer[..read]);
    }
}

/// The stream in a cache file; `None` where there is no file or a damaged one.
pub(crate) fn load(path: &Path) -> Result<Option<Stream>, DataError> {
    let bytes = match fs_err::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let stream = parse(&bytes);
    if stream.is_none() {
        tracing::warn!(path = %path.display(), "the token cache is damaged and will be made anew");
    }
    Ok(stream)
}

fn parse(bytes: &[u8]) -> Option<Stream> {
    let (header, payload) = bytes.split_at_checked(HEADER_BYTES)?;
    let (magic, header) = header.split_first_chunk::<8>()?;
    let (width, header) = header.split_first_chunk::<4>()?;
    let (num_documents, header) = header.split_first_chunk::<8>()?;
    let (num_empty_documents, header) = header.split_first_chunk::<8>()?;
    let (num_tokens, digest) = header.split_first_chunk::<8>()?;
    let tokens = Tokens::from_bytes(payload, u32::from_le_bytes(*width))?;
    let whole = magic == MAGIC
        && tokens.len() as u64 == u64::from_le_bytes(*num_tokens)
        && Sha256::digest(payload).as_slice() == digest;
    whole.then_some(Stream {
        tokens,
        num_documents: u64::from_le_bytes(*num_documents),
        num_empty_documents: u64::from_le_bytes(*num_empty_documents),
        digest: digest.try_into().ok()?,
    })
}

/// Writes a cache file whole or not at all.
pub(crate) fn store(path: &Path, stream: &Stream) -> Result<(), DataError> {
    Ok(write_whole(path, |file| {
        file.write_all(MAGIC)?;
        file.write_all(&stream.tokens.width().to_le_bytes())?;
        file.write_all(&stream.num_documents.to_le_bytes())?;
        file.write_all(&stream.num_empty_documents.to_le_bytes())?;
        file.write_all(&(stream.tokens.len() as u64).to_le_bytes())?;
        file.write_all(&stream.digest)?;
        stream.tokens.write_bytes(|bytes| file.write_all(bytes))
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Stream {
        let mut tokens = Tokens::for_ids_up_to(300);
        tokens.extend(&[1, 2, 300]);
        Stream::new(tokens, 5, 2)
    }

    #[test]
    fn a_stream_comes_back_and_no_other_file_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/a.tokens");
        assert_eq!(load(&path).unwrap(), None);
        store(&path, &stream()).unwrap();
        store(&path, &stream()).unwrap();
        assert_eq!(load(&path).unwrap(), Some(stream()));
        assert_eq!(fs_err::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tokens");
        store(&path, &stream()).unwrap();
        let whole = fs_err::read(&path).unwrap();
        assert_eq!(whole.len(), HEADER_BYTES + 6);
        // The two counts of documents are not checked: bytes 12..28.
        for damaged in (0..12).chain(28..whole.len()) {
            let mut bytes = whole.clone();
            bytes[damaged] ^= 1;
            assert_eq!(parse(&bytes), None, "byte {damaged}");
        }
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), None, "{len} bytes");
        }
        fs_err::write(&path, &whole[..20]).unwrap();
        assert_eq!(load(&path).unwrap(), None);
    }
}
