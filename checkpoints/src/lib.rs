//! Bytes ↔ named tensors: safetensors folders (single or sharded), GGUF files, the hub cache, and folders that appear whole
//! or not at all.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod error;
mod gguf;
mod gpt_neox;
mod hub;
mod layout;
mod mmap;
mod provenance;
mod router_layout;
mod safetensors;
mod source;
mod staging;
mod stored_layers;
mod tensor;

pub use error::CheckpointError;
pub use gguf::{GgufError, GgufFile, MetaValue, Metadata};
pub use hub::{DownloadProgress, Hub, HubAddress, HubError, HubId, hub_dataset_file};
pub use layout::{
    EMBEDDINGS, FINAL_NORM, FINAL_NORM_BIAS, LM_HEAD, MAGNITUDES, TensorProblem, check_tensors, depth_tensor,
    expected_tensors, extra_vectors, layer_tensor, share_map,
};
pub use provenance::{Hashed, PROVENANCE_FILE, Parent, ParentFile, Provenance};
pub use router_layout::{RouterKind, num_routers, router_tensor, router_tensors};
pub use safetensors::{
    DEFAULT_MAX_SHARD_BYTES, FolderWriter, INDEX_FILE, SINGLE_FILE, SafetensorsFile, SafetensorsFolder,
    SafetensorsWriter,
};
pub use source::{ModelSource, under_our_names};
pub use staging::Staging;
pub use stored_layers::{StoredLayer, stored_layers};
pub use tensor::{Dtype, TensorInfo, TensorSource, narrow, widen};
