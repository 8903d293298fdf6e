//! Checkpoints of a run: `ckpt/step-N/`, written whole and renamed into place.
//!
//! A step folder is a model folder (configuration, weights in f32, tokenizer, provenance) with
//! `optimizer.safetensors` (`BUFFER.NAME` for each buffer of a parameter's update rule, so
//! `mean.NAME` and `square.NAME` or `momentum.NAME`, and `average.NAME` where averages are kept),
//! `state.json` and, where a loss learns them, the maps of [`Projections`] beside them; `retie
//! eval` and `retie generate` read it as it is.

use crate::{
    TrainError,
    optim::{AVERAGE, Optimizer, Parameter, ParameterState, Projections, UpdateRules},
};
use burn::tensor::{Device, Tensor, TensorData};
use retie_checkpoint::{
    CheckpointError, DEFAULT_MAX_SHARD_BYTES, Dtype, FolderWriter, ModelSource, Provenance, SafetensorsFile,
    SafetensorsWriter, Staging, TensorInfo, TensorSource, narrow,
};
use retie_collective::Collective;
use retie_config::ModelConfig;
use retie_data::Cursor;
use retie_model::CausalLm;
use serde::{Deserialize, Deserializer, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const STATE_FILE: &str = "state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// State of a run beside its tensors. The learning rate and the order of the text follow
/// from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps that are done.
    pub step: u64,
    /// Skipped steps among them, because a loss or gradient was not a finite number.
    #[serde(default)]
    pub skipped: u64,
    /// Tokens of all steps.
    pub tokens: u64,
    /// Begin of the next batch in each source of the text; a run of a version without mixtures
    /// has one cursor.
    #[serde(alias = "cursor", deserialize_with = "one_or_many")]
    pub cursors: Vec<Cursor>,
    /// Fingerprint of the training rows.
    pub data: String,
    /// Fingerprint of the cache that stands for the teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits: Option<String>,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Cursor>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Cursors {
        One(Cursor),
        Many(Vec<Cursor>),
    }
    Ok(match Cursors::deserialize(deserializer)? {
        Cursors::One(cursor) => vec![cursor],
        Cursors::Many(cursors) => cursors,
    })
}

/// Files beside the weights in a model folder.
pub struct ModelFiles<'a> {
    /// Becomes `config.json`.
    pub config: ModelConfig,
    /// Tokenizer files by name.
    pub companions: Vec<(String, Vec<u8>)>,
    /// Becomes `retie.json`.
    pub provenance: &'a Provenance,
}

impl ModelFiles<'_> {
    /// The configuration, which names the type of the weights that are written: its source's may
    /// have had another one.
    fn config_in_f32(&self) -> ModelConfig {
        let mut config = self.config.clone();
        // `dtype` since transformers 5, `torch_dtype` before.
        let key = if config.other.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        config.other.insert(key.into(), Dtype::F32.torch_name().into());
        config
    }

    /// Writes them and the weights of `model` into `dir`, which must be empty.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub fn write(&self, model: &CausalLm, dir: &Path) -> Result<(), TrainError> {
        let mut text = serde_json::to_string_pretty(&self.config_in_f32().to_json())
            .map_err(|source| TrainError::BadRunFile { path: dir.join("config.json"), source })?;
        text.push('\n');
        fs_err::write(dir.join("config.json"), text)?;
        for (name, bytes) in &self.companions {
            fs_err::write(dir.join(name), bytes)?;
        }
        self.provenance.save(dir)?;
        let parameters = model.parameters().into_iter();
        let infos: Vec<_> = parameters.map(|(name, shape)| (name, TensorInfo { dtype: Dtype::F32, shape })).collect();
        let mut writer = FolderWriter::create(dir, &infos, DEFAULT_MAX_SHARD_BYTES)?;
        let mut result = Ok(());
        model.for_each_parameter(|name, parameter| {
            if result.is_ok() {
                result = writer.write(name, &narrow(&parameter.values(), Dtype::F32));
            }
        });
        result?;
        Ok(writer.finish()?)
    }
}

