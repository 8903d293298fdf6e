//! What can be wrong with a GGUF file.

use super::quant;

/// Why a GGUF file cannot be used. [`crate::CheckpointError::Gguf`] adds the path.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The first four bytes differ.
    #[error("the file starts with `{}`, expected `GGUF`\nhint: it is not a GGUF file, or its download failed", found.escape_ascii())]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// The version's bytes are in the other order.
    #[error("the file is big-endian\nhint: convert it to little-endian")]
    BigEndian,
    /// A version of the format that is not read.
    #[error("GGUF version `{found}` is not supported, expected 2 or 3")]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// The file ends too early.
    #[error(
        "the file ends at byte {len}, but {what} needs {needed} bytes from byte {offset}\nhint: the file is damaged or its download is incomplete"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it starts.
        offset: u64,
        /// Its size.
        needed: u64,
        /// Size of the file.
        len: u64,
    },
    /// A metadata value of an unknown type.
    #[error("metadata key `{key}` has value type `{found}`, expected 0 to 12")]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        found: u32,
    },
    /// Arrays of arrays of arrays ….
    #[error("metadata key `{key}` nests arrays more than {limit} deep")]
    Nesting {
        /// The key.
        key: String,
        /// What is accepted.
        limit: usize,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not valid UTF-8")]
    NotUtf8 {
        /// Which text.
        what: String,
    },
    /// A name that occurs twice.
    #[error("{what} `{name}` occurs twice")]
    Duplicate {
        /// What kind of name.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A shape that no tensor can have.
    #[error("tensor `{tensor}` has dimensions {dimensions:?}, expected {expected}")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// Dimensions, fastest first, as in the file.
        dimensions: Vec<u64>,
        /// What can stand there.
        expected: String,
    },
    /// Tensor types that are not read.
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
    /// A family of models that is not read.
    #[error(
        "architecture `{found}` is not supported\nhint: supported: {}; use the model's Hugging Face folder",
        supported.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    )]
    Architecture {
        /// The value of `general.architecture`.
        found: String,
        /// Values that are.
        supported: Vec<&'static str>,
    },
    /// A tensor that the configuration is read from is absent.
    #[error("tensor `{tensor}` is missing")]
    MissingTensor {
        /// Its name in GGUF.
        tensor: String,
    },
    /// A metadata key is absent.
    #[error("metadata key `{key}` is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata key holds something of another type or range.
    #[error("metadata key `{key}` is `{found}`, expected {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What can stand there.
        expected: String,
    },
    /// A metadata key asks for something that is not implemented.
    #[error("`{key}: {found}` is not supported\nhint: {hint}")]
    Unsupported {
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What is supported.
        hint: String,
    },
    /// The rotary factors are not those of Llama 3.
    #[error(
        "tensor `rope_freqs.weight` holds rotary factors that are not those of Llama 3.1\nhint: use the model's Hugging Face folder, whose `config.json` states them"
    )]
    RopeFactors,
    /// A merge rule of the tokenizer that does not fit the vocabulary.
    #[error("`tokenizer.ggml.merges`: merge {index}, `{found}`, {problem}")]
    Merge {
        /// Position in the list.
        index: usize,
        /// The rule.
        found: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}
