//! Options of a dataset: which documents of which files, and how they become rows.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::conversation::Conversations;
use crate::pack::Packing;

/// The text of a dataset and how it is cut.
#[derive(Debug, Clone)]
pub struct DatasetOptions {
    /// Data files, in the order of the stream; see [`crate::document`] for the formats.
    pub files: Vec<TextFile>,
    /// The part of their documents.
    pub split: Split,
    /// Inputs of a row.
    pub sequence_length: usize,
    /// Packing of documents into rows.
    pub packing: Packing,
    /// The text is conversations, of which the answers are learnt.
    pub conversations: Option<Conversations>,
    /// Token that ends each document; none is put behind conversations.
    pub eos_token_id: u32,
    /// Folder for token files, which is made where it is missing; `None` tokenises anew each time.
    pub cache_dir: Option<PathBuf>,
}

/// A data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// Where it is.
    pub path: PathBuf,
    /// JSON field or parquet column that holds its text, or the messages of its conversations.
    pub text_field: String,
}

/// Selection of the documents of the files. A document with text belongs to the held-out ones where
/// the first 8 bytes of the text's SHA-256, read as a number below 2⁶⁴ and divided by it, are below
/// a fraction: whatever the other documents are, and with all its copies.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Split {
    /// All.
    #[default]
    All,
    /// Documents that are not held out.
    Train {
        /// The fraction.
        heldout: f64,
    },
    /// Documents that are held out.
    Heldout {
        /// The fraction.
        heldout: f64,
    },
}

/// How far [`TokenDataset::build`](crate::TokenDataset::build) has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the data files whose text is tokenised.
    pub bytes_done: u64,
    /// Bytes of all data files.
    pub bytes_total: u64,
    /// Tokens so far.
    pub tokens: u64,
}

impl Split {
    /// Whether a document with this text belongs to it. Equal texts belong to the same one.
    pub(crate) fn holds(self, text: &str) -> bool {
        let fraction = match self {
            Self::All => return true,
            Self::Train { heldout } | Self::Heldout { heldout } => heldout,
        };
        let digest: [u8; 32] = Sha256::digest(text).into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        let number = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        // As a fraction of 2⁶⁴, with the 53 bits that f64 holds.
        let part = (number >> 11) as f64 / 2f64.powi(53);
        let heldout = part < fraction;
        heldout == matches!(self, Self::Heldout { .. })
    }
}
