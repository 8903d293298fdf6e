//! A shard, a file `.tokens`: consecutive tokens of whole documents. Numbers are little-endian:
//!
//! ```text
//! 8 bytes   "retietok"
//! u32       bytes of a token, 2 or 4
//! u64       number of the shard
//! u64       tokens
//! u64       the file that reading has come to behind them, counted from 0
//! u64       documents of that file that are read
//! u64       documents with text, from the first shard on
//! u64       documents without text, likewise
//! 64 bytes  fingerprint of the tokenizer, SHA-256 in hexadecimal
//! u32       id of the token before each document (BOS), 0xffffffff without one
//! u32       id of the token that ends each document
//! 32 bytes  SHA-256 of all before and of the tokens
//! …         the tokens
//! ```
//!
//! It is written under another name and renamed when whole, and checked whole when it is opened.

use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::tokenize::{DocumentCounts, Position};
use crate::tokenizer::hex;
use crate::tokens::Tokens;
use crate::whole_file::write_whole;

const MAGIC: &[u8; 8] = b"retietok";
/// Bytes of the header before its digest.
const FACTS_BYTES: usize = MADE_AT + 64 + 4 + 4;
/// Where what the tokens were made with begins.
const MADE_AT: usize = 8 + 4 + 6 * 8;
pub(crate) const HEADER_BYTES: usize = FACTS_BYTES + 32;

/// Tokenizer, BOS and end-of-text token that tokens were made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made<'a> {
    /// Fingerprint of the tokenizer's tokens.
    pub(crate) tokenizer: &'a str,
    pub(crate) bos: Option<u32>,
    pub(crate) end_of_text: u32,
}

/// A shard in an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShardFacts {
    pub(crate) tokens: u64,
    /// In hexadecimal, as in its header.
    pub(crate) sha256: String,
}

/// A shard that is whole.
#[derive(Debug)]
pub(crate) struct Shard {
    file: fs_err::File,
    tokens: usize,
    /// Where in the files it ends.
    pub(crate) after: Position,
    digest: [u8; 32],
}

impl Shard {
    pub(crate) fn facts(&self) -> ShardFacts {
        ShardFacts { tokens: self.tokens as u64, sha256: hex(&self.digest) }
    }
}

pub(crate) fn path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("shard-{number:05}.tokens"))
}

fn facts(width: u32, number: u64, tokens: u64, after: Position, made: Made<'_>) -> Vec<u8> {
    let Position { file, in_file, documents: DocumentCounts { with_text, without } } = after;
    let mut bytes = [&MAGIC[..], &width.to_le_bytes()].concat();
    for number in [number, tokens, file, in_file, with_text, without] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(made.tokenizer.as_bytes());
    bytes.resize(FACTS_BYTES - 8, 0);
    bytes.extend(made.bos.unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(made.end_of_text.to_le_bytes());
    bytes
}

pub(crate) fn write(
    folder: &Path,
    number: usize,
    tokens: &Tokens,
    after: Position,
    made: Made<'_>,
) -> Result<(), DataError> {
    let facts = facts(tokens.width(), number as u64, tokens.len() as u64, after, made);
    let mut hasher = Sha256::new_with_prefix(&facts);
    let Ok(()) = tokens.write_bytes(|bytes| {
        hasher.update(bytes);
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(write_whole(&path(folder, number), |file| {
        file.write_all(&facts)?;
        file.write_all(&hasher.finalize())?;
        tokens.write_bytes(|bytes| file.write_all(bytes))
    })?)
}

/// Reasons not to use a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Absent,
    /// Cut off, changed, or something else.
    Damaged,
    /// Whole, and made with another tokenizer, BOS or end-of-text token.
    Other,
}

/// Opens a shard of a folder and adds its tokens to `stream`; `None` where it is not there, damaged
/// or of other things, and nothing is added then.
pub(crate) fn read(
    folder: &Path,
    number: usize,
    width: u32,
    made: Made<'_>,
    stream: &mut Sha256,
) -> Result<Option<Shard>, DataError> {
    let found = open(&path(folder, number), width, made, stream)?;
    Ok(found.ok().filter(|(_, found)| *found == number as u64).map(|(shard, _)| shard))
}

/// Opens a shard, gives its number too, and adds its tokens to `stream`, unless something is wrong
/// with it.
pub(crate) fn open(
    path: &Path,
    width: u32,
    made: Made<'_>,
    stream: &mut Sha256,
) -> Result<Result<(Shard, u64), Fault>, DataError> {
    let mut file = match fs_err::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Err(Fault::Absent)),
        Err(error) => return Err(error.into()),
    };
    let mut header = [0; HEADER_BYTES];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Err(Fault::Damaged)),
        Err(error) => return Err(error.into()),
    }
    let (given, digest) = header.split_at(FACTS_BYTES);
    let found_width = u32::from_le_bytes([given[8], given[9], given[10], given[11]]);
    let (numbers, _) = given[8 + 4..MADE_AT].as_chunks::<8>();
    let number = |index: usize| numbers.get(index).map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let tokens = number(1);
    let documents = DocumentCounts { with_text: number(4), without: number(5) };
    let after = Position { file: number(2), in_file: number(3), documents };
    let mut hasher = Sha256::new_with_prefix(given);
    let mut of_stream = stream.clone();
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        of_stream.update(&buffer[..read]);
        bytes += read as u64;
    }
    let found: [u8; 32] = hasher.finalize().into();
    let whole =
        given.starts_with(MAGIC) && found == digest && tokens.checked_mul(u64::from(found_width)) == Some(bytes);
    if !whole {
        return Ok(Err(Fault::Damaged));
    }
    if given != facts(width, number(0), tokens, after, made) {
        return Ok(Err(Fault::Other));
    }
    *stream = of_stream;
    // As many as there are bytes in the file of a machine that addresses it.
    Ok(Ok((Shard { file, tokens: tokens as usize, after, digest: found }, number(0))))
}

/// The tokens of shards, one after the other.
#[derive(Debug)]
pub(crate) struct Shards {
    width: u32,
    files: Vec<Mutex<fs_err::File>>,
    /// Tokens up to the end of each.
    ends: Vec<usize>,
}

impl Shards {
    pub(crate) fn new(width: u32) -> Self {
        Self { width, files: Vec::new(), ends: Vec::new() }
    }

    pub(crate) fn push(&mut self, shard: Shard) {
        self.ends.push(self.num_tokens() + shard.tokens);
        self.files.push(Mutex::new(shard.file));
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Appends the tokens of `range` to `out`.
    pub(crate) fn copy_into(&self, range: Range<usize>, out: &mut Vec<u32>) -> Result<(), DataError> {
        let width = self.width as usize;
        let mut at = range.start;
        while at < range.end {
            let shard = self.ends.partition_point(|end| *end <= at);
            let start = shard.checked_sub(1).map_or(0, |before| self.ends[before]);
            let to = range.end.min(self.ends[shard]);
            let mut bytes = vec![0; (to - at) * width];
            let mut file = self.files[shard].lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start((HEADER_BYTES + (at - start) * width) as u64))?;
            file.read_exact(&mut bytes)?;
            let Some(tokens) = Tokens::from_bytes(&bytes, self.width) else {
                return Err(DataError::Changed { path: file.path().to_owned() });
            };
            tokens.copy_into(0..to - at, out);
            at = to;
        }
        Ok(())
    }
}
