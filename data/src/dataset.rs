//! The tokens of a set of files in memory, as rows.

use std::path::PathBuf;
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::cache::{self, Stream};
use crate::document::{check_files, documents};
use crate::error::DataError;
use crate::pack::{self, Batch};
use crate::tokenizer::{Tokenizer, hex};
use crate::tokens::Tokens;

/// Text handed to the tokenizer's threads at a time: many documents, little memory.
const BYTES_PER_CHUNK: usize = 2 << 20;

/// What to read and how to cut it.
#[derive(Debug, Clone)]
pub struct DatasetOptions {
    /// Data files, in the order of the stream; see [`crate::document`] for the formats.
    pub files: Vec<PathBuf>,
    /// JSON field or parquet column that holds the text.
    pub text_field: String,
    /// Inputs of a row.
    pub sequence_length: usize,
    /// Token that ends each document.
    pub eos_token_id: u32,
    /// Folder for token files, which is made where it is missing; `None` tokenises anew each time.
    pub cache_dir: Option<PathBuf>,
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
        check_files(&options.files)?;
        tokenizer.check_token(options.eos_token_id)?;
        let cache_path = match &options.cache_dir {
            Some(dir) => Some(cache::path(dir, options, tokenizer)?),
            None => None,
        };
        let cached = match &cache_path {
            Some(path) => cache::load(path)?,
            None => None,
        };
        let from_cache = cached.is_some();
        let stream = match cached {
            Some(stream) => {
                let bytes = total_bytes(options)?;
                progress(Progress { bytes_done: bytes, bytes_total: bytes, tokens: stream.tokens.len() as u64 });
                stream
            }
            None => {
                let stream = tokenize(options, tokenizer, progress)?;
                if let Some(path) = &cache_path {
                    cache::store(path, &stream)?;
                }
                stream
            }
        };
        let dataset = Self::from_stream(stream, options.sequence_length, from_cache)?;
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
        Self::from_stream(Stream::new(stream, 1, 0), sequence_length, false)
    }

    fn from_stream(stream: Stream, sequence_length: usize, from_cache: bool) -> Result<Self, DataError> {
        if sequence_length == 0 {
            return Err(DataError::TooSmall { name: "sequence_length", found: 0, least: 1 });
        }
        let tokens = stream.tokens.len();
        if pack::num_rows(tokens, sequence_length) == 0 {
            let needed = sequence_length.saturating_add(1);
            return Err(DataError::TooFewTokens { tokens, needed, sequence_length });
        }
        Ok(Self { stream, sequence_length, from_cache })
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
        self.stream.tokens.len()
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

    /// SHA-256 of the tokens and the sequence length, in hexadecimal: equal fingerprints have equal rows.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new_with_prefix(self.stream.digest);
        hasher.update((self.sequence_length as u64).to_le_bytes());
        hex(&hasher.finalize())
    }

    /// Checks that a run which saved `fingerprint` can go on with this data.
    ///
    /// # Errors
    /// The rows are not the same.
    pub fn check_fingerprint(&self, fingerprint: &str) -> Result<(), DataError> {
        let found = self.fingerprint();
        if found != fingerprint {
            return Err(DataError::DataChanged { expected: fingerprint.to_owned(), found });
        }
        Ok(())
    }

    /// The rows of these indices, in this order.
    ///
    /// # Panics
    /// An index is not below [`TokenDataset::num_rows`].
    pub fn batch(&self, rows: &[usize]) -> Batch {
        let length = self.sequence_length;
        let mut inputs = Vec::with_capacity(rows.len() * length);
        let mut targets = Vec::with_capacity(rows.len() * length);
        for &row in rows {
            let range = pack::row_range(row, length);
            self.stream.tokens.copy_into(range.start..range.end - 1, &mut inputs);
            self.stream.tokens.copy_into(range.start + 1..range.end, &mut targets);
        }
        Batch { inputs, targets, indices: rows.to_vec(), rows: rows.len(), sequence_length: length }
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
    /// `batch_size` is 0.
    pub fn heldout_batches(
        &self,
        batch_size: usize,
        limit: Option<usize>,
    ) -> Result<impl ExactSizeIterator<Item = Batch> + '_, DataError> {
        if batch_size == 0 {
            return Err(DataError::TooSmall { name: "batch_size", found: 0, least: 1 });
        }
        let rows = self.heldout_rows(limit);
        let batches = (0..rows.len().div_ceil(batch_size))
            .map(move |index| self.batch(&rows[index * batch_size..rows.len().min((index + 1) * batch_size)]));
        Ok(batches)
    }
}

