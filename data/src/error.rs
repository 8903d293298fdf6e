//! Errors of this crate.

use std::path::PathBuf;

use crate::hints::{conversation_hint, field_hint, lines_hint};

/// Why text cannot be read, tokenised or batched.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file cannot be read or written; the message holds its path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A task that is no task, or has settings that it cannot have.
    #[error(transparent)]
    Task(#[from] retie_tasks::TaskError),
    /// Tokens of a task's text that hold parts of several symbols.
    #[error("the tokenizer merges symbols of task `{task}`: {}\nhint: {}", merged.join(", "), if *spaced { "take a tokenizer that cuts at spaces" } else { "`form=spaced` puts a space between symbols" })]
    MergedSymbols {
        /// The task.
        task: String,
        /// Such tokens.
        merged: Vec<String>,
        /// Whether there are spaces between symbols.
        spaced: bool,
    },
    /// Several data files are bad; all are listed.
    #[error("{} data files cannot be used:\n{}", .0.len(), list(.0))]
    Files(Vec<DataError>),
    /// A data file is not there, or is not a file.
    #[error("data file `{}` {problem}", path.display())]
    NotAFile {
        /// The path asked for.
        path: PathBuf,
        /// `does not exist`, `is a folder`, …
        problem: &'static str,
    },
    /// No data file was given.
    #[error("no data files are given\nhint: name at least one .jsonl, .txt, .parquet or .arrow file")]
    NoFiles,
    /// The file name does not end in an extension that can be read.
    #[error("data file `{}` has an unknown extension, expected one of: {}{}", path.display(), supported.join(", "), way_on(path))]
    UnknownExtension {
        /// The path asked for.
        path: PathBuf,
        /// Every extension that can be read.
        supported: Vec<String>,
    },
    /// Something else stands in the place of the file.
    #[error("`{}` is {found}\nhint: {}", path.display(), found.hint())]
    Disguised {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: retie_config::Disguise,
    },
    /// A packed file is damaged, cut off, or packed otherwise than its name says.
    #[error("`{}` cannot be decompressed as {compression}", path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
        /// `gzip` or `Zstandard`.
        compression: &'static str,
        /// Message of the decoder.
        #[source]
        source: std::io::Error,
    },
    /// A file that its name calls compressed, and that is text.
    #[error("`{}` is not compressed with {compression}, as its name says\nhint: take `.{extension}` off its name", path.display())]
    NotCompressed {
        /// The file.
        path: PathBuf,
        /// `gzip` or `Zstandard`.
        compression: &'static str,
        /// Its extension.
        extension: &'static str,
    },
    /// A file that was compressed with a dictionary.
    #[error(
        "`{}` is compressed with the Zstandard dictionary {id}, which is another file\n\
         hint: `zstd -d -D DICTIONARY FILE` decompresses it",
        path.display()
    )]
    Dictionary {
        /// The file.
        path: PathBuf,
        /// Number of the dictionary.
        id: u32,
    },
    /// A pattern that no file name fits.
    #[error("pattern `{}` matches no data file", pattern.display())]
    NoMatch {
        /// The pattern.
        pattern: PathBuf,
    },
    /// A name with `*`, `?` or `[` that is neither a file nor a pattern.
    #[error("`{pattern}` is neither a data file nor a pattern")]
    Pattern {
        /// The name.
        pattern: String,
        /// Where and why.
        #[source]
        source: glob::PatternError,
    },
    /// A file that would be read twice, as text to train on or as held-out text.
    #[error("data file `{}` is named twice\nhint: a pattern may name it beside its own name; held-out text is not trained on", path.display())]
    Twice {
        /// The file, as it was named the second time.
        path: PathBuf,
    },
    /// A `.tokens` file that is cut off or changed, or of another program or version.
    #[error("`{}` is damaged, or not a file of tokens of this version\nhint: `retie tokenize` makes it anew", path.display())]
    DamagedTokens {
        /// The file.
        path: PathBuf,
    },
    /// A `.tokens` file that was made with another tokenizer, BOS or end-of-text token.
    #[error("the tokens in `{}` were made with another tokenizer, BOS or end-of-text token\nhint: they serve models with the tokenizer that made them; `retie tokenize` makes others of the text", path.display())]
    OtherTokens {
        /// The file.
        path: PathBuf,
    },
    /// Tokens and text together.
    #[error("`{}` is text and `{}` tokens, expected one kind in a source\nhint: `data.mixture` can have a source of each", text.display(), tokens.display())]
    TextAndTokens {
        /// A file of text.
        text: PathBuf,
        /// A file of tokens.
        tokens: PathBuf,
    },
    /// Documents that are held out by their text, of tokens.
    #[error("`{}` holds tokens: which documents are held out follows from their text\nhint: name held-out files in the place of a fraction", path.display())]
    HeldoutTokens {
        /// A file of tokens.
        path: PathBuf,
    },
    /// Text of a file that has none.
    #[error("`{}` holds tokens, expected text", path.display())]
    NoText {
        /// The file.
        path: PathBuf,
    },
    /// The file has no text at all.
    #[error("`{}` holds no text", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Teacher and student read different ids.
    #[error(
        "the teacher `{teacher}` and the student `{student}` do not share a vocabulary: {reason}\nhint: distillation compares them token by token; use the student's original as the teacher"
    )]
    VocabularyMismatch {
        /// The teacher.
        teacher: String,
        /// The student.
        student: String,
        /// How they differ.
        reason: String,
    },
    /// A folder without a cache of logits.
    #[error("`{}` holds no cache of logits\nhint: `retie cache-logits` makes one", path.display())]
    NoLogits {
        /// The folder.
        path: PathBuf,
    },
    /// A cache of logits that is damaged or not complete.
    #[error("the cache of logits in `{}` cannot be used:\n  {}\nhint: the `retie cache-logits` that made it makes what is missing", dir.display(), problems.join("\n  "))]
    BadLogits {
        /// The folder.
        dir: PathBuf,
        /// Everything that is wrong.
        problems: Vec<String>,
    },
    /// Logits of a teacher that are not numbers.
    #[error(
        "the teacher's logits for rows {} to {} are not numbers and cannot be kept in `{}`\n\
         hint: its numbers overflow: compute them with `--dtype f32`",
        rows.start,
        rows.end - 1,
        dir.display()
    )]
    LogitsNotFinite {
        /// The folder.
        dir: PathBuf,
        /// Rows of the shard that they are in.
        rows: std::ops::Range<usize>,
    },
    /// A cache of logits of other things than are asked for.
    #[error("the cache of logits in `{}` was made of other things: {} differ\nhint: make one for these in another folder", dir.display(), differences.join(", "))]
    OtherLogits {
        /// The folder.
        dir: PathBuf,
        /// Fields of its `logits.json`.
        differences: Vec<String>,
    },
    /// A file that was written and is another one when it is read.
    #[error("`{}` was changed while it was in use", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are not UTF-8.
    #[error(
        "{place} is not UTF-8: the byte at offset {offset} of the {unit} cannot be decoded\nhint: save the text as UTF-8"
    )]
    NotUtf8 {
        /// File, and row or line where there is one.
        place: Place,
        /// First bad byte, counted from 0.
        offset: u64,
        /// Unit of `offset`: `file`, `decompressed text` or `value`.
        unit: &'static str,
    },
    /// A line of a `.jsonl` file is not JSON.
    #[error("{place} is not valid JSON{}", lines_hint(*spans_lines))]
    Json {
        /// File and line.
        place: Place,
        /// Whether it is a list or an object that goes on in the next line.
        spans_lines: bool,
        /// Message of the parser; its line number counts within the line.
        #[source]
        source: serde_json::Error,
    },
    /// A line of a `.jsonl` file with an escape that is no character.
    #[error(
        "{place} has `{escape}`, half of a surrogate pair, which is no character\n\
         hint: in Python, `text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')` replaces it"
    )]
    HalfSurrogate {
        /// File and line.
        place: Place,
        /// The escape.
        escape: String,
    },
    /// A line of a `.jsonl` file is JSON but not an object.
    #[error("{place} is {found}, expected an object with a text field `{field}`{}", lines_hint(*found == "an array"))]
    NotAnObject {
        /// File and line.
        place: Place,
        /// The text field.
        field: String,
        /// JSON type found.
        found: &'static str,
    },
    /// A row or a file lacks the text field.
    #[error("{place} has no {kind} `{field}`, found: {}{}", listed(found), field_hint(found))]
    MissingField {
        /// File, and line where there is one.
        place: Place,
        /// `field` or `column`.
        kind: &'static str,
        /// The text field asked for.
        field: String,
        /// The fields that are there.
        found: Vec<String>,
    },
    /// The text field holds something else than text.
    #[error("{place} has {found} in `{field}`, expected {expected}")]
    NotAString {
        /// File, and row or line where there is one.
        place: Place,
        /// The text field.
        field: String,
        /// Type found.
        found: String,
        /// `a string`, or what conversations are.
        expected: &'static str,
    },
    /// A `.parquet` file is damaged or uses something that is not built in.
    #[error("`{}` cannot be read as parquet", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Message of the parquet reader.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// A column of a `.parquet` file is compressed with a codec that is not built in.
    #[error(
        "`{}` is compressed with {codec}, which is not read\n\
         hint: write it with snappy, zstd, gzip, brotli, lz4 or uncompressed",
        path.display()
    )]
    ParquetCodec {
        /// The file.
        path: PathBuf,
        /// The codec, as the reader names it.
        codec: String,
    },
    /// An `.arrow` or `.feather` file is damaged or uses something that is not built in.
    #[error("`{}` cannot be read as Arrow IPC", path.display())]
    Arrow {
        /// The file.
        path: PathBuf,
        /// Message of the Arrow reader.
        #[source]
        source: arrow_schema::ArrowError,
    },
    /// A `tokenizer.json` cannot be used.
    #[error("tokenizer `{}` cannot be read", path.display())]
    Tokenizer {
        /// Where its JSON comes from.
        path: PathBuf,
        /// Message of the tokenizers library.
        #[source]
        source: tokenizers::Error,
    },
    /// A file on which the parser of its format panics.
    #[error("`{}` is damaged: the parser of its format ends with: {message}\nhint: download or copy it again", path.display())]
    Unparseable {
        /// The file.
        path: PathBuf,
        /// Message of the panic.
        message: String,
    },
    /// A file beside a `tokenizer.json` is damaged.
    #[error("`{}` is not JSON", path.display())]
    TokenizerConfig {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A tokenizer whose template puts several tokens before a text.
    #[error(
        "tokenizer `{}` puts several tokens before a text: `{tokens}`, expected one at most (BOS)\n\
         hint: its model was trained with all of them, and only one is supported",
        path.display()
    )]
    SeveralBefore {
        /// The file.
        path: PathBuf,
        /// The tokens.
        tokens: String,
    },
    /// A chat template that is not Jinja.
    #[error("the chat template of `{}` cannot be read", path.display())]
    ChatTemplate {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: minijinja::Error,
    },
    /// Messages that a chat template does not take.
    #[error("the chat template of `{}` does not take the messages: {reason}", path.display())]
    ChatMessages {
        /// The file.
        path: PathBuf,
        /// Message of the template.
        reason: String,
    },
    /// A conversation that cannot be learnt from.
    #[error("the conversation cannot be learnt from: {reason}{}", conversation_hint(reason))]
    Conversation {
        /// What is wrong.
        reason: String,
    },
    /// A model without a chat template.
    #[error(
        "`{model}` has no chat template, which `data.format: chat` needs\n\
         hint: put the `chat_template.jinja` of its instruct model into its folder"
    )]
    NoChatTemplate {
        /// The model.
        model: String,
    },
    /// A file of conversations in a format that is not read as such.
    #[error("`{}` cannot hold conversations, expected .jsonl[.gz|.zst] or .parquet", path.display())]
    NoConversations {
        /// The file.
        path: PathBuf,
    },
    /// A text is shorter than the calibration that is asked of it.
    #[error(
        "`{}` has {found} tokens, expected at least {expected}: {sequences} sequences of {sequence_length}, part of them held out\nhint: name a longer text, or ask for fewer tokens",
        path.display()
    )]
    CalibrationTooShort {
        /// The text.
        path: PathBuf,
        /// Its tokens.
        found: usize,
        /// The fewest that would do.
        expected: usize,
        /// Sequences that are wanted.
        sequences: usize,
        /// Tokens of a sequence.
        sequence_length: usize,
    },
    /// Text cannot be encoded, or ids cannot be decoded.
    #[error("tokenizer `{}` failed to {action}", path.display())]
    Tokenize {
        /// Where its JSON comes from.
        path: PathBuf,
        /// `encode text` or `decode ids`.
        action: &'static str,
        /// Message of the tokenizers library.
        #[source]
        source: tokenizers::Error,
    },
    /// A document that cannot be tokenised.
    #[error("document {number} of `{}` cannot be tokenised", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// Its number in the file, from 1; documents without text count.
        number: u64,
        /// Cause.
        source: Box<DataError>,
    },
    /// The tokenizer and the model are of different vocabularies.
    #[error(
        "tokenizer `{}` does not match the model: it has {tokenizer} tokens with ids up to {largest_id}, \
         the model has a vocabulary of {model}\nhint: use the tokenizer.json that came with the model",
        path.display()
    )]
    VocabMismatch {
        /// Where the tokenizer's JSON comes from.
        path: PathBuf,
        /// Number of tokens of the tokenizer, added ones included.
        tokenizer: usize,
        /// Largest id that the tokenizer gives.
        largest_id: u32,
        /// `vocab_size` of the model.
        model: usize,
    },
    /// A token that the model cannot take.
    #[error(
        "tokenizer `{}`: token `{token}` has the id {id}, and the model {rows} rows of embeddings\n\
         hint: the model was never trained with it: take it out of the text",
        path.display()
    )]
    NoRow {
        /// Where the tokenizer's JSON comes from.
        path: PathBuf,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the model's embeddings.
        rows: usize,
    },
    /// The end-of-text id is none of the tokenizer's.
    #[error(
        "tokenizer `{}` has no token with the end-of-text id {id}\nhint: use the tokenizer.json that came with the model",
        path.display()
    )]
    NoSuchToken {
        /// Where the tokenizer's JSON comes from.
        path: PathBuf,
        /// The id asked for.
        id: u32,
    },
    /// A size that must be at least 1 (2 for a window) is smaller.
    #[error("`{name}` is {found}, expected at least {least}")]
    TooSmall {
        /// Name of the option.
        name: &'static str,
        /// Its value.
        found: usize,
        /// The smallest allowed value.
        least: usize,
    },
    /// Windows further apart than they are long would leave tokens out.
    #[error("`stride` is {stride}, expected at most the window, {window}: tokens between windows would not be scored")]
    StrideTooLarge {
        /// Tokens from one window's start to the next's.
        stride: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// The text is too short for a single row.
    #[error(
        "the data has {tokens} tokens, expected at least {needed}, one row of sequence length {sequence_length}\n\
         hint: add data or lower the sequence length"
    )]
    TooFewTokens {
        /// Tokens found, end-of-text ones included.
        tokens: usize,
        /// `sequence_length + 1`.
        needed: usize,
        /// Inputs of a row.
        sequence_length: usize,
    },
    /// Sources that cannot be mixed.
    #[error(
        "a mixture with the weights {weights:?}, expected one finite number above 0 for each source, and rows of one length"
    )]
    Mixture {
        /// One for each source.
        weights: Vec<f64>,
    },
    /// Saved cursors of another number of sources.
    #[error(
        "there are cursors for {found} sources of text, expected {expected}\nhint: the mixture has changed since they were saved"
    )]
    OtherSources {
        /// Cursors.
        found: usize,
        /// Sources.
        expected: usize,
    },
    /// A saved cursor points past the data.
    #[error(
        "the cursor is at row {row}, expected a row below {num_rows}\n\
         hint: the data or the sequence length has changed since the cursor was saved"
    )]
    CursorOutOfRange {
        /// Row of the cursor.
        row: u64,
        /// Rows of the data.
        num_rows: usize,
    },
    /// The data is not what the run began with.
    #[error(
        "the data has fingerprint `{found}`, expected `{expected}`\n\
         hint: text, tokenizer, BOS or end-of-text token or sequence length changed, so the run cannot continue exactly"
    )]
    DataChanged {
        /// Fingerprint saved with the run.
        expected: String,
        /// Fingerprint now.
        found: String,
    },
}

