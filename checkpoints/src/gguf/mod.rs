//! GGUF files: the container, its quantised types, and the `llama` architecture in it.

mod config;
mod error;
mod file;
mod metadata;
mod names;
mod parse;
mod permute;
mod quant;
mod rope_factors;
#[cfg(test)]
mod test_file;
mod tokenizer;

pub use error::GgufError;
pub use file::GgufFile;
pub use metadata::{MetaValue, Metadata};
