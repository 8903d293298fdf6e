//! The tokens of a set of files in memory, as rows.

pub(crate) mod build;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::cache;
use crate::document::check_files;
use crate::error::DataError;
use crate::pack::{self, Batch, Packing};
use crate::stream::{DocumentCounts, Stream};
use crate::tokenizer::{Tokenizer, hex};
use crate::tokens::Tokens;
use build::{Position, Sizes, tokenize, total_bytes};

/// What to read and how to cut it.
#[derive(Debug, Clone)]
pub struct DatasetOptions {
    /// Data files, in the order of the stream; see [`crate::document`] for the formats.
    pub files: Vec<TextFile>,
    /// Which of their documents.
    pub part: Part,
    /// Inputs of a row.
    pub sequence_length: usize,
    /// What the tokens of a row see.
    pub packing: Packing,
    /// Token that ends each document.
    pub eos_token_id: u32,
    /// Folder for token files, which is made where it is missing; `None` tokenises anew each time.
    pub cache_dir: Option<PathBuf>,
}

/// A data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// Where it is.
    pub path: PathBuf,
    /// JSON field or parquet column that holds its text.
    pub text_field: String,
}

/// Which documents of the files. A document with text belongs to the held-out ones where the first 8 bytes of the text's SHA-256,
/// read as a number below 2⁶⁴ and divided by it, are below a fraction: whatever the other documents are, and with all its copies.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Part {
    /// All.
    #[default]
    All,
    /// Those that are not held out.
    Train {
        /// The fraction.
        heldout: f64,
    },
    /// Those that are.
    Heldout {
        /// The fraction.
        heldout: f64,
    },
}

/// How far [`TokenDataset::build`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the data files whose text is tokenised.
    pub bytes_done: u64,
    /// Bytes of all data files.
    pub bytes_total: u64,
    /// Tokens so far.
    pub tokens: u64,
}

/// Tokens of all files, cut into rows by [`crate::pack`].
#[derive(Debug, Clone)]
pub struct TokenDataset {
    stream: Stream,
    sequence_length: usize,
    /// The end-of-text token, where documents do not see one another.
    divided_by: Option<u32>,
    from_cache: bool,
}

impl TokenDataset {
    /// Reads and tokenises all files, or reads their tokens from the cache. The result does not depend on the number of threads.
    ///
    /// `progress` is called after each few megabytes of text, the last time with everything done.
    ///
    /// # Errors
    /// A file is missing, empty, malformed or not UTF-8; the end-of-text id is not the tokenizer's; there is less than one row of
    /// text; the cache folder cannot be written.
    pub fn build(
        options: &DatasetOptions,
        tokenizer: &Tokenizer,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, DataError> {
        let paths: Vec<PathBuf> = options.files.iter().map(|file| file.path.clone()).collect();
        check_files(&paths)?;
        tokenizer.check_token(options.eos_token_id)?;
        let (stream, from_cache) = match &options.cache_dir {
            None => (in_memory(options, tokenizer, progress)?, false),
            Some(dir) => {
                let folder = cache::folder(dir, options, tokenizer)?;
                cache::stream(&folder, options, tokenizer, Sizes::USUAL, progress)?
            }
        };
        if from_cache {
            let bytes = total_bytes(options)?;
            progress(Progress { bytes_done: bytes, bytes_total: bytes, tokens: stream.num_tokens as u64 });
        }
        let mut dataset = Self::from_stream(stream, options.sequence_length)?;
        dataset.from_cache = from_cache;
        dataset.divided_by = (options.packing == Packing::Documents).then_some(options.eos_token_id);
        tracing::info!(
            tokens = dataset.num_tokens(),
            documents = dataset.num_documents(),
            empty_documents = dataset.num_empty_documents(),
            rows = dataset.num_rows(),
            unused_tokens = dataset.num_unused_tokens(),
            from_cache,
            "data is ready"
        );
        Ok(dataset)
    }

    /// From a stream that is there already, end-of-text tokens included; it counts as one document.
    ///
    /// # Errors
    /// It is less than one row.
    pub fn from_tokens(tokens: &[u32], sequence_length: usize) -> Result<Self, DataError> {
        let mut stream = Tokens::for_ids_up_to(tokens.iter().copied().max().unwrap_or(0));
        stream.extend(tokens);
        let documents = DocumentCounts { with_text: 1, without: 0 };
        Self::from_stream(Stream::in_memory(stream, documents), sequence_length)
    }

    fn from_stream(stream: Stream, sequence_length: usize) -> Result<Self, DataError> {
        if sequence_length == 0 {
            return Err(DataError::TooSmall { name: "sequence_length", found: 0, least: 1 });
        }
        let tokens = stream.num_tokens;
        if pack::num_rows(tokens, sequence_length) == 0 {
            let needed = sequence_length.saturating_add(1);
            return Err(DataError::TooFewTokens { tokens, needed, sequence_length });
        }
        Ok(Self { stream, sequence_length, divided_by: None, from_cache: false })
    }

    /// Rows, at least 1.
    pub fn num_rows(&self) -> usize {
        pack::num_rows(self.num_tokens(), self.sequence_length)
    }

    /// Inputs of a row.
    pub fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// Tokens of the stream, end-of-text ones included.
    pub fn num_tokens(&self) -> usize {
        self.stream.num_tokens
    }

    /// Tokens after the last row's, fewer than a row, which are not used.
    pub fn num_unused_tokens(&self) -> usize {
        self.num_tokens() - 1 - self.num_rows() * self.sequence_length
    }

    /// Documents with text.
    pub fn num_documents(&self) -> u64 {
        self.stream.num_documents
    }

    /// Documents without text, which add nothing to the stream.
    pub fn num_empty_documents(&self) -> u64 {
        self.stream.num_empty_documents
    }

    /// Whether the tokens were read from the cache.
    pub fn from_cache(&self) -> bool {
        self.from_cache
    }

    /// SHA-256 of the tokens, the sequence length and the packing, in hexadecimal: equal fingerprints have equal rows.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new_with_prefix(self.stream.digest);
        hasher.update((self.sequence_length as u64).to_le_bytes());
        if let Some(end) = self.divided_by {
            hasher.update(end.to_le_bytes());
        }
        hex(&hasher.finalize())
    }

