//! The tokens of a set of files as rows.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::best_fit::{PackedRows, Packer, WINDOW};
use crate::cache;
use crate::conversation;
use crate::document::{check_files, check_generated, is_tokens};
use crate::error::DataError;
use crate::options::{DatasetOptions, Progress, Split};
use crate::pack::{self, Batch, Packing};
use crate::stream::Stream;
use crate::tokenize::{DocumentCounts, Position, Sizes, tokenize, total_bytes};
use crate::tokenizer::{Tokenizer, hex};
use crate::tokens::Tokens;

/// Tokens of all files, cut into rows by [`crate::pack`].
#[derive(Debug, Clone)]
pub struct TokenDataset {
    stream: Stream,
    sequence_length: usize,
    cut: Cut,
    ends: Ends,
    from_cache: bool,
    /// Where its tokens are kept.
    folder: Option<PathBuf>,
}

/// How rows are cut.
#[derive(Debug, Clone)]
enum Cut {
    Plain,
    Documents,
    BestFit(Arc<PackedRows>),
}

/// What ends a document in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// The end-of-text token.
    Token(u32),
    /// A bit of the last token of a conversation, which has one for targets too.
    Bit,
}

impl Ends {
    fn ends(self, token: u32) -> bool {
        match self {
            Self::Token(end) => token == end,
            Self::Bit => conversation::is_last(token),
        }
    }
}

impl Cut {
    fn new(packing: Packing, ends: Ends, stream: &Stream, sequence_length: usize) -> Result<Self, DataError> {
        Ok(match packing {
            Packing::Plain => Self::Plain,
            Packing::Documents => Self::Documents,
            Packing::BestFit => {
                let mut packer = Packer::new(sequence_length, WINDOW);
                stream.documents(|token| ends.ends(token), |document| packer.add(document))?;
                Self::BestFit(Arc::new(packer.finish()))
            }
        })
    }
}

