//! The tokens of a set of files as one long list, in memory or on disk.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::shard::Shards;
use crate::tokenize::DocumentCounts;
use crate::tokens::Tokens;

/// The list, and where it comes from.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    source: TokenSource,
    pub(crate) num_tokens: usize,
    pub(crate) num_documents: u64,
    pub(crate) num_empty_documents: u64,
    /// SHA-256 of the tokens as little-endian bytes.
    pub(crate) digest: [u8; 32],
}

#[derive(Debug, Clone)]
enum TokenSource {
    Memory(Arc<Tokens>),
    Disk(Arc<Shards>),
}

impl Stream {
    pub(crate) fn in_memory(tokens: Tokens, documents: DocumentCounts) -> Self {
        let mut hasher = Sha256::new();
        let Ok(()) = tokens.write_bytes(|bytes| {
            hasher.update(bytes);
            Ok::<(), Infallible>(())
        });
        let num_tokens = tokens.len();
        Self::new(TokenSource::Memory(Arc::new(tokens)), num_tokens, documents, hasher.finalize().into())
    }

    /// `digest` is that of the tokens of `shards`.
    pub(crate) fn on_disk(shards: Shards, documents: DocumentCounts, digest: [u8; 32]) -> Self {
        let num_tokens = shards.num_tokens();
        Self::new(TokenSource::Disk(Arc::new(shards)), num_tokens, documents, digest)
    }

    fn new(source: TokenSource, num_tokens: usize, documents: DocumentCounts, digest: [u8; 32]) -> Self {
        let DocumentCounts { with_text, without } = documents;
        Self { source, num_tokens, num_documents: with_text, num_empty_documents: without, digest }
    }

    /// Calls `see` with where each document lies, in order: up to and with a token that `ends` one,
    /// or the end of the stream.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn documents(
        &self,
        ends: impl Fn(u32) -> bool,
        mut see: impl FnMut(Range<usize>),
    ) -> Result<(), DataError> {
        const TOKENS_PER_READ: usize = 1 << 18;
        let mut first = 0;
        let mut tokens = Vec::new();
        for start in (0..self.num_tokens).step_by(TOKENS_PER_READ) {
            tokens.clear();
            self.copy_into(start..self.num_tokens.min(start + TOKENS_PER_READ), &mut tokens)?;
            for (index, _) in tokens.iter().enumerate().filter(|(_, token)| ends(**token)) {
                see(first..start + index + 1);
                first = start + index + 1;
            }
        }
        if first < self.num_tokens {
            see(first..self.num_tokens);
        }
        Ok(())
    }

    /// Appends the tokens of `range` to `out`.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn copy_into(&self, range: Range<usize>, out: &mut Vec<u32>) -> Result<(), DataError> {
        match &self.source {
            TokenSource::Memory(tokens) => {
                tokens.copy_into(range, out);
                Ok(())
            }
            TokenSource::Disk(shards) => shards.copy_into(range, out),
        }
    }
}
