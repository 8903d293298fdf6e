//! A checkpoint with more tensors than it is stored with: those of another configuration that the
//! source does not have, as they start. It is read as any other, or written into a folder.
//!
//! New tensors are f32.

use crate::{
    Check, ConvertError, Phase, Progress,
    factorize::{Draw, fill_gaussian},
    output_files::write_json,
};
use retie_checkpoint::{
    CheckpointError, Dtype, FolderWriter, SafetensorsFolder, Staging, TensorInfo, TensorSource, check_tensors, narrow,
};
use retie_config::{ModelConfig, TensorInit, TensorSpec};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// A source with the further tensors of a configuration.
pub struct Enlarged<'a> {
    source: &'a dyn TensorSource,
    config: ModelConfig,
    own: BTreeMap<String, (TensorInfo, Vec<f32>)>,
}

/// A folder that was written beside its place, and its checks, which all passed.
pub(crate) struct Written {
    pub staging: Staging,
    pub checks: Vec<Check>,
}

impl<'a> Enlarged<'a> {
    /// The tensors of `source`, and those of `target` that it does not have, drawn with `seed`.
    #[must_use]
    pub fn new(source: &'a dyn TensorSource, target: ModelConfig, seed: u64) -> Self {
        let new = target.tensors().into_iter().filter(|spec| source.info(&spec.name()).is_none());
        let tensor = |(index, spec): (usize, TensorSpec)| {
            let values = started(&spec, Draw { seed, stream: index as u64 });
            (spec.name(), (TensorInfo { dtype: Dtype::F32, shape: spec.shape }, values))
        };
        let own = new.enumerate().map(tensor).collect();
        Self { source, config: target, own }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Name and type of every tensor that is written.
    fn entries(&self) -> Vec<(String, TensorInfo)> {
        let entry = |spec: TensorSpec| {
            let name = spec.name();
            let dtype = self.info(&name).map_or(Dtype::F32, |info| info.dtype);
            (name, TensorInfo { dtype, shape: spec.shape })
        };
        self.config.tensors().into_iter().map(entry).collect()
    }

    /// Writes weights and `config.json` beside the folder `out`, and checks what was written.
    ///
    /// # Errors
    /// When a file cannot be read or written, or a check fails.
    pub(crate) fn write(&self, out: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Written, ConvertError> {
        let entries = self.entries();
        let staging = Staging::new(out)?;
        write_json(&staging.path().join("config.json"), &self.config.to_json())?;
        let mut writer = FolderWriter::create(staging.path(), &entries, retie_checkpoint::DEFAULT_MAX_SHARD_BYTES)?;
        for (i, (name, _)) in entries.iter().enumerate() {
            writer.write(name, &self.bytes(name)?)?;
            progress(Progress { phase: Phase::Write, done: i + 1, total: entries.len(), tensor: name });
        }
        writer.finish()?;
        let checks = self.checks(&entries, staging.path(), progress)?;
        let failures: Vec<_> = checks.iter().filter(|check| !check.passed).cloned().collect();
        match failures.is_empty() {
            true => Ok(Written { staging, checks }),
            false => Err(ConvertError::ChecksFailed { failures }),
        }
    }

    fn checks(
        &self,
        entries: &[(String, TensorInfo)],
        dir: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Check>, ConvertError> {
        let written = SafetensorsFolder::open(dir)?;
        let check = |name: &str, bad: Option<String>, good: String| {
            let passed = bad.is_none();
            Check { name: name.to_owned(), passed, detail: bad.unwrap_or(good) }
        };
        let layout = check_tensors(&ModelConfig::load(&dir.join("config.json"))?, &written).err();
        let fits = format!("{} tensors have the name and shape that the configuration implies", entries.len());
        let mut checks = vec![check("layout", layout.map(|error| error.to_string()), fits)];
        if !checks[0].passed {
            return Ok(checks);
        }
        let mut bad = Vec::new();
        for (i, (name, _)) in entries.iter().enumerate() {
            if !written.equals(name, &self.bytes(name)?)? {
                bad.push(format!("`{name}`"));
            }
            progress(Progress { phase: Phase::Check, done: i + 1, total: entries.len(), tensor: name });
        }
        let copied = entries.len() - self.own.len();
        let good = format!("{copied} tensors equal the source's byte for byte, {} are new", self.own.len());
        let bad = (!bad.is_empty()).then(|| format!("not as they should be: {}", bad.join(", ")));
        checks.push(check("copies", bad, good));
        Ok(checks)
    }
}

/// Values that a new tensor starts with.
fn started(spec: &TensorSpec, draw: Draw) -> Vec<f32> {
    let width = spec.shape.last().copied().unwrap_or(1);
    let rows = spec.num_elements() / width.max(1);
    let mut values = vec![0.0f32; rows * width];
    match spec.init {
        TensorInit::Constant(value) => values.fill(value),
        TensorInit::Normal { std } => {
            let all: Vec<usize> = (0..rows).collect();
            fill_gaussian(&mut values, width, &all, draw);
            // `fill_gaussian` draws from N(0, 1/width).
            let scale = (std * (width as f64).sqrt()) as f32;
            values.iter_mut().for_each(|x| *x *= scale);
        }
        TensorInit::Source | TensorInit::Residual | TensorInit::RowNorms => {
            unreachable!("a checkpoint that was checked has every tensor that is made of a source")
        }
    }
    values
}

impl TensorSource for Enlarged<'_> {
    fn names(&self) -> Vec<&str> {
        self.source.names().into_iter().chain(self.own.keys().map(String::as_str)).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.own.get(name).map(|(info, _)| info).or_else(|| self.source.info(name))
    }

    fn path_of(&self, name: &str) -> &Path {
        self.source.path_of(name)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        match self.own.get(name) {
            Some((info, values)) => Ok(narrow(values, info.dtype).into()),
            None => self.source.bytes(name),
        }
    }
}
