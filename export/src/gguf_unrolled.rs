//! `gguf-unrolled`: one GGUF file of the source's architecture for llama.cpp, Ollama and LM Studio,
//! with one layer for each depth.
//!
//! Keys and tensors are those of llama.cpp's converter (`retie_checkpoint::GgufPlan`). A GGUF file
//! cannot hold a tensor under two names, so it has the size of the full-depth model.

use crate::{
    ExportError, StoredType, Unrolled,
    format::{ExportModel, Format, Progress},
    report::Contents,
};
use retie_checkpoint::{GgufContents, GgufPlan, GgufType};
use std::path::Path;

/// Name of the file in the folder.
const FILE: &str = "model.gguf";

pub(crate) static FORMAT: Format = Format {
    name: "gguf-unrolled",
    about: "a GGUF file of the source's architecture for llama.cpp, one layer for each depth",
    is_unrolled: true,
    types: &[StoredType::Keep, StoredType::F32, StoredType::Bf16, StoredType::F16, StoredType::Q8_0],
    write,
    model: |dir| dir.join(FILE),
};

fn write(
    model: ExportModel<'_>,
    dtype: StoredType,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Contents, ExportError> {
    let unrolled = Unrolled::new(model, None, FORMAT.name)?;
    let plan = GgufPlan::new(unrolled.config(), model.companions, model.name).map_err(|not_held| {
        let hint = "`--to hf-unrolled` can; llama.cpp's own converter may read that folder".to_owned();
        ExportError::CannotHold { format: FORMAT.name, reasons: not_held.reasons, hint }
    })?;
    let kind = match dtype {
        StoredType::Q8_0 => Some(GgufType::Q8_0),
        other => other.dtype().map(GgufType::of),
    };
    let mut see = |done: usize, total: usize, tensor: &str| progress(Progress { done, total, tensor });
    let GgufContents { tensors, bytes, instead } = plan.write(&unrolled, kind, &dir.join(FILE), &mut see)?;
    let changes = unrolled.changes();
    let instead = instead.first().map(|first| {
        format!("{} matrices are f16, `{first}` the first: their rows are not whole blocks of {dtype}", instead.len())
    });
    Ok(Contents {
        tensors,
        bytes,
        merged: changes.merged,
        scaled: changes.scaled,
        notes: plan.notes().iter().cloned().chain(instead).collect(),
    })
}