    /// The rows of these indices, in this order.
    ///
    /// # Errors
    /// The disk fails.
    ///
    /// # Panics
    /// An index is not below [`TokenDataset::num_rows`].
    pub fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        let mut batch = self.empty_batch(rows.len());
        for &row in rows {
            self.add_row(row, &mut batch)?;
            batch.indices.push(row);
        }
        Ok(batch)
    }

    /// A batch without rows, for `rows` of them.
    pub(crate) fn empty_batch(&self, rows: usize) -> Batch {
        let tokens = rows * self.sequence_length;
        Batch {
            inputs: Vec::with_capacity(tokens),
            targets: Vec::with_capacity(tokens),
            pieces: Vec::new(),
            indices: Vec::with_capacity(rows),
            rows: 0,
            sequence_length: self.sequence_length,
        }
    }

    /// Adds the tokens of a row.
    pub(crate) fn add_row(&self, row: usize, batch: &mut Batch) -> Result<(), DataError> {
        let range = pack::row_range(row, self.sequence_length);
        let start = batch.inputs.len();
        self.stream.copy_into(range, &mut batch.targets)?;
        batch.inputs.push(batch.targets.remove(start));
        batch.inputs.extend_from_slice(&batch.targets[start..batch.targets.len() - 1]);
        match self.divided_by {
            Some(end) => batch.pieces.extend(pack::pieces(&batch.inputs[start..], end)),
            None => batch.pieces.push(self.sequence_length),
        }
        batch.rows += 1;
        Ok(())
    }

    /// Rows for a held-out loss: all of them or `limit`, spread evenly over the data, always the same ones and in the stream's order.
    pub fn heldout_rows(&self, limit: Option<usize>) -> Vec<usize> {
        let rows = self.num_rows();
        let count = limit.unwrap_or(rows).min(rows);
        // In u128 since the product may be past 2^64; the quotient is below `rows`.
        (0..count).map(|index| (index as u128 * rows as u128 / count as u128) as usize).collect()
    }

    /// [`TokenDataset::heldout_rows`] in batches, of which the last may be smaller.
    ///
    /// # Errors
    /// `batch_size` is 0; for a batch, the disk fails.
    pub fn heldout_batches(
        &self,
        batch_size: usize,
        limit: Option<usize>,
    ) -> Result<impl ExactSizeIterator<Item = Result<Batch, DataError>> + '_, DataError> {
        if batch_size == 0 {
            return Err(DataError::TooSmall { name: "batch_size", found: 0, least: 1 });
        }
        let rows = self.heldout_rows(limit);
        let batches = (0..rows.len().div_ceil(batch_size))
            .map(move |index| self.batch(&rows[index * batch_size..rows.len().min((index + 1) * batch_size)]));
        Ok(batches)
    }
}

fn in_memory(
    options: &DatasetOptions,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(Progress),
) -> Result<Stream, DataError> {
    let mut all = None;
    let mut keep = |tokens: &mut Tokens, after: Position, last: bool| {
        if last {
            let tokens = std::mem::replace(tokens, Tokens::for_ids_up_to(0));
            all = Some(Stream::in_memory(tokens, after.documents));
        }
        Ok(())
    };
    tokenize(options, tokenizer, Sizes::USUAL, (Position::default(), 0), &mut keep, progress)?;
    match all {
        Some(stream) => Ok(stream),
        None => unreachable!("tokenising ends with the last tokens"),
    }
}
