//! A shard: consecutive tokens in a file. Numbers are little-endian:
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
//! 32 bytes  SHA-256 of all before and of the tokens
//! …         the tokens
//! ```
//!
//! It is written under another name and renamed when whole, and checked whole when it is opened.

use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::index::ShardFacts;
use crate::dataset::build::Position;
use crate::error::DataError;
use crate::stream::DocumentCounts;
use crate::tokenizer::hex;
use crate::tokens::Tokens;
use crate::whole_file::write_whole;

const MAGIC: &[u8; 8] = b"retietok";
/// Of the header before its digest.
const FACTS_BYTES: usize = 8 + 4 + 6 * 8;
pub(super) const HEADER_BYTES: usize = FACTS_BYTES + 32;

/// A shard that is whole.
#[derive(Debug)]
pub(super) struct Shard {
    file: fs_err::File,
    tokens: usize,
    /// Where in the files it ends.
    pub(super) after: Position,
    digest: [u8; 32],
}

impl Shard {
    pub(super) fn facts(&self) -> ShardFacts {
        ShardFacts { tokens: self.tokens as u64, sha256: hex(&self.digest) }
    }
}

pub(super) fn path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("shard-{number:05}.tokens"))
}

fn facts(width: u32, number: usize, tokens: u64, after: Position) -> Vec<u8> {
    let Position { file, in_file, documents: DocumentCounts { with_text, without } } = after;
    let mut bytes = [&MAGIC[..], &width.to_le_bytes()].concat();
    for number in [number as u64, tokens, file, in_file, with_text, without] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

pub(super) fn write(folder: &Path, number: usize, tokens: &Tokens, after: Position) -> Result<(), DataError> {
    let facts = facts(tokens.width(), number, tokens.len() as u64, after);
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

/// Opens a shard and adds its tokens to `stream`; `None` where it is not there or damaged, and nothing is added then.
pub(super) fn read(folder: &Path, number: usize, width: u32, stream: &mut Sha256) -> Result<Option<Shard>, DataError> {
    let mut file = match fs_err::File::open(path(folder, number)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut header = [0; HEADER_BYTES];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let (given, digest) = header.split_at(FACTS_BYTES);
    let (numbers, _) = given[8 + 4..].as_chunks::<8>();
    let [_, tokens, in_files @ ..] = numbers else { unreachable!("six numbers") };
    let [file_index, in_file, with_text, without] =
        [0, 1, 2, 3].map(|index: usize| in_files.get(index).map_or(0, |bytes| u64::from_le_bytes(*bytes)));
    let tokens = u64::from_le_bytes(*tokens);
    let after = Position { file: file_index, in_file, documents: DocumentCounts { with_text, without } };
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
    let whole = given == facts(width, number, tokens, after)
        && found == digest
        && tokens.checked_mul(u64::from(width)) == Some(bytes);
    if !whole {
        return Ok(None);
    }
    *stream = of_stream;
    // As many as there are bytes in the file of a machine that addresses it.
    Ok(Some(Shard { file, tokens: tokens as usize, after, digest: found }))
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
    pub(super) fn new(width: u32) -> Self {
        Self { width, files: Vec::new(), ends: Vec::new() }
    }

    pub(super) fn push(&mut self, shard: Shard) {
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
