//! Checkpoints: conversion between bytes and named tensors, for safetensors folders (single or
//! sharded), GGUF files and the hub cache, and folders that appear completely or not at all.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod error;
mod finite;
mod gguf;
mod gpt_neox;
mod hub;
mod layer_runner;
mod layout;
mod layout_hint;
mod links;
mod lock;
mod mmap;
mod provenance;
mod renamed;
mod safetensors;
mod source;
mod sources_agree;
mod staging;
mod stored_layers;
mod tensor;
#[cfg(test)]
mod tiny;

pub use error::CheckpointError;
pub use gguf::{
    GgufContents, GgufError, GgufFile, GgufFileType, GgufPlan, GgufType, GgufValue, MetaValue, Metadata, NotHeld,
};
#[cfg(feature = "hub")]
pub use hub::{DownloadProgress, RequestError, Uploaded};
pub use hub::{Hub, HubAddress, HubError, HubId, hub_dataset_file};
pub use layer_runner::{Activations, Comparison, LayerRun, LayerRunner, ProbePoint};
pub use layout::{TensorProblem, check_tensors};
pub use lock::FolderLock;
pub use provenance::{Hashed, PROVENANCE_FILE, Parent, ParentFile, Provenance};
pub use safetensors::{
    DEFAULT_MAX_SHARD_BYTES, FolderWriter, INDEX_FILE, SINGLE_FILE, SafetensorsFile, SafetensorsFolder,
    SafetensorsWriter,
};
pub use source::{ModelSource, under_family_names, under_our_names};
pub use staging::Staging;
pub use stored_layers::{StoredLayer, stored_layers};
pub use tensor::{Dtype, TensorInfo, TensorSource, narrow, widen};