impl TokenDataset {
    /// Reads and tokenises all files, or reads their tokens from the cache. The result does not
    /// depend on the number of threads.
    ///
    /// `progress` is called after each few megabytes of text, the last time with everything done.
    ///
    /// # Errors
    /// A file is missing, empty, malformed or not UTF-8; the end-of-text id is not the tokenizer's;
    /// there is less than one row of text; the cache folder cannot be written.
    pub fn build(
        options: &DatasetOptions,
        tokenizer: &Tokenizer,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, DataError> {
        let paths: Vec<PathBuf> = options.files.iter().map(|file| file.path.clone()).collect();
        check_files(&paths)?;
        tokenizer.check_token(options.eos_token_id)?;
        paths.iter().try_for_each(|path| check_generated(path, tokenizer))?;
        let mut folder = None;
        let (stream, from_cache) = match &options.cache_dir {
            _ if options.conversations.is_none() && are_tokens(options)? => (cache::given(options, tokenizer)?, true),
            None => (in_memory(options, tokenizer, progress)?, false),
            Some(dir) => {
                let key = cache::folder(dir, options, tokenizer)?;
                let stream = cache::stream(&key, options, tokenizer, Sizes::USUAL, progress)?;
                folder = Some(key);
                stream
            }
        };
        if from_cache {
            let bytes = total_bytes(options)?;
            progress(Progress { bytes_done: bytes, bytes_total: bytes, tokens: stream.num_tokens as u64 });
        }
        let (length, packing) = (options.sequence_length, options.packing);
        let ends = if options.conversations.is_some() { Ends::Bit } else { Ends::Token(options.eos_token_id) };
        let mut dataset = Self::from_stream(stream, length, packing, ends)?;
        dataset.from_cache = from_cache;
        dataset.folder = folder;
        tracing::info!(
            tokens = dataset.num_tokens(),
            documents = dataset.num_documents(),
            empty_documents = dataset.num_empty_documents(),
            rows = dataset.num_rows(),
            unused_tokens = dataset.num_unused_tokens(),
            fill = dataset.fill(),
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
        Self::from_stream(Stream::in_memory(stream, documents), sequence_length, Packing::Plain, Ends::Token(0))
    }

    fn from_stream(stream: Stream, sequence_length: usize, packing: Packing, ends: Ends) -> Result<Self, DataError> {
        if sequence_length == 0 {
            return Err(DataError::TooSmall { name: "sequence_length", found: 0, least: 1 });
        }
        let cut = Cut::new(packing, ends, &stream, sequence_length)?;
        let dataset = Self { stream, sequence_length, cut, ends, from_cache: false, folder: None };
        if dataset.num_rows() == 0 {
            let needed = if packing == Packing::BestFit { 2 } else { sequence_length.saturating_add(1) };
            return Err(DataError::TooFewTokens { tokens: dataset.num_tokens(), needed, sequence_length });
        }
        Ok(dataset)
    }

    /// Rows, at least 1.
    pub fn num_rows(&self) -> usize {
        match &self.cut {
            Cut::Plain | Cut::Documents => pack::num_rows(self.num_tokens(), self.sequence_length),
            Cut::BestFit(rows) => rows.len(),
        }
    }

    /// Inputs of all rows.
    pub fn num_inputs(&self) -> usize {
        match &self.cut {
            Cut::Plain | Cut::Documents => self.num_rows() * self.sequence_length,
            Cut::BestFit(rows) => rows.places,
        }
    }

    /// Split of the places of all rows that have an input: 1 but for best-fit packing.
    pub fn fill(&self) -> f64 {
        self.num_inputs() as f64 / (self.num_rows() * self.sequence_length) as f64
    }

    /// Inputs of a row; the most of them, with best-fit packing.
    pub fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// Tokens of the stream, end-of-text ones included.
    pub fn num_tokens(&self) -> usize {
        self.stream.num_tokens
    }

    /// Tokens that are not used: those after the last row's, fewer than a row; none with best-fit
    /// packing, in which the last token of a document is a target only.
    pub fn num_unused_tokens(&self) -> usize {
        match &self.cut {
            Cut::Plain | Cut::Documents => self.num_tokens() - 1 - self.num_inputs(),
            Cut::BestFit(_) => 0,
        }
    }

    /// Documents with text.
    pub fn num_documents(&self) -> u64 {
        self.stream.num_documents
    }

    /// Documents without text, which add nothing to the stream.
    pub fn num_empty_documents(&self) -> u64 {
        self.stream.num_empty_documents
    }

    /// The folder of the cache that its tokens are in, as `.tokens` files.
    pub fn folder(&self) -> Option<&std::path::Path> {
        self.folder.as_deref()
    }

    /// Whether the tokens were read from the cache.
    pub fn from_cache(&self) -> bool {
        self.from_cache
    }

    /// SHA-256 of the tokens, the sequence length and the packing, in hexadecimal: equal
    /// fingerprints have equal rows.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new_with_prefix(self.stream.digest);
        hasher.update((self.sequence_length as u64).to_le_bytes());
        let mut end = || match self.ends {
            Ends::Token(end) => hasher.update(end.to_le_bytes()),
            Ends::Bit => hasher.update(b"conversations"),
        };
        match self.cut {
            Cut::Plain => {}
            Cut::Documents => end(),
            Cut::BestFit(_) => {
                end();
                hasher.update(b"best fit");
                hasher.update((WINDOW as u64).to_le_bytes());
            }
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
            learnt: (self.ends == Ends::Bit).then(|| Vec::with_capacity(tokens)),
            pieces: Vec::new(),
            indices: Vec::with_capacity(rows),
            row_lengths: Vec::with_capacity(rows),
            rows: 0,
            sequence_length: self.sequence_length,
        }
    }

    /// Adds the tokens of a row.
    pub(crate) fn add_row(&self, row: usize, batch: &mut Batch) -> Result<(), DataError> {
        let start = batch.inputs.len();
        let range = || pack::row_range(row, self.sequence_length);
        match &self.cut {
            Cut::Plain => {
                self.add_tokens(range(), batch)?;
                batch.pieces.push(self.sequence_length);
            }
            Cut::Documents => {
                let pieces = self.add_tokens(range(), batch)?;
                batch.pieces.extend(pieces);
            }
            Cut::BestFit(rows) => {
                for piece in rows.row(row) {
                    let places = piece.places as usize;
                    self.add_tokens(piece.start..piece.start + places + 1, batch)?;
                    batch.pieces.push(places);
                }
            }
        }
        batch.row_lengths.push(batch.inputs.len() - start);
        batch.rows += 1;
        Ok(())
    }

    /// Adds tokens of the stream: all but the last as inputs, all but the first as targets. Gives
    /// the lengths of the pieces of documents in the inputs.
    fn add_tokens(&self, range: std::ops::Range<usize>, batch: &mut Batch) -> Result<Vec<usize>, DataError> {
        let mut tokens = Vec::with_capacity(range.len());
        self.stream.copy_into(range, &mut tokens)?;
        let pieces = pack::pieces(&tokens[..tokens.len() - 1], |token| self.ends.ends(token));
        if let Some(learnt) = &mut batch.learnt {
            learnt.extend(tokens[1..].iter().map(|token| conversation::is_learnt(*token)));
            tokens.iter_mut().for_each(|token| *token = conversation::id(*token));
        }
        batch.inputs.extend_from_slice(&tokens[..tokens.len() - 1]);
        batch.targets.extend_from_slice(&tokens[1..]);
        Ok(pieces)
    }

    /// Rows for a held-out loss: all of them or `limit`, spread evenly over the data, always the
    /// same ones and in the stream's order.
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

/// Whether the files hold tokens.
fn are_tokens(options: &DatasetOptions) -> Result<bool, DataError> {
    let path = |tokens: bool| options.files.iter().map(|file| &file.path).find(|path| is_tokens(path) == tokens);
    match (path(true), path(false)) {
        (Some(tokens), Some(text)) => Err(DataError::TextAndTokens { text: text.clone(), tokens: tokens.clone() }),
        (Some(path), None) if options.split != Split::All => Err(DataError::HeldoutTokens { path: path.clone() }),
        (tokens, _) => Ok(tokens.is_some()),
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
