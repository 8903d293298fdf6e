//! `peft`: the LoRA of every depth as an adapter over the unrolled model without it.
//!
//! The folder has `adapter_config.json`, `adapter_model.safetensors`, and in `base` the plain model
//! that they belong to, with one layer for each depth
//! (<https://huggingface.co/docs/peft/main/en/developer_guides/checkpoint>). Layer `d` of the base
//! has the weights that depth `d` shares, so the base has the size of the full-depth model.
//!
//! | tensor of the model | in the folder |
//! |---|---|
//! | LoRA factors of depth `d` | those of layer `d`; `lora_alpha` is the rank, for a scaling of 1 |
//! | DoRA magnitudes of depth `d` | `lora_magnitude_vector` of layer `d`, with `use_dora` |
//! | a residual scale of a linear | times rows of `W'` and `B`, or with DoRA times the magnitudes |
//! | all else | as `hf-unrolled` places it |

mod adapted;
mod adapter;

pub use adapted::Adapted;

use crate::{
    ExportError, StoredType, Unrolled,
    export::{num_bytes, write_json},
    folder::write_folder,
    format::{ExportModel, Format, Progress},
    joined::Joined,
    obstacles,
    report::Contents,
};
use adapter::{Adapter, Linear, linears};
use retie_checkpoint::{Dtype, SafetensorsWriter, TensorSource};
use retie_config::{LoraBase, ModelConfig, Relax, TensorNames};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path};

/// Folder of the base.
const BASE: &str = "base";
/// Files of the adapter.
const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

/// Hint for a model without an adapter.
const MERGED: &str = "`--to hf-unrolled` writes a plain model, with every LoRA merged";

pub(crate) static FORMAT: Format = Format {
    name: "peft",
    about: "a PEFT adapter with the LoRA of every depth, beside the unrolled model that it belongs to",
    is_unrolled: true,
    types: StoredType::OF_FOLDERS,
    write,
    model: |dir| dir.join(BASE),
    has_adapter: true,
};

/// Adapter and base of a model, as one source of all their tensors under the names of the files.
///
/// # Errors
/// When an adapter cannot hold the model (every reason is listed), or a tensor cannot be read.
pub(crate) fn split<'a>(
    model: ExportModel<'a>,
    dtype: Option<Dtype>,
) -> Result<Joined<Adapter<'a>, Unrolled<'a>>, ExportError> {
    refuse(&model)?;
    Ok(Joined {
        first: Adapter::new(model, dtype, &linears(model.config)),
        second: Unrolled::without_lora(model, dtype, FORMAT.name)?,
    })
}

fn write(
    model: ExportModel<'_>,
    dtype: StoredType,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Contents, ExportError> {
    let Joined { first: adapter, second: base } = split(model, dtype.dtype())?;
    let linears = linears(model.config);
    let folder = dir.join(BASE);
    fs_err::create_dir(&folder)?;
    let contents = write_folder(model, base.config().to_json(), &base, dtype, &folder, progress)?;
    write_adapter(&adapter, &dir.join(WEIGHTS))?;
    write_json(&dir.join(CONFIG), &config(model.config, &linears))?;
    let of_adapter = num_bytes(&adapter);
    Ok(Contents {
        tensors: contents.tensors + adapter.names().len(),
        bytes: contents.bytes + of_adapter,
        scaled: base.changes().scaled,
        notes: vec![format!("the adapter is of {} linears and has {of_adapter} bytes", linears.len())],
        ..contents
    })
}

fn write_adapter(adapter: &Adapter<'_>, path: &Path) -> Result<(), ExportError> {
    let entry = |name: &str| Some((name.to_owned(), adapter.info(name)?.clone()));
    let entries: Vec<_> = adapter.names().into_iter().filter_map(entry).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = SafetensorsWriter::create(path, &entries, &metadata)?;
    for (name, _) in &entries {
        writer.write(name, &adapter.bytes(name)?)?;
    }
    Ok(writer.finish()?)
}

/// Keys of `adapter_config.json`. Ranks that differ from the largest are stated by linear.
fn config(model: &ModelConfig, linears: &[Linear]) -> Map<String, Value> {
    let rank = linears.iter().map(|linear| linear.rank).max().unwrap_or(0);
    let others = linears.iter().filter(|linear| linear.rank != rank);
    let others: Map<String, Value> = others.map(|linear| (linear.module(), json!(linear.rank))).collect();
    let is_dora = model.recursion.iter().flat_map(|recursion| &recursion.lora).any(|lora| lora.relax == Relax::Dora);
    let keys = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": linears.iter().map(Linear::module).collect::<Vec<_>>(),
        "use_dora": is_dora,
        "bias": "none",
        "fan_in_fan_out": false,
        "lora_dropout": 0.0,
        "inference_mode": true,
    });
    match keys {
        Value::Object(map) => map,
        _ => unreachable!("the literal above is an object"),
    }
}

fn refuse(model: &ExportModel<'_>) -> Result<(), ExportError> {
    let mut reasons = obstacles::of_unrolling(model)?;
    let cannot_unroll = !reasons.is_empty();
    match model.config.recursion.as_ref().and_then(|recursion| recursion.lora.as_ref()) {
        None => reasons.push("it has no LoRA that an adapter could hold".to_owned()),
        Some(lora) if lora.base == LoraBase::None => {
            reasons.push("its factors stand in place of matrices, an adapter adds them to one".to_owned());
        }
        Some(_) if model.config.architecture.tensor_names == TensorNames::GptNeox => {
            let class = model.config.architecture.class_name;
            reasons.push(format!("a `{class}` has one linear for q, k and v, which have a LoRA each"));
        }
        Some(_) => {}
    }
    if reasons.is_empty() {
        return Ok(());
    }
    let hint = if cannot_unroll { obstacles::hint_of_unrolling(model.config) } else { MERGED };
    Err(ExportError::CannotHold { format: FORMAT.name, reasons, hint: hint.to_owned() })
}
