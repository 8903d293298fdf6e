//! `hf-nanbeige`: a folder of the looped Llama that other engines know, each layer once.
//!
//! A `nanbeige` runs its layers `num_loops` times one after the other, with a KV slot for each
//! logical layer. mlx-lm, SGLang and llama.cpp's converter have it built in; `transformers` and
//! vLLM load it with the Python files of <https://huggingface.co/Nanbeige/Nanbeige4.2-3B>.

use crate::{
    ExportError, StoredType,
    cast::Cast,
    folder::write_folder,
    format::{ExportModel, Format, Progress},
    obstacles,
    report::Contents,
};
use retie_config::ModelConfig;
use std::path::Path;

pub(crate) static FORMAT: Format = Format {
    name: "hf-nanbeige",
    about: "a Hugging Face folder of a looped Llama (num_loops), each layer once",
    is_unrolled: false,
    types: StoredType::OF_FOLDERS,
    write,
    model: Path::to_path_buf,
    has_adapter: false,
};

fn write(
    model: ExportModel<'_>,
    dtype: StoredType,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Contents, ExportError> {
    let config = model.config;
    let mut reasons = obstacles::of_loop(config);
    let keys = config.to_nanbeige();
    if reasons.is_empty() {
        let back = ModelConfig::from_json(keys.clone(), Path::new("config.json"));
        if !back.is_ok_and(|back| back.anatomy == config.anatomy && back.tensors() == config.tensors()) {
            let class = config.architecture.class_name;
            reasons.push(format!("a `nanbeige` has the layers of a Llama, without biases; a `{class}` has others"));
        }
    }
    if !reasons.is_empty() {
        return Err(ExportError::CannotHold { format: FORMAT.name, reasons, hint: obstacles::WITHOUT_LOOP.to_owned() });
    }
    write_folder(model, keys, &Cast::new(model, dtype.dtype()), dtype, dir, progress)
}
