//! Bytes ↔ named tensors: safetensors folders (single or sharded), GGUF files, the hub cache, and folders that appear whole
//! or not at all.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod error;
mod gguf;
mod safetensors;
mod tensor;

pub use error::CheckpointError;
pub use tensor::{Dtype, TensorInfo, TensorSource, narrow, widen};