/// A file, and where it has numbered parts the line or row, both counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Name of the part (`line` or `row`) and its number.
    pub part: Option<(&'static str, u64)>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.part {
            None => write!(formatter, "`{}`", self.path.display()),
            Some((name, number)) => write!(formatter, "{name} {number} of `{}`", self.path.display()),
        }
    }
}

/// What to do with a file of another extension.
fn way_on(path: &std::path::Path) -> String {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default();
    let way = match extension.as_str() {
        "json" | "ndjson" | "jsonlines" => {
            "name it `.jsonl` if it has one object a line; `jq -c '.[]'` makes lines of a list"
        }
        "bz2" => "decompress it with `bunzip2`",
        "xz" | "lzma" => "decompress it with `unxz`",
        "lz4" => "decompress it with `lz4 -d`",
        "br" => "decompress it with `brotli -d`",
        "zip" | "tar" | "tgz" | "7z" => "unpack it and name the files in it",
        "csv" | "tsv" => "`pandas.read_csv(file).to_parquet(other)` makes a parquet file of it",
        "gz" | "zst" => "the extension of what is compressed stands before it: `.jsonl.gz`, `.txt.zst`",
        _ => return String::new(),
    };
    format!("\nhint: {way}")
}

fn list(errors: &[DataError]) -> String {
    errors.iter().map(|error| format!("  {error}")).collect::<Vec<_>>().join("\n")
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
