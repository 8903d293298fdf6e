//! Errors of GGUF files.

use super::quant;

/// Errors of a GGUF file. [`crate::CheckpointError::Gguf`] adds the path.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file does not start with `GGUF`.
    #[error("the file starts with `{}`, expected `GGUF`\nhint: {}", found.escape_ascii(), before_gguf(found))]
    Magic {
        /// First bytes of the file.
        found: Vec<u8>,
    },
    /// The file is big-endian.
    #[error(
        "the file is big-endian\nhint: `gguf-convert-endian FILE little` of the Python package `gguf` turns it around"
    )]
    BigEndian,
    /// An unsupported version of the format.
    #[error(
        "GGUF version `{found}` is not supported, expected 2 or 3\nhint: convert the model again with a recent llama.cpp"
    )]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// The file ends too early.
    #[error(
        "the file ends at byte {len}, but {what} needs {needed} bytes from byte {offset}\nhint: the file is damaged or its download is incomplete"
    )]
    Truncated {
        /// Part that was being read.
        what: String,
        /// Offset of that part.
        offset: u64,
        /// Its size in bytes.
        needed: u64,
        /// Size of the file.
        len: u64,
    },
    /// A part of a split model.
    #[error(
        "the file is part {number} of a model that is split into {count}\nhint: `llama-gguf-split --merge FIRST_PART WHOLE` of llama.cpp makes one file of them"
    )]
    Part {
        /// Its number, from 1.
        number: usize,
        /// Number of parts.
        count: usize,
    },
    /// A metadata value of an unknown type.
    #[error("metadata key `{key}` has value type `{found}`, expected 0 to 12")]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        found: u32,
    },
    /// Arrays nested too deeply.
    #[error("metadata key `{key}` nests arrays more than {limit} deep")]
    Nesting {
        /// The key.
        key: String,
        /// Maximum nesting.
        limit: usize,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not valid UTF-8")]
    NotUtf8 {
        /// Description of the text.
        what: String,
    },
    /// A name that occurs twice.
    #[error("{what} `{name}` occurs twice")]
    Duplicate {
        /// Kind of the name.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// An impossible shape.
    #[error("tensor `{tensor}` has dimensions {dimensions:?}, expected {expected}")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// Dimensions, fastest first, as in the file.
        dimensions: Vec<u64>,
        /// Accepted dimensions.
        expected: String,
    },
    /// Tensors of unsupported types.
    #[error(
        "{} tensors have a type that is not supported: {}\nhint: supported: {}",
        tensors.len(),
        tensors.iter().map(|(tensor, found)| format!("`{tensor}` is `{found}`")).collect::<Vec<_>>().join(", "),
        quant::supported()
    )]
    TensorTypes {
        /// Each tensor with the name of its type.
        tensors: Vec<(String, String)>,
    },
    /// An unsupported family of models.
    #[error(
        "architecture `{found}` is not supported\nhint: supported: {}; use the model's Hugging Face folder",
        supported.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    )]
    Architecture {
        /// The value of `general.architecture`.
        found: String,
        /// Supported values.
        supported: Vec<&'static str>,
    },
    /// A tensor that the configuration needs is absent.
    #[error("tensor `{tensor}` is missing")]
    MissingTensor {
        /// Its name in GGUF.
        tensor: String,
    },
    /// A required metadata key is absent.
    #[error("metadata key `{key}` is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata key holds a value of another type or range.
    #[error("metadata key `{key}` is `{found}`, expected {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// Value of the key.
        found: String,
        /// Accepted values.
        expected: String,
    },
    /// A metadata key has a value that is not implemented.
    #[error("`{key}: {found}` is not supported\nhint: {hint}")]
    Unsupported {
        /// The key.
        key: String,
        /// Value of the key.
        found: String,
        /// Supported values.
        hint: String,
    },
    /// The rotary factors are not those of Llama 3.
    #[error(
        "tensor `rope_freqs.weight` holds rotary factors that are not those of Llama 3.1\nhint: use the model's Hugging Face folder, whose `config.json` states them"
    )]
    RopeFactors,
    /// A merge rule of the tokenizer does not fit the vocabulary.
    #[error("`tokenizer.ggml.merges`: merge {index}, `{found}`, {problem}")]
    Merge {
        /// Index of the rule.
        index: usize,
        /// Text of the rule.
        found: String,
        /// Problem of the rule.
        problem: &'static str,
    },
}

/// What a file that does not start with `GGUF` is.
fn before_gguf(start: &[u8]) -> &'static str {
    // `ggml`, `ggmf`, `ggjt` and `ggla` as little-endian numbers, and files of words of the first.
    const OLDER: [&[u8]; 5] = [b"lmgg", b"fmgg", b"tjgg", b"algg", b"GGML"];
    match OLDER.contains(&start) {
        true => "it is of a format before GGUF: convert the model again with a recent llama.cpp",
        false => "it is not a GGUF file, or its download failed",
    }
}
