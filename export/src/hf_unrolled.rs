//! `hf-unrolled`: a plain Hugging Face folder of the source's family, one layer for each depth.
//!
//! Everything that loads the family loads it: `transformers`, vLLM, SGLang, MLX, mergekit, the
//! converters of llama.cpp. It has the size of the full-depth model.

use crate::{
    ExportError, StoredType, Unrolled,
    export::{num_bytes, write_companions, write_json},
    format::{ExportModel, Format, Progress},
    report::Contents,
};
use retie_checkpoint::{DEFAULT_MAX_SHARD_BYTES, Dtype, FolderWriter, TensorInfo, TensorSource, under_family_names};
use serde_json::{Map, Value, json};
use std::path::Path;

pub(crate) static FORMAT: Format = Format {
    name: "hf-unrolled",
    about: "a plain Hugging Face folder of the source's architecture, one layer for each depth",
    is_unrolled: true,
    types: &[StoredType::Keep, StoredType::F32, StoredType::Bf16, StoredType::F16],
    write,
    model: Path::to_path_buf,
};

fn write(
    model: ExportModel<'_>,
    dtype: StoredType,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Contents, ExportError> {
    let unrolled = Unrolled::new(model, dtype.dtype(), FORMAT.name)?;
    let config = unrolled.config();
    let mut keys = config.to_json();
    set_dtype(&mut keys, dtype.dtype());
    write_json(&dir.join("config.json"), &keys)?;
    let tensors = under_family_names(&unrolled, config);
    write_tensors(tensors.as_ref(), dir, progress)?;
    write_companions(model, dir)?;
    let changes = unrolled.changes();
    Ok(Contents {
        tensors: tensors.names().len(),
        bytes: num_bytes(tensors.as_ref()),
        merged: changes.merged,
        scaled: changes.scaled,
        notes: Vec::new(),
    })
}

/// States the element type in the keys of a `config.json`, if there is one for all matrices.
pub(crate) fn set_dtype(keys: &mut Map<String, Value>, dtype: Option<Dtype>) {
    if let Some(dtype) = dtype {
        // `dtype` since transformers 5, `torch_dtype` before.
        let key = if keys.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        keys.insert(key.into(), json!(dtype.torch_name()));
    }
}

/// Writes every tensor of `tensors`, one at a time.
pub(crate) fn write_tensors(
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