/// Writes a step folder and gives its path. Where the optimizer's state is divided the other ranks
/// have to [`Optimizer::assist`].
///
/// # Errors
/// When the disk fails or is full; the folders that are there stay as they are.
pub fn save(
    run_dir: &Path,
    model: &CausalLm,
    files: &ModelFiles<'_>,
    (optimizer, projections): (&Optimizer<'_>, &Projections),
    state: &State,
) -> Result<PathBuf, TrainError> {
    let path = step_dir(run_dir, state.step);
    let staging = Staging::new(&path)?;
    files.write(model, staging.path())?;
    let sizes = optimizer.sizes();
    let info = |len: usize| TensorInfo { dtype: Dtype::F32, shape: vec![len] };
    let named = |(name, len): (&String, &usize)| {
        let (name, len) = (name.clone(), *len);
        optimizer.buffers(&name).into_iter().map(move |buffer| (format!("{buffer}.{name}"), info(len)))
    };
    let infos: Vec<_> = sizes.iter().flat_map(named).collect();
    let mut writer = SafetensorsWriter::create(&staging.path().join(OPTIMIZER_FILE), &infos, &BTreeMap::new())?;
    for name in sizes.keys() {
        for (index, buffer) in optimizer.buffers(name).into_iter().enumerate() {
            writer.write(&format!("{buffer}.{name}"), &narrow(&optimizer.buffer(name, index), Dtype::F32))?;
        }
    }
    writer.finish()?;
    projections.save(staging.path())?;
    let path_of_state = staging.path().join(STATE_FILE);
    let text = serde_json::to_string_pretty(state)
        .map_err(|source| TrainError::BadRunFile { path: path_of_state.clone(), source })?;
    fs_err::write(path_of_state, text)?;
    staging.publish()?;
    Ok(path)
}

/// Checks that every rank has the same weights, in bits, after `step`.
///
/// # Errors
/// [`TrainError::RanksDiffer`], on all of them.
pub fn check_weights(model: &CausalLm, step: u64, ranks: &dyn Collective) -> Result<(), TrainError> {
    if ranks.world() == 1 {
        return Ok(());
    }
    let mut hash = 0u32;
    let mut mix = |bits: u32| hash = hash.rotate_left(5).wrapping_mul(0x9e37_79b1) ^ bits;
    model.for_each_parameter(|_, parameter| parameter.values().iter().for_each(|x| mix(x.to_bits())));
    // Whole numbers, of which f64 holds the sum exactly.
    let differs = ranks.total(f64::from(hash)) != f64::from(hash) * ranks.world() as f64;
    if ranks.any(differs) { Err(TrainError::RanksDiffer { step }) } else { Ok(()) }
}

/// Folder of a step.
pub fn step_dir(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join("ckpt").join(format!("step-{step}"))
}

/// Whether a folder is one of a step.
pub fn is_step(path: &Path) -> bool {
    path.join(STATE_FILE).is_file()
}

/// The step folders of a run, oldest first.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>, TrainError> {
    let dir = run_dir.join("ckpt");
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        let entry = entry?;
        let step = entry.file_name().to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok());
        if let Some(step) = step {
            steps.push((step, entry.path()));
        }
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Removes all step folders but the last `keep_last` and the `keep_best` with the lowest held-out
/// cross-entropy, and what a process that was killed left of a step that no later one writes again.
///
/// # Errors
/// When one cannot be removed.
pub fn prune(run_dir: &Path, keep_last: usize, keep_best: usize) -> Result<(), TrainError> {
    remove_leftovers(&run_dir.join("ckpt"), "step-")?;
    let steps = list(run_dir)?;
    let mut measured: Vec<(f64, u64)> =
        steps.iter().filter_map(|(step, _)| Some((heldout(run_dir, *step)?, *step))).collect();
    measured.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let best: Vec<u64> = measured.into_iter().take(keep_best).map(|(_, step)| step).collect();
    for (step, path) in steps.iter().rev().skip(keep_last.max(1)) {
        if !best.contains(step) {
            remove(path)?;
        }
    }
    Ok(())
}

/// Removes a step folder. A process that is killed meanwhile leaves a part of it, which must not
/// have the name of a step: it is one of the leftovers.
fn remove(step: &Path) -> Result<(), TrainError> {
    let name = step.file_name().unwrap_or_default().to_string_lossy();
    let leftover = step.with_file_name(format!(".{name}.partial"));
    fs_err::rename(step, &leftover)?;
    Ok(fs_err::remove_dir_all(leftover)?)
}

/// Removes what a process that was killed left beside the folders of `dir` whose names begin with
/// `name`: unfinished ones and locks. The run's own lock is held, and none of them is being
/// written.
///
/// # Errors
/// When one cannot be removed.
pub fn remove_leftovers(dir: &Path, name: &str) -> Result<(), TrainError> {
    let prefix = format!(".{name}");
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in fs_err::read_dir(dir)? {
        let entry = entry?;
        let found = entry.file_name();
        match found.to_str().and_then(|found| found.strip_prefix(&prefix)?.split_once('.')) {
            Some((_, "partial")) => fs_err::remove_dir_all(entry.path())?,
            Some((_, "lock")) => fs_err::remove_file(entry.path())?,
            _ => {}
        }
    }
    Ok(())
}

