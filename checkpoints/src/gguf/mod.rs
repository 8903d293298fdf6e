//! GGUF files: the container, its quantised types, and the supported model families.

mod config;
mod error;
mod family;
mod file;
mod known;
mod metadata;
mod names;
mod parse;
mod permute;
mod quant;
mod rope_factors;
mod sentencepiece;
#[cfg(test)]
mod test_file;
mod tokenizer;

pub use error::GgufError;
pub use file::GgufFile;
pub use metadata::{MetaValue, Metadata};
