//! A teacher's distributions on disk: of every token of a dataset's rows the most probable next tokens and what is left for all
//! others, so that a run distils from a teacher that is not in memory.
//!
//! `DIR/logits.json` says of what ([`LogitsMeta`]); `DIR/shard-NNNNN.logits` hold the rows, `rows_per_shard` each:
//!
//! ```text
//! 8 bytes   "retielog"
//! u64       number of the shard
//! u64       rows
//! 32 bytes  SHA-256 of what follows
//! …         the tokens of each row
//! ```
//!
//! A token is `k` ids (u16, or u32 for more than 65,536), the most probable first, and `k + 1` numbers of u16: `−log p` of each of
//! them and of the rest together, in steps of 1/2048 nat up to 32 nats. So it takes `4k + 2` bytes, or `6k + 2`. Numbers are
//! little-endian. What is read is divided by its sum: the steps leave it within 3e-4 of 1.

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
/// Steps of a nat.
const STEPS: f32 = 2048.0;
/// The version of what is described above.
pub const LOGITS_SCHEMA: u32 = 1;

/// What a cache holds; everything that its contents follow from.
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
    /// The distributions are softmax(logits / temperature).
    pub temperature: f64,
    /// Rows of every shard but the last.
    pub rows_per_shard: usize,
}

/// Distributions of consecutive tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopLogits {
    /// `k` of each token, the most probable first.
    pub ids: Vec<u32>,
    /// `k + 1` of each token: those of the ids, and of all others together.
    pub log_probs: Vec<f32>,
}

impl LogitsMeta {
    /// Bytes of a token.
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        self.top_k * (self.id_bytes() + 2) + 2
    }

    /// SHA-256 of these facts, in hexadecimal: caches with equal ones hold the same distributions.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }

    fn id_bytes(&self) -> usize {
        if self.vocab_size <= 1 << 16 { 2 } else { 4 }
    }

    fn bytes_per_row(&self) -> usize {
        self.bytes_per_token() * self.sequence_length
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
        if meta.schema != LOGITS_SCHEMA || sizes.contains(&0) || meta.top_k > meta.vocab_size {
            return Err(bad(format!("`{META_FILE}` is of another version, or its sizes are impossible")));
        }
        Ok(meta)
    }
}

/// Appends tokens of `k` ids.
fn encode(meta: &LogitsMeta, logits: &TopLogits, out: &mut Vec<u8>) {
    let k = meta.top_k;
    for (ids, log_probs) in logits.ids.chunks_exact(k).zip(logits.log_probs.chunks_exact(k + 1)) {
        for id in ids {
            out.extend_from_slice(&id.to_le_bytes()[..meta.id_bytes()]);
        }
        for log_prob in log_probs {
            // Saturates at 0 and at 65535; what is not a number becomes 0.
            out.extend_from_slice(&((-log_prob * STEPS).round() as u16).to_le_bytes());
        }
    }
}

/// Appends the tokens of `bytes`; `None` where an id is none.
fn decode(meta: &LogitsMeta, bytes: &[u8], logits: &mut TopLogits) -> Option<()> {
    let (k, width) = (meta.top_k, meta.id_bytes());
    for token in bytes.chunks_exact(meta.bytes_per_token()) {
        let (ids, log_probs) = token.split_at(k * width);
        for bytes in ids.chunks_exact(width) {
            let mut id = [0; 4];
            id[..width].copy_from_slice(bytes);
            let id = u32::from_le_bytes(id);
            logits.ids.push(Some(id).filter(|id| (*id as usize) < meta.vocab_size)?);
        }
        let start = logits.log_probs.len();
        let steps = log_probs.as_chunks::<2>().0.iter().map(|bytes| f32::from(u16::from_le_bytes(*bytes)));
        logits.log_probs.extend(steps.map(|steps| -steps / STEPS));
        let token = &mut logits.log_probs[start..];
        let log_sum = token.iter().map(|log_prob| f64::from(*log_prob).exp()).sum::<f64>().ln() as f32;
        token.iter_mut().for_each(|log_prob| *log_prob -= log_sum);
    }
    Some(())
}

#[cfg(test)]
mod tests;
