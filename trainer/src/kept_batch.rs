//! The text of a step that went wrong, as a file in the run's folder.

use crate::TrainError;
use retie_data::Batch;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Writes `folder/step-N.json`: `facts`, and which rows of the data the step read, with their token ids. Without `batches`, on a rank that
/// does not write, only says where that is.
///
/// # Errors
/// When the disk fails.
pub fn keep(folder: &Path, step: u64, facts: Value, batches: Option<&[Batch]>) -> Result<PathBuf, TrainError> {
    let path = folder.join(format!("step-{step}.json"));
    let Some(batches) = batches else { return Ok(path) };
    fs_err::create_dir_all(folder)?;
    let mut kept = json!({ "step": step });
    if let (Value::Object(kept), Value::Object(facts)) = (&mut kept, facts) {
        kept.extend(facts);
        let indices: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.iter().copied()).collect();
        let rows: Vec<&[u32]> = batches.iter().flat_map(Batch::row_inputs).collect();
        kept.insert("rows".to_owned(), json!(indices));
        kept.insert("token_ids".to_owned(), json!(rows));
    }
    fs_err::write(&path, format!("{kept}\n"))?;
    Ok(path)
}
