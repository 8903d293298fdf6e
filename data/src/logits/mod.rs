//! A teacher's distributions on disk: of every token of a dataset's rows the most probable next
//! tokens and what is left for all others, so that a run distils from a teacher that is not in
//! memory.
//!
//! `DIR/logits.json` says of what ([`LogitsMeta`]); `DIR/shard-NNNNN.logits` hold the rows,
//! `rows_per_shard` each:
//!
//! ```text
//! 8 bytes   "retielog"
//! u64       number of the shard
//! u64       rows
//! 32 bytes  SHA-256 of what follows
//! …         with `top_p`, a u64 for each row: how many bytes it and those before it take
//! …         the tokens of each row
//! ```
//!
//! A token is `k` ids (u16, or u32 for more than 65,536), the most probable first, and `k + 1`
//! numbers of u16: `−log p` of each of them and of the rest together, in steps of 1/2048 nat up to
//! 32 nats. So it takes `4k + 2` bytes, or `6k + 2`. With `top_p` the ids may be fewer, and their
//! number, as wide as an id, is before them. Numbers are little-endian. What is read is divided by
//! its sum: the steps leave it within 3e-4 of 1.

mod codec;
mod read;
mod write;

pub use read::LogitsCache;
pub use write::LogitsWriter;

use crate::{error::DataError, tokenizer::hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    ops::Range,
    path::{Path, PathBuf},
};

const META_FILE: &str = "logits.json";
const MAGIC: &[u8; 8] = b"retielog";
const HEADER_BYTES: usize = 8 + 8 + 8 + 32;
/// More bytes than a cache can have: sizes below keep all arithmetic within `usize`.
const MOST_BYTES: usize = 1 << 60;
/// The version of what is described above.
pub const LOGITS_SCHEMA: u32 = 1;

/// Contents of a cache, and everything that they follow from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogitsMeta {
    /// Version of the layout.
    pub schema: u32,
    /// The teacher, as it was named.
    pub teacher: String,
    /// Name and SHA-256 of its files.
    pub teacher_files: Vec<(String, String)>,
    /// Fingerprint of the tokenizer.
    pub tokenizer: String,
    /// Fingerprint of the rows.
    pub data: String,
    /// Rows.
    pub rows: usize,
    /// Tokens of a row.
    pub sequence_length: usize,
    /// Ids that there are.
    pub vocab_size: usize,
    /// `k`.
    pub top_k: usize,
    /// Probability that the kept tokens have together, at most `k` of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// The distributions are softmax(logits / temperature).
    pub temperature: f64,
    /// Rows of every shard but the last.
    pub rows_per_shard: usize,
}

impl LogitsMeta {
    /// Bytes of a token; with `top_p`, of the largest.
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        let count = if self.top_p.is_some() { self.id_bytes() } else { 0 };
        count + self.top_k * (self.id_bytes() + 2) + 2
    }

    /// SHA-256 of these facts, in hexadecimal: caches with equal ones hold the same distributions.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }

    fn id_bytes(&self) -> usize {
        if self.vocab_size <= 1 << 16 { 2 } else { 4 }
    }

    /// Bytes of what stands before the rows of a shard, of which there are `rows`.
    fn index_bytes(&self, rows: usize) -> usize {
        if self.top_p.is_some() { 8 * rows } else { 0 }
    }

    /// Number of shards.
    #[must_use]
    pub fn num_shards(&self) -> usize {
        self.rows.div_ceil(self.rows_per_shard.max(1))
    }

    /// Rows of a shard.
    #[must_use]
    pub fn rows_of(&self, shard: usize) -> Range<usize> {
        let start = shard * self.rows_per_shard;
        start..(start + self.rows_per_shard).min(self.rows)
    }

    fn shard_path(&self, dir: &Path, shard: usize) -> PathBuf {
        dir.join(format!("shard-{shard:05}.logits"))
    }

    fn load(dir: &Path) -> Result<Self, DataError> {
        let path = dir.join(META_FILE);
        if !path.is_file() {
            return Err(DataError::NoLogits { path: dir.to_owned() });
        }
        let text = fs_err::read(&path)?;
        let bad = |reason: String| DataError::BadLogits { dir: dir.to_owned(), problems: vec![reason] };
        let meta: Self = serde_json::from_slice(&text).map_err(|error| bad(format!("`{META_FILE}`: {error}")))?;
        let sizes = [meta.rows, meta.sequence_length, meta.top_k, meta.rows_per_shard];
        let impossible_part = meta.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0));
        let bytes = (meta.id_bytes() + 2).checked_mul(meta.top_k).and_then(|token| {
            token.checked_add(2 + meta.id_bytes())?.checked_mul(meta.sequence_length)?.checked_mul(meta.rows)
        });
        let fits = bytes.is_some_and(|bytes| bytes < MOST_BYTES) && meta.rows_per_shard < MOST_BYTES;
        let impossible = sizes.contains(&0) || meta.top_k > meta.vocab_size || impossible_part || !fits;
        if meta.schema != LOGITS_SCHEMA || impossible {
            return Err(bad(format!("`{META_FILE}` is of another version, or its sizes are impossible")));
        }
        Ok(meta)
    }
}

#[cfg(test)]
mod tests;
