//! Fitted weights on the disk until the folder is written: shared weights come group by group and
//! corrections depth by depth, the folder has them layer by layer.

use crate::plan::{ConversionPlan, PlannedTensor};
use retie_checkpoint::{CheckpointError, SafetensorsFile, SafetensorsWriter, TensorInfo};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A folder that is removed when it is dropped.
pub(crate) struct Scratch {
    dir: PathBuf,
}

/// A file of it that is being written.
pub(super) struct ScratchFile {
    path: PathBuf,
    writer: SafetensorsWriter,
}

impl Scratch {
    /// Creates it in `dir`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn create(dir: &Path) -> Result<Self, CheckpointError> {
        let dir = dir.join(".calibration");
        fs_err::create_dir(&dir)?;
        Ok(Self { dir })
    }

    /// For the shared weights, in the order of the layers.
    pub(super) fn weights(&self, plan: &ConversionPlan) -> Result<ScratchFile, CheckpointError> {
        let weights = fitted(plan).filter(|tensor| !tensor.is_replaced());
        self.file("weights", weights.map(|tensor| (tensor.name.clone(), tensor.info.clone())).collect())
    }

    /// For the corrections, in the order of the depths.
    pub(super) fn factors(&self, plan: &ConversionPlan) -> Result<ScratchFile, CheckpointError> {
        let mut factors: Vec<_> = fitted(plan).flat_map(|tensor| &tensor.factors).collect();
        factors.sort_by_key(|factors| factors.stream);
        self.file("factors", factors.into_iter().flat_map(|f| [f.a.clone(), f.b.clone()]).collect())
    }

    fn file(&self, name: &str, entries: Vec<(String, TensorInfo)>) -> Result<ScratchFile, CheckpointError> {
        let path = self.dir.join(format!("{name}.safetensors"));
        let writer = SafetensorsWriter::create(&path, &entries, &BTreeMap::new())?;
        Ok(ScratchFile { path, writer })
    }
}

fn fitted(plan: &ConversionPlan) -> impl Iterator<Item = &PlannedTensor> {
    plan.tensors.iter().filter(|tensor| tensor.fitted)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs_err::remove_dir_all(&self.dir) {
            tracing::debug!(%error, "a scratch folder stays until its parent goes");
        }
    }
}

impl ScratchFile {
    /// The next tensor.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.writer.write(name, bytes)
    }

    /// Ends it and opens it to be read.
    pub fn finish(self) -> Result<SafetensorsFile, CheckpointError> {
        self.writer.finish()?;
        SafetensorsFile::open(&self.path)
    }
}