/// The held-out cross-entropy of a step, if it was measured.
fn heldout(run_dir: &Path, step: u64) -> Option<f64> {
    let text = fs_err::read(run_dir.join("eval").join(format!("step-{step}.json"))).ok()?;
    serde_json::from_slice::<serde_json::Value>(&text).ok()?.get("heldout_cross_entropy")?.as_f64()
}

/// Contents of a step folder.
pub struct Restored {
    pub model: ModelSource,
    /// State of the optimizer by parameter name.
    pub states: BTreeMap<String, ParameterState>,
    pub state: State,
}

/// Reads a step folder. The state of the optimizer, whose rules are `rules`, goes to `device`.
/// Where a parameter has the buffers of another rule, those of its own begin anew.
///
/// # Errors
/// When a file is missing, damaged or of another model.
pub fn load(path: &Path, rules: &UpdateRules, device: &Device) -> Result<Restored, TrainError> {
    let state_path = path.join(STATE_FILE);
    let text = fs_err::read(&state_path)?;
    let state = serde_json::from_slice(&text).map_err(|source| TrainError::BadRunFile { path: state_path, source })?;
    let model = ModelSource::open(&path.display().to_string())?;
    let file = SafetensorsFile::open(&path.join(OPTIMIZER_FILE))?;
    let mut states = BTreeMap::new();
    for spec in model.config.tensors() {
        let parameter = Parameter::from_spec(&spec);
        if let Some(state) = load_state(&file, &parameter, rules, device)? {
            states.insert(parameter.name, state);
        }
    }
    Ok(Restored { model, states, state })
}

/// The state of a parameter, with its average if there is one; `None` where it has neither.
fn load_state(
    file: &SafetensorsFile,
    parameter: &Parameter,
    rules: &UpdateRules,
    device: &Device,
) -> Result<Option<ParameterState>, CheckpointError> {
    let named = |buffer: &str| format!("{buffer}.{}", parameter.name);
    let has = |buffer: &str| file.info(&named(buffer)).is_some();
    let read = |buffer: &str| -> Result<Tensor<1>, CheckpointError> {
        let values = file.read_f32(&named(buffer))?;
        let count = values.len();
        Ok(Tensor::from_data(TensorData::new(values, [count]), device))
    };
    let buffers = rules.get(parameter).buffers();
    let average = has(AVERAGE).then(|| read(AVERAGE)).transpose()?;
    let mut state: ParameterState = match (buffers.iter().any(|buffer| has(buffer)), &average) {
        (true, _) => buffers.iter().map(|buffer| read(buffer)).collect::<Result<_, _>>()?,
        (false, Some(average)) => buffers.iter().map(|_| average.zeros_like()).collect(),
        (false, None) => return Ok(None),
    };
    state.extend(average);
    Ok(Some(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_of_a_step_goes_with_the_steps_that_are_not_kept() {
        let run = tempfile::tempdir().unwrap();
        let ckpt = run.path().join("ckpt");
        for name in ["step-3", "step-6", "step-9", ".step-3.partial", ".step-8.partial", ".other.partial"] {
            fs_err::create_dir_all(ckpt.join(name)).unwrap();
        }
        for left in ["step-3", ".step-3.partial", ".step-8.partial"] {
            fs_err::write(ckpt.join(left).join("model.safetensors"), "x").unwrap();
        }
        fs_err::write(ckpt.join(".step-8.lock"), "x").unwrap();
        prune(run.path(), 2, 0).unwrap();
        let mut left: Vec<_> =
            fs_err::read_dir(ckpt).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, [".other.partial", "step-6", "step-9"]);
        prune(&run.path().join("none"), 2, 0).unwrap();
        fs_err::write(run.path().join(".model.lock"), "x").unwrap();
        remove_leftovers(run.path(), "model").unwrap();
        assert!(!run.path().join(".model.lock").exists());
    }

    #[test]
    fn a_state_with_one_cursor_is_read() {
        let old = r#"{"step":4,"tokens":256,"cursor":{"epoch":1,"row":3},"data":"ab"}"#;
        let state: State = serde_json::from_str(old).unwrap();
        assert_eq!(state.cursors, [Cursor { epoch: 1, row: 3 }]);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }
}
