//! `hf-unrolled`: a plain Hugging Face folder of the source's family, one layer for each depth.
//!
//! Everything that loads the family loads it: `transformers`, vLLM, SGLang, MLX, mergekit, the
//! converters of llama.cpp. It has the size of the full-depth model.

use crate::{
    ExportError, StoredType, Unrolled,
    folder::write_folder,
    format::{ExportModel, Format, Progress},
    report::Contents,
};
use retie_checkpoint::under_family_names;
use std::path::Path;

pub(crate) static FORMAT: Format = Format {
    name: "hf-unrolled",
    about: "a plain Hugging Face folder of the source's architecture, one layer for each depth",
    is_unrolled: true,
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
    let unrolled = Unrolled::new(model, dtype.dtype(), FORMAT.name)?;
    let tensors = under_family_names(&unrolled, unrolled.config());
    let contents = write_folder(model, unrolled.config().to_json(), tensors.as_ref(), dtype, dir, progress)?;
    let changes = unrolled.changes();
    Ok(Contents { merged: changes.merged, scaled: changes.scaled, ..contents })
}