fn total_bytes(options: &DatasetOptions) -> Result<u64, DataError> {
    let mut total = 0;
    for file in &options.files {
        total += fs_err::metadata(file)?.len();
    }
    Ok(total)
}

/// The stream in the making.
struct Builder<'build> {
    tokenizer: &'build Tokenizer,
    eos_token_id: u32,
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
            return;
        }
        self.num_documents += 1;
        self.pending_bytes += text.len();
        self.pending.push(text);
    }

    fn flush(&mut self) -> Result<(), DataError> {
        for ids in self.tokenizer.encode_batch(&self.pending)? {
            self.tokens.extend(&ids);
            self.tokens.push(self.eos_token_id);
        }
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }
}

fn tokenize(
    options: &DatasetOptions,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(Progress),
) -> Result<Stream, DataError> {
    let began = Instant::now();
    let bytes_total = total_bytes(options)?;
    let mut builder = Builder {
        tokenizer,
        eos_token_id: options.eos_token_id,
        tokens: Tokens::for_ids_up_to(tokenizer.largest_id()),
        num_documents: 0,
        num_empty_documents: 0,
        pending: Vec::new(),
        pending_bytes: 0,
    };
    let mut bytes_before = 0;
    for file in &options.files {
        for document in documents(file, &options.text_field)? {
            let document = document?;
            builder.add(document.text);
            if builder.pending_bytes >= BYTES_PER_CHUNK {
                builder.flush()?;
                let bytes_done = bytes_before + document.bytes_read;
                progress(Progress { bytes_done, bytes_total, tokens: builder.tokens.len() as u64 });
            }
        }
        bytes_before += fs_err::metadata(file)?.len();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::tiny;

    const END: u32 = 0;

    struct Files {
        folder: tempfile::TempDir,
        options: DatasetOptions,
    }

    /// Four documents, one of them empty, in two files.
    fn files(sequence_length: usize) -> Files {
        let folder = tempfile::tempdir().unwrap();
        let paths = vec![folder.path().join("a.jsonl"), folder.path().join("b.txt")];
        fs_err::write(&paths[0], "{\"text\": \"row 1\"}\n{\"text\": \"\"}\n{\"text\": \"and a row 2\"}\n").unwrap();
        fs_err::write(&paths[1], "a whole file\n").unwrap();
        let options = DatasetOptions {
            files: paths,
            text_field: "text".to_owned(),
            sequence_length,
            eos_token_id: END,
            cache_dir: Some(folder.path().join("cache")),
        };
        Files { folder, options }
    }

    fn build(options: &DatasetOptions) -> Result<TokenDataset, DataError> {
        TokenDataset::build(options, &tiny(), &mut |_| ())
    }

    fn stream(dataset: &TokenDataset) -> Vec<u32> {
        let mut out = Vec::new();
        dataset.stream.tokens.copy_into(0..dataset.num_tokens(), &mut out);
        out
    }

    #[test]
    fn the_stream_is_each_document_with_an_end_of_text_token() {
        let files = files(4);
        let dataset = build(&files.options).unwrap();
        let mut expected = Vec::new();
        for text in ["row 1", "and a row 2", "a whole file\n"] {
            expected.extend(tiny().encode(text).unwrap());
            expected.push(END);
        }
        assert_eq!(stream(&dataset), expected);
        assert_eq!((dataset.num_documents(), dataset.num_empty_documents()), (3, 1));
        assert_eq!(dataset.num_rows() * 4 + dataset.num_unused_tokens() + 1, expected.len());
        let batch = dataset.batch(&[1, 0]);
        assert_eq!(batch.inputs, [&expected[4..8], &expected[0..4]].concat());
        assert_eq!(batch.targets, [&expected[5..9], &expected[1..5]].concat());
    }

    #[test]
    fn the_second_build_comes_from_the_cache_and_is_the_same() {
        let mut files = files(4);
        let first = build(&files.options).unwrap();
        let second = build(&files.options).unwrap();
        assert_eq!((first.from_cache(), second.from_cache()), (false, true));
        assert_eq!(first.stream, second.stream);
        // Another sequence length cuts the same tokens.
        files.options.sequence_length = 3;
        assert!(build(&files.options).unwrap().from_cache());
        // Other text, field, end-of-text token or order does not.
        fs_err::write(&files.options.files[1], "another file\n").unwrap();
        assert!(!build(&files.options).unwrap().from_cache());
        files.options.eos_token_id = 1;
        assert!(!build(&files.options).unwrap().from_cache());
        files.options.files.reverse();
        assert!(!build(&files.options).unwrap().from_cache());
        assert!(build(&files.options).unwrap().from_cache());
        files.options.cache_dir = None;
        assert!(!build(&files.options).unwrap().from_cache());
    }

    #[test]
    fn the_tokens_do_not_depend_on_the_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let row = |index: usize| format!("{{\"text\": \"row {index} {}\"}}\n", "some text ".repeat(index % 50));
        fs_err::write(&path, (0..2000).map(row).collect::<String>()).unwrap();
        let options = DatasetOptions { files: vec![path], cache_dir: None, ..files(8).options };
        let of_threads = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| build(&options).unwrap())
        };
        assert_eq!(of_threads(1).stream, of_threads(4).stream);
    }

    #[test]
    fn progress_ends_with_everything_done_and_never_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let row = format!("{{\"text\": \"{}\"}}\n", "text ".repeat(1000));
        fs_err::write(&path, row.repeat(900)).unwrap();
        let bytes_total = row.len() as u64 * 900;
        let options = DatasetOptions { files: vec![path], ..files(8).options };
        let mut seen = Vec::new();
        let dataset = TokenDataset::build(&options, &tiny(), &mut |progress| seen.push(progress)).unwrap();
        assert_eq!(seen.len(), 3, "4.5 MB of text in chunks of 2 MiB");
        assert!(seen.is_sorted_by_key(|progress| progress.bytes_done));
        let tokens = dataset.num_tokens() as u64;
        assert_eq!(seen.last(), Some(&Progress { bytes_done: bytes_total, bytes_total, tokens }));
    }

    #[test]
    fn the_fingerprint_tells_text_and_sequence_length_apart() {
        let files = files(4);
        let dataset = build(&files.options).unwrap();
        dataset.check_fingerprint(&build(&files.options).unwrap().fingerprint()).unwrap();
        let shorter = DatasetOptions { sequence_length: 3, ..files.options.clone() };
        let error = build(&shorter).unwrap().check_fingerprint(&dataset.fingerprint()).unwrap_err();
        assert!(matches!(error, DataError::DataChanged { .. }));
    }

    #[test]
    fn bad_data_is_an_error_and_leaves_no_cache() {
        let files = files(1000);
        let message = build(&DatasetOptions { cache_dir: None, ..files.options.clone() }).unwrap_err().to_string();
        assert!(message.contains("expected at least 1001, one row of sequence length 1000"), "{message}");
        let bad_id = DatasetOptions { eos_token_id: 9999, ..files.options.clone() };
        assert!(matches!(build(&bad_id), Err(DataError::NoSuchToken { id: 9999, .. })));
        let zero = DatasetOptions { sequence_length: 0, cache_dir: None, ..files.options.clone() };
        assert!(matches!(build(&zero), Err(DataError::TooSmall { name: "sequence_length", .. })));
        fs_err::write(&files.options.files[1], b"\xff").unwrap();
        assert!(matches!(build(&files.options), Err(DataError::NotUtf8 { .. })));
        assert!(!files.folder.path().join("cache").exists());
    }

    #[test]
    fn heldout_rows_are_spread_evenly_and_in_order() {
        let tokens: Vec<u32> = (0..101).collect();
        let dataset = TokenDataset::from_tokens(&tokens, 10).unwrap();
        assert_eq!(dataset.heldout_rows(None), (0..10).collect::<Vec<_>>());
        assert_eq!(dataset.heldout_rows(Some(99)), (0..10).collect::<Vec<_>>());
        assert_eq!(dataset.heldout_rows(Some(4)), [0, 2, 5, 7]);
        assert_eq!(dataset.heldout_rows(Some(0)), [0; 0]);
        let batches: Vec<Batch> = dataset.heldout_batches(3, Some(4)).unwrap().collect();
        assert_eq!(batches, [dataset.batch(&[0, 2, 5]), dataset.batch(&[7])]);
        assert!(dataset.heldout_batches(0, None).is_err());
    }
}
