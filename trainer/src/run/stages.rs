//! A run in stages: each is a run of its own in a folder of its name, on the model that the one
//! before it left. The optimizer begins anew in each.

use super::MODEL_DIR;
use crate::{TrainError, io::inputs::Inputs};
use retie_config::{
    ModelRef, UptrainConfig,
    document::{StageKeys, load_staged},
};
use std::path::{Path, PathBuf};

/// Text, teacher, losses, schedule and what is trained may change; model and folder are those of
/// the run.
const KEYS: StageKeys =
    StageKeys { replaced: &["teacher", "losses", "schedule"], merged: &["data", "optimizer", "train"] };

/// One of the runs that a file asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its name; `None` where the file is one run.
    pub name: Option<String>,
    /// The run.
    pub config: UptrainConfig,
    /// The model that the first stage begins with.
    first: ModelRef,
}

impl Stage {
    /// The model that it leaves, if it has.
    #[must_use]
    pub fn finished(&self) -> Option<PathBuf> {
        Some(self.config.run.dir.join(MODEL_DIR)).filter(|path| path.exists())
    }

    /// The run as it would be on the model that the first stage begins with, which has the same
    /// shape.
    #[must_use]
    pub fn on_first_model(&self) -> UptrainConfig {
        UptrainConfig { student: self.first.clone(), ..self.config.clone() }
    }

    /// Opens what it reads, and checks that it fits together.
    ///
    /// # Errors
    /// As a run of it, before anything is written.
    pub fn check(&self) -> Result<(), TrainError> {
        Inputs::open(&self.on_first_model(), None).map(|_| ())
    }
}

/// Reads the stages of the file `path`, or the only run that it is, after applying `overrides`.
///
/// # Errors
/// When the file cannot be read, or with every problem of it.
pub fn stages(path: &Path, overrides: &[String]) -> Result<Vec<Stage>, TrainError> {
    let mut stages: Vec<Stage> = Vec::new();
    for stage in load_staged::<UptrainConfig>(path, overrides, KEYS)? {
        let mut config = stage.document;
        let first = stages.first().map_or_else(|| config.student.clone(), |first| first.first.clone());
        if let Some(name) = &stage.name {
            config.run.dir = config.run.dir.join(name);
        }
        if let Some(before) = stages.last() {
            config.student.model = before.config.run.dir.join(MODEL_DIR).to_string_lossy().into_owned();
        }
        stages.push(Stage { name: stage.name, config, first });
    }
    Ok(stages)
}
