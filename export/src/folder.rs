//! A Hugging Face folder: `config.json`, the tensors in safetensors, the companion files.

use crate::{
    ExportError, StoredType,
    export::{num_bytes, write_companions, write_json},
    format::{ExportModel, Progress},
    report::Contents,
};
use retie_checkpoint::{DEFAULT_MAX_SHARD_BYTES, Dtype, FolderWriter, TensorInfo, TensorSource};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Writes the folder `dir` with the `keys` of its configuration, in which the type is stated, the
/// `tensors` one at a time, and the companion files of `model`.
pub(crate) fn write_folder(
    model: ExportModel<'_>,
    mut keys: Map<String, Value>,
    tensors: &dyn TensorSource,
    dtype: StoredType,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Contents, ExportError> {
    set_dtype(&mut keys, dtype.dtype());
    write_json(&dir.join("config.json"), &keys)?;
    write_tensors(tensors, dir, progress)?;
    write_companions(model, dir)?;
    Ok(Contents { tensors: tensors.names().len(), bytes: num_bytes(tensors), ..Contents::default() })
}

/// States the element type in the keys of a `config.json`, if there is one for all matrices.
fn set_dtype(keys: &mut Map<String, Value>, dtype: Option<Dtype>) {
    if let Some(dtype) = dtype {
        // `dtype` since transformers 5, `torch_dtype` before.
        let key = if keys.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        keys.insert(key.into(), json!(dtype.torch_name()));
    }
}

/// Writes every tensor of `tensors`, one at a time.
fn write_tensors(
    tensors: &dyn TensorSource,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ExportError> {
    let entry = |name: &str| Some((name.to_owned(), tensors.info(name)?.clone()));
    let entries: Vec<(String, TensorInfo)> = tensors.names().into_iter().filter_map(entry).collect();
    let mut writer = FolderWriter::create(dir, &entries, DEFAULT_MAX_SHARD_BYTES)?;
    for (index, (name, _)) in entries.iter().enumerate() {
        writer.write(name, &tensors.bytes(name)?)?;
        progress(Progress { done: index + 1, total: entries.len(), tensor: name });
    }
    Ok(writer.finish()?)
}
