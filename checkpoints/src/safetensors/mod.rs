//! Safetensors: one file, or a Hugging Face folder (`model.safetensors`, or
//! `model.safetensors.index.json` and its shards).
//!
//! Format: <https://github.com/huggingface/safetensors#format>. Values are read one tensor at a
//! time with positional reads and not through a memory map: the resident memory is that of the
//! tensors in use, a file that shrinks meanwhile is an error and not a signal, and no `unsafe` is
//! needed.

mod file;
mod folder;
mod writer;

pub use file::SafetensorsFile;
#[cfg(feature = "hub")]
pub(crate) use folder::unusable_weights;
pub(crate) use folder::{ADAPTER_FILES, adapter_base, check_is_file};
pub use folder::{INDEX_FILE, SINGLE_FILE, SafetensorsFolder};
pub use writer::{DEFAULT_MAX_SHARD_BYTES, FolderWriter, SafetensorsWriter};
