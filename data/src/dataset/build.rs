//! From files to one stream of tokens, on all threads, a few megabytes of text at a time.

use std::time::Instant;

use sha2::{Digest, Sha256};

use super::{DatasetOptions, Part, Progress};
use crate::cache::Stream;
use crate::document::documents;
use crate::error::DataError;
use crate::tokenizer::Tokenizer;
use crate::tokens::Tokens;

/// Text handed to the tokenizer's threads at a time: many documents, little memory.
const BYTES_PER_CHUNK: usize = 2 << 20;

impl Part {
    /// Whether a document with this text is in the part. Equal texts are in the same one.
    fn holds(self, text: &str) -> bool {
        let fraction = match self {
            Self::All => return true,
            Self::Train { heldout } | Self::Heldout { heldout } => heldout,
        };
        let digest: [u8; 32] = Sha256::digest(text).into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        let number = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        // Of 2⁶⁴, with the 53 bits that f64 holds.
        let part = (number >> 11) as f64 / 2f64.powi(53);
        let heldout = part < fraction;
        heldout == matches!(self, Self::Heldout { .. })
    }
}

/// Bytes of all files.
pub(super) fn total_bytes(options: &DatasetOptions) -> Result<u64, DataError> {
    let mut total = 0;
    for file in &options.files {
        total += fs_err::metadata(&file.path)?.len();
    }
    Ok(total)
}

/// The stream in the making.
struct Builder<'build> {
    tokenizer: &'build Tokenizer,
    options: &'build DatasetOptions,
    tokens: Tokens,
    num_documents: u64,
    num_empty_documents: u64,
    /// Documents that wait to be tokenised together.
    pending: Vec<String>,
    pending_bytes: usize,
}

impl Builder<'_> {
    fn add(&mut self, text: String) {
        if text.is_empty() {
            self.num_empty_documents += 1;
        } else if self.options.part.holds(&text) {
            self.num_documents += 1;
            self.pending_bytes += text.len();
            self.pending.push(text);
        }
    }

    fn flush(&mut self) -> Result<(), DataError> {
        for ids in self.tokenizer.encode_batch(&self.pending)? {
            self.tokens.extend(&ids);
            self.tokens.push(self.options.eos_token_id);
        }
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }
}

pub(super) fn tokenize(
    options: &DatasetOptions,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(Progress),
) -> Result<Stream, DataError> {
    let began = Instant::now();
    let bytes_total = total_bytes(options)?;
    let mut builder = Builder {
        tokenizer,
        options,
        tokens: Tokens::for_ids_up_to(tokenizer.largest_id()),
        num_documents: 0,
        num_empty_documents: 0,
        pending: Vec::new(),
        pending_bytes: 0,
    };
    let mut bytes_before = 0;
    for file in &options.files {
        for document in documents(&file.path, &file.text_field)? {
            let document = document?;
            builder.add(document.text);
            if builder.pending_bytes >= BYTES_PER_CHUNK {
                builder.flush()?;
                let bytes_done = bytes_before + document.bytes_read;
                progress(Progress { bytes_done, bytes_total, tokens: builder.tokens.len() as u64 });
            }
        }
        bytes_before += fs_err::metadata(&file.path)?.len();
    }
    builder.flush()?;
    progress(Progress { bytes_done: bytes_total, bytes_total, tokens: builder.tokens.len() as u64 });
    let seconds = began.elapsed().as_secs_f64();
    tracing::info!(
        bytes = bytes_total,
        seconds,
        tokens_per_second = builder.tokens.len() as f64 / seconds,
        "tokenised"
    );
    Ok(Stream::new(builder.tokens, builder.num_documents, builder.num_empty_documents))
}
