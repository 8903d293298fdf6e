//! `gguf` and `gguf-unrolled`: one GGUF file for llama.cpp, Ollama and LM Studio, each layer once
//! or one layer for each depth.
//!
//! Keys and tensors are those of llama.cpp's converter (`retie_checkpoint::GgufPlan`). A GGUF file
//! cannot hold a tensor under two names. So a model whose layers do not simply run in a loop has
//! the size of the full-depth model; one whose layers do is a `nanbeige`, which llama.cpp loops.

use crate::{
    ExportError, StoredType, Unrolled,
    format::{ExportModel, Format, Progress},
    obstacles,
    report::Contents,
};
use retie_checkpoint::{GgufContents, GgufFileType, GgufPlan, TensorSource};
use retie_config::ModelConfig;
use std::path::Path;

/// Name of the file in the folder.
const FILE: &str = "model.gguf";

pub(crate) static LOOPED: Format = Format {
    name: "gguf",
    about: "a GGUF file of a looped Llama (num_loops) for llama.cpp, each layer once",
    is_unrolled: false,
    types: StoredType::ALL,
    write: |model, dtype, dir, progress| {
        let reasons = obstacles::of_loop(model.config);
        if !reasons.is_empty() {
            let hint = obstacles::WITHOUT_LOOP.to_owned();
            return Err(ExportError::CannotHold { format: LOOPED.name, reasons, hint });
        }
        let file = File { model, config: model.config, tensors: model.tensors, format: &LOOPED };
        file.write(dtype, dir, progress)
    },
    model: |dir| dir.join(FILE),
    has_adapter: false,
};

pub(crate) static UNROLLED: Format = Format {
    name: "gguf-unrolled",
    about: "a GGUF file of the source's architecture for llama.cpp, one layer for each depth",
    is_unrolled: true,
    types: StoredType::ALL,
    write: |model, dtype, dir, progress| {
        let unrolled = Unrolled::new(model, None, UNROLLED.name)?;
        let file = File { model, config: unrolled.config(), tensors: &unrolled, format: &UNROLLED };
        let contents = file.write(dtype, dir, progress)?;
        let changes = unrolled.changes();
        Ok(Contents { merged: changes.merged, scaled: changes.scaled, ..contents })
    },
    model: |dir| dir.join(FILE),
    has_adapter: false,
};

struct File<'a> {
    model: ExportModel<'a>,
    /// Configuration and tensors as they are written.
    config: &'a ModelConfig,
    tensors: &'a dyn TensorSource,
    format: &'static Format,
}

impl File<'_> {
    fn write(
        &self,
        dtype: StoredType,
        dir: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Contents, ExportError> {
        let plan = GgufPlan::new(self.config, self.model.companions, self.model.name).map_err(|not_held| {
            let hint = match self.format.is_unrolled {
                true => "`--to hf-unrolled` can; llama.cpp's own converter may read that folder",
                false => obstacles::WITHOUT_LOOP,
            };
            ExportError::CannotHold { format: self.format.name, reasons: not_held.reasons, hint: hint.to_owned() }
        })?;
        let mut see = |done: usize, total: usize, tensor: &str| progress(Progress { done, total, tensor });
        let GgufContents { tensors, bytes, instead } =
            plan.write(self.tensors, file_type(dtype), &dir.join(FILE), &mut see)?;
        let instead = instead.first().map(|(first, kind)| {
            let several = instead.len();
            format!("rows of {several} matrices are not whole blocks of {dtype}: `{first}`, the first, is {kind:?}")
        });
        let notes = plan.notes().iter().cloned().chain(instead).collect();
        Ok(Contents { tensors, bytes, notes, ..Contents::default() })
    }
}

fn file_type(dtype: StoredType) -> Option<GgufFileType> {
    match dtype {
        StoredType::Keep => None,
        StoredType::F32 => Some(GgufFileType::F32),
        StoredType::Bf16 => Some(GgufFileType::BF16),
        StoredType::F16 => Some(GgufFileType::F16),
        StoredType::Q8_0 => Some(GgufFileType::Q8_0),
        StoredType::Q6K => Some(GgufFileType::Q6_K),
        StoredType::Q5KM => Some(GgufFileType::Q5_K_M),
        StoredType::Q4KM => Some(GgufFileType::Q4_K_M),
    }
}
