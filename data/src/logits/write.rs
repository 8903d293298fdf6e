//! Writing a cache, a shard at a time; one that was left off goes on with the shards that are missing.

use super::{HEADER_BYTES, LogitsMeta, MAGIC, META_FILE, TopLogits, encode, read::read_shard};
use crate::{error::DataError, whole_file::write_whole};
use sha2::{Digest, Sha256};
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// A cache in the making.
#[derive(Debug)]
pub struct LogitsWriter {
    dir: PathBuf,
    meta: LogitsMeta,
    payload: Vec<u8>,
}

impl LogitsWriter {
    /// Begins a cache in `dir`, or goes on with the one that is there.
    ///
    /// # Errors
    /// `dir` holds a cache of something else, or cannot be written.
    pub fn open(dir: &Path, meta: LogitsMeta) -> Result<Self, DataError> {
        if dir.join(META_FILE).exists() {
            let found = LogitsMeta::load(dir)?;
            if found != meta {
                return Err(DataError::OtherLogits { dir: dir.to_owned(), differences: differences(&found, &meta) });
            }
        } else {
            let text = serde_json::to_vec_pretty(&meta).map_err(std::io::Error::from)?;
            write_whole(&dir.join(META_FILE), |file| file.write_all(&text))?;
        }
        Ok(Self { dir: dir.to_owned(), meta, payload: Vec::new() })
    }

    /// What the cache is of.
    #[must_use]
    pub fn meta(&self) -> &LogitsMeta {
        &self.meta
    }

    /// Shards that are not there, or damaged.
    #[must_use]
    pub fn missing(&self) -> Vec<usize> {
        let whole = |shard: &usize| read_shard(&self.dir, &self.meta, *shard).is_ok();
        (0..self.meta.num_shards()).filter(|shard| !whole(shard)).collect()
    }

    /// Adds the tokens of the next rows of the shard.
    pub fn push(&mut self, logits: &TopLogits) {
        encode(&self.meta, logits, &mut self.payload);
    }

    /// Writes what was added as `shard`.
    ///
    /// # Errors
    /// The disk fails or is full; the shard is not there then.
    ///
    /// # Panics
    /// When these are not the rows of the shard.
    pub fn finish_shard(&mut self, shard: usize) -> Result<(), DataError> {
        let rows = self.meta.rows_of(shard).len();
        assert_eq!(self.payload.len(), rows * self.meta.bytes_per_row(), "the rows of the shard");
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&(shard as u64).to_le_bytes());
        header.extend_from_slice(&(rows as u64).to_le_bytes());
        header.extend_from_slice(&Sha256::digest(&self.payload));
        write_whole(&self.meta.shard_path(&self.dir, shard), |file| {
            file.write_all(&header)?;
            file.write_all(&self.payload)
        })?;
        self.payload.clear();
        Ok(())
    }
}

/// Names of the fields that differ.
fn differences(a: &LogitsMeta, b: &LogitsMeta) -> Vec<String> {
    let fields = |meta: &LogitsMeta| serde_json::to_value(meta).unwrap_or_default();
    let (a, b) = (fields(a), fields(b));
    let names = a.as_object().into_iter().flatten().filter(|(name, value)| b.get(name.as_str()) != Some(value));
    names.map(|(name, _)| name.clone()).collect()
}
