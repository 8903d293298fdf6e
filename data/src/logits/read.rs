//! Reading a cache: checked whole when it is opened, then row by row from the disk.

use super::{HEADER_BYTES, LogitsMeta, MAGIC, codec::decode};
use crate::{error::DataError, mixture::Mixture, tokenizer::Tokenizer};
use sha2::{Digest, Sha256};
use std::{
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Bad shards that are named; the file says how many there should be, and may say anything.
const MOST_PROBLEMS: usize = 20;

/// A cache that is whole.
#[derive(Debug)]
pub struct LogitsCache {
    dir: PathBuf,
    meta: LogitsMeta,
    shards: Vec<Shard>,
}

/// A file that is whole.
#[derive(Debug)]
pub(super) struct Shard {
    file: Mutex<fs_err::File>,
    /// Where each row ends.
    ends: Vec<u64>,
}

impl Shard {
    /// Where a row is, and its size.
    fn place(&self, meta: &LogitsMeta, row: usize) -> (u64, usize) {
        let first = (HEADER_BYTES + meta.index_bytes(self.ends.len())) as u64;
        let start = row.checked_sub(1).map_or(first, |before| self.ends[before]);
        (start, (self.ends[row] - start) as usize)
    }
}

/// Checks a shard.
pub(super) fn read_shard(dir: &Path, meta: &LogitsMeta, shard: usize) -> Result<Shard, String> {
    let path = meta.shard_path(dir, shard);
    let mut file = fs_err::File::open(&path).map_err(|error| error.to_string())?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header).map_err(|error| error.to_string())?;
    let mut hasher = Sha256::new();
    let rows = meta.rows_of(shard).len();
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    if size < (HEADER_BYTES + meta.index_bytes(rows)) as u64 {
        return Err(format!("`{}` is damaged", path.display()));
    }
    let mut index = vec![0; meta.index_bytes(rows)];
    file.read_exact(&mut index).map_err(|error| error.to_string())?;
    hasher.update(&index);
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer).map_err(|error| error.to_string())? {
            0 => break,
            read => {
                hasher.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
    let expected =
        [&MAGIC[..], &(shard as u64).to_le_bytes(), &(rows as u64).to_le_bytes(), &hasher.finalize()].concat();
    let of_row = (meta.bytes_per_token() * meta.sequence_length) as u64;
    if meta.top_p.is_none() && bytes != of_row * rows as u64 {
        return Err(format!("`{}` is damaged", path.display()));
    }
    let ends: Vec<u64> = match meta.top_p {
        Some(_) => index.as_chunks().0.iter().map(|end| u64::from_le_bytes(*end)).collect(),
        None => (1..=rows as u64).map(|row| row * of_row).collect(),
    };
    if header[..] == expected[..] && ends.is_sorted() && ends.last() == Some(&bytes) {
        let start = (HEADER_BYTES + index.len()) as u64;
        Ok(Shard { file: Mutex::new(file), ends: ends.into_iter().map(|end| start + end).collect() })
    } else {
        Err(format!("`{}` is damaged", path.display()))
    }
}

impl LogitsCache {
    /// Opens the cache in `dir`.
    ///
    /// # Errors
    /// There is none, it is not complete, or damaged: bad shards are named.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let meta = LogitsMeta::load(dir)?;
        let (mut shards, mut problems) = (Vec::new(), Vec::new());
        for shard in 0..meta.num_shards() {
            match read_shard(dir, &meta, shard) {
                Ok(shard) => shards.push(shard),
                Err(problem) => problems.push(problem),
            }
            if problems.len() == MOST_PROBLEMS {
                problems.push("and perhaps others".to_owned());
                break;
            }
        }
        if problems.is_empty() {
            Ok(Self { dir: dir.to_owned(), meta, shards })
        } else {
            Err(DataError::BadLogits { dir: dir.to_owned(), problems })
        }
    }

    /// Its description.
    #[must_use]
    pub fn meta(&self) -> &LogitsMeta {
        &self.meta
    }

    /// Refuses a cache that was made with another tokenizer.
    ///
    /// # Errors
    /// [`DataError::OtherLogits`].
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer, vocab_size: usize) -> Result<(), DataError> {
        let same = self.meta.tokenizer == tokenizer.fingerprint() && self.meta.vocab_size == vocab_size;
        self.require(same, "tokenizer")
    }

    /// Refuses a cache of other rows.
    ///
    /// # Errors
    /// [`DataError::OtherLogits`].
    pub fn check_rows(&self, data: &Mixture) -> Result<(), DataError> {
        let same = self.meta.data == data.fingerprint() && self.meta.rows == data.num_rows();
        self.require(same, "data")
    }

    fn require(&self, holds: bool, what: &str) -> Result<(), DataError> {
        if holds {
            return Ok(());
        }
        Err(DataError::OtherLogits { dir: self.dir.clone(), differences: vec![what.to_owned()] })
    }

    /// Gives `see` the distributions of the tokens of `rows`, in this order: ids, the most probable
    /// first, and the logarithms of their probabilities and, last, of that of all others together.
    ///
    /// # Errors
    /// The disk fails, or a file was changed since it was opened.
    ///
    /// # Panics
    /// A row is not below the number of rows.
    pub fn read(&self, rows: &[usize], mut see: impl FnMut(&[u32], &[f32])) -> Result<(), DataError> {
        let mut bytes = Vec::new();
        for row in rows {
            let shard = row / self.meta.rows_per_shard;
            let file = &self.shards[shard];
            let (start, size) = file.place(&self.meta, row - self.meta.rows_of(shard).start);
            bytes.resize(size, 0);
            let mut file = file.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut bytes)?;
            decode(&self.meta, &bytes, &mut see).ok_or_else(|| DataError::BadLogits {
                dir: self.dir.clone(),
                problems: vec![format!("`{}` was changed", self.meta.shard_path(&self.dir, shard).display())],
            })?;
        }
        Ok(())
    }
}
