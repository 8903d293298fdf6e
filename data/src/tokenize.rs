//! From files to one stream of tokens, on all threads, a few megabytes of text at a time.

use std::time::Instant;

use rayon::prelude::*;

use crate::document::{conversations, document_bytes, documents};
use crate::error::DataError;
use crate::options::{DatasetOptions, Progress};
use crate::tokenizer::Tokenizer;
use crate::tokens::Tokens;

/// How the work is cut; the tokens do not depend on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Bytes of text that are handed to the tokenizer's threads at a time, about.
    pub(crate) chunk_bytes: usize,
    /// Tokens of a shard on disk, about.
    pub(crate) shard_tokens: usize,
}

impl Sizes {
    /// Chunks of many documents that need little memory; shards of 16 MB at two bytes a token, some
    /// seconds of work.
    pub(crate) const USUAL: Self = Self { chunk_bytes: 2 << 20, shard_tokens: 8 << 20 };
}

/// Bytes of all files.
pub(crate) fn total_bytes(options: &DatasetOptions) -> Result<u64, DataError> {
    let mut total = 0;
    for file in &options.files {
        total += document_bytes(&file.path)?;
    }
    Ok(total)
}

/// Numbers of documents of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DocumentCounts {
    pub(crate) with_text: u64,
    pub(crate) without: u64,
}

/// Where reading stands between two documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Index of the file, counted from 0.
    pub(crate) file: u64,
    /// Documents of that file that are read.
    pub(crate) in_file: u64,
    /// Documents of the part, in all files so far.
    pub(crate) documents: DocumentCounts,
}

/// Takes tokens out, or leaves them to grow: the tokens so far, where reading stands behind them,
/// and whether that is the end.
pub(crate) type Sink<'a> = dyn FnMut(&mut Tokens, Position, bool) -> Result<(), DataError> + 'a;

/// The stream in the making.
struct Builder<'build> {
    tokenizer: &'build Tokenizer,
    options: &'build DatasetOptions,
    /// Token before each document.
    bos: Option<u32>,
    tokens: Tokens,
    position: Position,
    /// Documents that wait to be tokenised together.
    pending: Vec<String>,
    /// The file of each, counted from 0, and its number there, from 1.
    places: Vec<(u64, u64)>,
    pending_bytes: usize,
}

impl Builder<'_> {
    fn add(&mut self, text: String) {
        self.position.in_file += 1;
        if text.is_empty() {
            self.position.documents.without += 1;
        } else if self.options.split.holds(&text) {
            self.position.documents.with_text += 1;
            self.pending_bytes += text.len();
            self.pending.push(text);
            self.places.push((self.position.file, self.position.in_file));
        }
    }

    /// Tokenises what waits and shows it to `sink`; gives how many tokens there are more.
    fn flush(&mut self, sink: &mut Sink<'_>, last: bool) -> Result<u64, DataError> {
        let before = self.tokens.len();
        let encoded: Result<Vec<Vec<u32>>, DataError> = self.pending.par_iter().map(|text| self.encode(text)).collect();
        for tokens in encoded.map_err(|error| self.placed(error))? {
            self.tokens.extend(&tokens);
        }
        self.pending.clear();
        self.places.clear();
        self.pending_bytes = 0;
        let more = self.tokens.len() - before;
        sink(&mut self.tokens, self.position, last)?;
        Ok(more as u64)
    }

    /// Tokens of a document: the text between BOS and end-of-text token, or a conversation.
    fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        if let Some(conversations) = &self.options.conversations {
            return conversations.tokens(self.tokenizer, text);
        }
        let mut tokens: Vec<u32> = self.bos.into_iter().collect();
        tokens.extend(self.tokenizer.encode(text)?);
        tokens.push(self.options.eos_token_id);
        Ok(tokens)
    }

    /// `error` with the first document that cannot be tokenised.
    fn placed(&self, error: DataError) -> DataError {
        let failed = self.pending.iter().zip(&self.places).find_map(|(text, place)| {
            let source = self.encode(text).err()?;
            let file = self.options.files.get(usize::try_from(place.0).ok()?)?;
            Some(DataError::Document { path: file.path.clone(), number: place.1, source: Box::new(source) })
        });
        failed.unwrap_or(error)
    }
}

/// The token before each document: the BOS token, unless it is the one that ends documents and so
/// stands before the next one already. Conversations have those of their template.
pub(crate) fn document_bos(options: &DatasetOptions, tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.bos_token().filter(|bos| *bos != options.eos_token_id && options.conversations.is_none())
}

/// An empty list for the tokens of a stream.
pub(crate) fn empty_tokens(options: &DatasetOptions, tokenizer: &Tokenizer) -> Tokens {
    Tokens::for_ids_up_to(if options.conversations.is_some() { u32::MAX } else { tokenizer.largest_id() })
}

/// Tokenises from a position on, before which there were `before` tokens. `sink` is called after
/// each few megabytes of text, the last time at the end.
pub(crate) fn tokenize(
    options: &DatasetOptions,
    tokenizer: &Tokenizer,
    sizes: Sizes,
    (from, before): (Position, u64),
    sink: &mut Sink<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DataError> {
    let began = Instant::now();
    let bytes_total = total_bytes(options)?;
    let mut builder = Builder {
        tokenizer,
        options,
        bos: document_bos(options, tokenizer),
        tokens: empty_tokens(options, tokenizer),
        position: from,
        pending: Vec::new(),
        places: Vec::new(),
        pending_bytes: 0,
    };
    let mut tokens = before;
    let mut bytes_before = 0;
    for (index, file) in options.files.iter().enumerate() {
        let bytes = document_bytes(&file.path)?;
        let index = index as u64;
        if index < from.file {
            bytes_before += bytes;
            continue;
        }
        let done = if index == from.file { from.in_file } else { 0 };
        builder.position = Position { file: index, in_file: done, ..builder.position };
        let open = if options.conversations.is_some() { conversations } else { documents };
        for (number, document) in open(&file.path, &file.text_field)?.enumerate() {
            let document = document?;
            if (number as u64) < done {
                continue;
            }
            builder.add(document.text);
            if builder.pending_bytes >= sizes.chunk_bytes {
                tokens += builder.flush(sink, false)?;
                progress(Progress { bytes_done: bytes_before + document.bytes_read, bytes_total, tokens });
            }
        }
        bytes_before += bytes;
    }
    tokens += builder.flush(sink, true)?;
    progress(Progress { bytes_done: bytes_total, bytes_total, tokens });
    let seconds = began.elapsed().as_secs_f64();
    let tokens_per_second = (tokens - before) as f64 / seconds;
    let bos = builder.bos.and_then(|bos| tokenizer.token(bos)).unwrap_or_else(|| "none".to_owned());
    tracing::info!(bytes = bytes_total, seconds, tokens_per_second, bos, "tokenised");
    Ok(())
}
