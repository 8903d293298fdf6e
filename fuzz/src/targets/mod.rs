//! The targets. Each makes a file, or the files of a folder, of its input and reads them as a
//! command would; where it is read it has to be usable, so what the parser accepts is used.

mod config;
#[cfg(feature = "models")]
mod http;
mod logits;
#[cfg(feature = "models")]
mod state;
mod text;
mod tokenizer;
mod weights;

use crate::Workdir;

/// A parser of foreign bytes.
pub struct Target {
    /// Its name, that of its folder in `corpus/` and of its file in `dictionaries/`.
    pub name: &'static str,
    /// Names of the files that it makes in its folder.
    pub files: &'static [&'static str],
    /// Reads the input.
    pub run: fn(&[u8], &Workdir),
}

/// Every target.
pub static TARGETS: &[Target] = &[
    weights::SAFETENSORS,
    weights::SAFETENSORS_INDEX,
    weights::GGUF,
    config::CONFIG,
    config::YAML,
    tokenizer::TOKENIZER,
    tokenizer::CHAT_TEMPLATE,
    text::JSONL,
    text::PARQUET,
    text::ARROW,
    text::COMPRESSED,
    text::TOKENS,
    logits::LOGITS,
    #[cfg(feature = "models")]
    state::STATE,
    #[cfg(feature = "models")]
    http::HTTP,
];
