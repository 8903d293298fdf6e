//! A written adapter over its base, read as the model that `merge_and_unload` of peft makes.

use super::{CONFIG, WEIGHTS, adapter::PREFIX};
use crate::{ExportError, joined::Joined, merge::Parts};
use retie_checkpoint::{CheckpointError, Dtype, SafetensorsFile, TensorInfo, TensorSource, widen};
use serde_json::Value;
use std::{borrow::Cow, path::Path};

/// Base and adapter of a folder.
pub struct Adapted<'a> {
    base: &'a dyn TensorSource,
    adapter: SafetensorsFile,
    config: Value,
}

impl<'a> Adapted<'a> {
    /// The adapter in the folder `dir` over the tensors of its base.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn open(base: &'a dyn TensorSource, dir: &Path) -> Result<Self, ExportError> {
        let path = dir.join(CONFIG);
        let config = serde_json::from_slice(&fs_err::read(&path)?)
            .map_err(|source| CheckpointError::BadJson { path, source })?;
        Ok(Self { base, adapter: SafetensorsFile::open(&dir.join(WEIGHTS))?, config })
    }

    /// Every tensor of base and adapter under the names of the files.
    #[must_use]
    pub fn files(&self) -> impl TensorSource {
        Joined { first: &self.adapter, second: self.base }
    }

    /// `lora_alpha / r` of a module, as its configuration says.
    fn scaling(&self, module: &str) -> f64 {
        let number = |pattern: &str, key: &str| {
            let own = self.config[pattern].get(module).unwrap_or(&self.config[key]);
            own.as_f64().unwrap_or(f64::NAN)
        };
        number("alpha_pattern", "lora_alpha") / number("rank_pattern", "r")
    }

    /// `name` with what the adapter adds to it; `None` for a tensor without.
    fn merged(&self, name: &str, dtype: Dtype) -> Result<Option<Vec<u8>>, CheckpointError> {
        let Some(module) = name.strip_suffix(".weight") else { return Ok(None) };
        let of_adapter = |part: &str| format!("{PREFIX}{module}.{part}");
        let [a, b] = ["lora_A.weight", "lora_B.weight"].map(of_adapter);
        let targets = self.config["target_modules"].as_array();
        if !targets.is_some_and(|targets| targets.iter().any(|target| target == module)) {
            return Ok(None);
        }
        let scaling = self.scaling(module) as f32;
        let b = self.adapter.read_f32(&b)?.into_iter().map(|b| b * scaling).collect();
        let magnitudes = of_adapter("lora_magnitude_vector");
        let parts = Parts {
            weight: self.base.read_f32(name)?,
            inp: self.base.info(name).and_then(|info| info.shape.last().copied()).unwrap_or(0),
            factors: Some([self.adapter.read_f32(&a)?, b]),
            magnitudes: (self.config["use_dora"] == true).then(|| self.adapter.read_f32(&magnitudes)).transpose()?,
            scale: None,
        };
        Ok(Some(parts.merged(dtype)))
    }
}

impl TensorSource for Adapted<'_> {
    fn names(&self) -> Vec<&str> {
        self.base.names()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.base.info(name)
    }

    fn path_of(&self, name: &str) -> &Path {
        self.base.path_of(name)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let dtype = self.base.info(name).map_or(Dtype::F32, |info| info.dtype);
        self.merged(name, dtype)?.map_or_else(|| self.base.bytes(name), |merged| Ok(merged.into()))
    }

    /// Merged values, not rounded to the type of the base.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let merged = self.merged(name, Dtype::F32)?;
        merged.map_or_else(|| self.base.read_f32(name), |merged| Ok(widen(&merged, Dtype::F32)))
    }
}
