//! Writing a cache, a shard at a time; one that was left off goes on with the shards that are
//! missing.

use super::{HEADER_BYTES, LogitsMeta, MAGIC, META_FILE, codec::encode, read::read_shard};
use crate::{
    error::DataError,
    whole_file::{remove_abandoned, write_whole},
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
};

/// A cache in the making.
#[derive(Debug)]
pub struct LogitsWriter {
    dir: PathBuf,
    meta: LogitsMeta,
    /// Tokens that were added, and where each row ends in their bytes.
    tokens: usize,
    ends: Vec<usize>,
    bytes: Vec<u8>,
    /// Whether the logarithm of a token's probability in the shard is not a number.
    has_nan: bool,
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
        remove_abandoned(dir)?;
        Ok(Self { dir: dir.to_owned(), meta, tokens: 0, ends: Vec::new(), bytes: Vec::new(), has_nan: false })
    }

    /// Description of the cache.
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

    /// Bytes of all shards, without their headers.
    ///
    /// # Errors
    /// One is not there.
    pub fn payload_bytes(&self) -> Result<u64, DataError> {
        let mut bytes = 0;
        for shard in 0..self.meta.num_shards() {
            bytes += fs_err::metadata(self.meta.shard_path(&self.dir, shard))?.len() - HEADER_BYTES as u64;
        }
        Ok(bytes)
    }

    /// Adds the next token of the shard: ids, the most probable first, and the logarithms of their
    /// probabilities and of the rest's.
    ///
    /// # Panics
    /// When these are not as many as [`LogitsMeta::top_k`] and [`LogitsMeta::top_p`] say.
    pub fn push(&mut self, ids: &[u32], log_probs: &[f32]) {
        let LogitsMeta { top_k, top_p, sequence_length, .. } = self.meta;
        let fits = ids.len() == top_k || top_p.is_some() && ids.len() < top_k;
        assert!(fits && log_probs.len() == ids.len() + 1, "{} ids and {} logarithms", ids.len(), log_probs.len());
        // The rest's is the logarithm of a difference, which may be rounded to one below 0.
        self.has_nan |= log_probs.iter().take(ids.len()).any(|log_prob| log_prob.is_nan());
        encode(&self.meta, ids, log_probs, &mut self.bytes);
        self.tokens += 1;
        if self.tokens.is_multiple_of(sequence_length) {
            self.ends.push(self.bytes.len());
        }
    }

    /// Writes what was added as `shard`.
    ///
    /// # Errors
    /// The disk fails or is full, or a logarithm is not a number; the shard is not there then.
    ///
    /// # Panics
    /// When these are not the rows of the shard.
    pub fn finish_shard(&mut self, shard: usize) -> Result<(), DataError> {
        let rows = self.meta.rows_of(shard).len();
        assert_eq!(self.tokens, rows * self.meta.sequence_length, "the rows of the shard");
        if self.has_nan {
            return Err(DataError::LogitsNotFinite { dir: self.dir.clone(), rows: self.meta.rows_of(shard) });
        }
        let mut index = Vec::with_capacity(self.meta.index_bytes(rows));
        if self.meta.top_p.is_some() {
            self.ends.iter().for_each(|end| index.extend_from_slice(&(*end as u64).to_le_bytes()));
        }
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&(shard as u64).to_le_bytes());
        header.extend_from_slice(&(rows as u64).to_le_bytes());
        header.extend_from_slice(&Sha256::new().chain_update(&index).chain_update(&self.bytes).finalize());
        write_whole(&self.meta.shard_path(&self.dir, shard), |file| {
            file.write_all(&header)?;
            file.write_all(&index)?;
            file.write_all(&self.bytes)
        })?;
        self.tokens = 0;
        self.ends.clear();
        self.bytes.clear();
        Ok(())
    }
}

/// Names of the fields that differ.
fn differences(a: &LogitsMeta, b: &LogitsMeta) -> Vec<String> {
    let fields = |meta: &LogitsMeta| serde_json::to_value(meta).unwrap_or_default();
    let (a, b) = (fields(a), fields(b));
    // A field that is not there on one side stands on the other.
    let names: BTreeSet<&String> =
        [&a, &b].into_iter().filter_map(|fields| fields.as_object()).flat_map(|f| f.keys()).collect();
    names.into_iter().filter(|name| a.get(name) != b.get(name)).cloned().collect()
}
