//! GGUF files, read and written: the container, its types, and the supported model families.

mod config;
mod error;
mod family;
mod file;
mod file_type;
mod known;
mod metadata;
mod names;
mod parse;
mod permute;
mod plan;
mod quant;
mod rope_factors;
mod sentencepiece;
mod sentencepiece_model;
#[cfg(test)]
mod test_file;
mod tokenizer;
mod tokenizer_metadata;
mod value;
mod writer;

pub use error::GgufError;
pub use file::GgufFile;
pub use file_type::GgufFileType;
pub use metadata::{MetaValue, Metadata};
pub use plan::{GgufContents, GgufPlan, NotHeld};
pub use quant::GgufType;
pub use value::GgufValue;
