//! Reading a cache: checked whole when it is opened, then row by row from the disk.

use super::{HEADER_BYTES, LogitsMeta, MAGIC, TopLogits, decode};
use crate::{error::DataError, mixture::Mixture, tokenizer::Tokenizer};
use sha2::{Digest, Sha256};
use std::{
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// A cache that is whole.
#[derive(Debug)]
pub struct LogitsCache {
    dir: PathBuf,
    meta: LogitsMeta,
    shards: Vec<Mutex<fs_err::File>>,
}

/// Checks a shard; gives its file.
pub(super) fn read_shard(dir: &Path, meta: &LogitsMeta, shard: usize) -> Result<fs_err::File, String> {
    let path = meta.shard_path(dir, shard);
    let mut file = fs_err::File::open(&path).map_err(|error| error.to_string())?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header).map_err(|error| error.to_string())?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer).map_err(|error| error.to_string())? {
            0 => break,
            read => {
                hasher.update(&buffer[..read]);
                bytes += read;
            }
        }
    }
    let rows = meta.rows_of(shard).len();
    let expected =
        [&MAGIC[..], &(shard as u64).to_le_bytes(), &(rows as u64).to_le_bytes(), &hasher.finalize()].concat();
    if header[..] == expected[..] && bytes == rows * meta.bytes_per_row() {
        Ok(file)
    } else {
        Err(format!("`{}` is damaged", path.display()))
    }
}

impl LogitsCache {
    /// Opens the cache in `dir`.
    ///
    /// # Errors
    /// There is none, it is not complete, or damaged: every bad shard is named.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let meta = LogitsMeta::load(dir)?;
        let (mut shards, mut problems) = (Vec::new(), Vec::new());
        for shard in 0..meta.num_shards() {
            match read_shard(dir, &meta, shard) {
                Ok(file) => shards.push(Mutex::new(file)),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            Ok(Self { dir: dir.to_owned(), meta, shards })
        } else {
            Err(DataError::BadLogits { dir: dir.to_owned(), problems })
        }
    }

    /// What it is of.
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

    /// The distributions of the tokens of `rows`, in this order.
    ///
    /// # Errors
    /// The disk fails, or a file was changed since it was opened.
    ///
    /// # Panics
    /// A row is not below the number of rows.
    pub fn rows(&self, rows: &[usize]) -> Result<TopLogits, DataError> {
        let mut logits = TopLogits::default();
        let mut bytes = vec![0; self.meta.bytes_per_row()];
        for row in rows {
            let shard = row / self.meta.rows_per_shard;
            let offset = HEADER_BYTES + (row - self.meta.rows_of(shard).start) * bytes.len();
            let mut file = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(offset as u64))?;
            file.read_exact(&mut bytes)?;
            decode(&self.meta, &bytes, &mut logits).ok_or_else(|| DataError::BadLogits {
                dir: self.dir.clone(),
                problems: vec![format!("`{}` was changed", self.meta.shard_path(&self.dir, shard).display())],
            })?;
        }
        Ok(logits)
    }
}
