//! Text → tokens → packed rows, with a cursor from which the same rows follow bit for bit.
//!
//! 1. [`documents`] reads `.jsonl`, `.txt` and `.parquet` files, compressed or not, a document at a
//!    time.
//! 2. [`Tokenizer`] turns a document into ids; an end-of-text token follows each document.
//! 3. [`TokenDataset`] holds the ids of all files as one stream, cut into rows of `sequence_length`
//!    inputs ([`pack`]).
//! 4. A [`Mixture`] has several of them, each with a weight.
//! 5. [`Sampler`] draws batches of rows in a seeded order; its [`Cursor`]s are all the state there
//!    is to save.
//!
//! [`logits`] keeps a teacher's distributions for the rows of a dataset.
//!
//! For evaluation there are [`joined_text`] and [`windows()`], for calibration [`CalibrationText`],
//! for chats [`ChatTemplate`].
//! Nothing here depends on a tensor library.
//!
//! Shape legend: `B` rows of a batch, `T` `sequence_length`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod best_fit;
mod bos;
mod cache;
mod calibration;
mod chat_template;
mod companions;
mod conversation;
mod dataset;
mod decode_stream;
pub mod document;
mod error;
mod guarded;
mod hints;
pub mod logits;
mod mixture;
mod options;
pub mod pack;
mod parquet_file;
mod sampler;
mod shard;
mod shuffle;
mod stream;
mod token_bytes;
mod tokenize;
mod tokenizer;
mod tokens;
mod vocabulary;
mod whole_file;
mod windows;

pub use calibration::CalibrationText;
pub use chat_template::ChatTemplate;
pub use conversation::Conversations;
pub use dataset::TokenDataset;
pub use decode_stream::DecodeStream;
pub use document::{DEFAULT_TEXT_FIELD, Document, Documents, documents, has_rows, joined_text, read_text};
pub use error::{DataError, Place};
pub use guarded::quiet_guarded_panics;
pub use mixture::Mixture;
pub use options::{DatasetOptions, Progress, Split, TextFile};
pub use pack::{Batch, Packing};
pub use parquet_file::parquet_rows;
pub use sampler::{Cursor, Sampler};
pub use tokenizer::Tokenizer;
pub use vocabulary::{Vocabulary, check_shared_vocabulary};
pub use windows::{Window, Windows, windows};
