//! Start of a run: anew, or from a checkpoint, if its configuration is that of the run or
//! differs only in what was allowed.

use super::checkpoint::{self, Restored};
use crate::{TrainError, optim::UpdateRules};
use burn::tensor::Device;
use retie_config::{UptrainConfig, document};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The configuration in a run's folder.
pub const CONFIG_FILE: &str = "config.resolved.yaml";

/// Keys that a resumed run may have otherwise: they say where and how often things are written and
/// where moments are, and change no number.
const FREE: [&str; 6] =
    ["run.dir", "run.loggers", "train.checkpoint_every", "train.keep_last", "train.keep_best", "train.shard_optimizer"];

/// Whether a run may go on from what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// A folder that holds a run is an error.
    Never,
    /// Go on from the last checkpoint of the folder, or from the start if there is none.
    Latest,
    /// Go on from a given checkpoint, with allowed changes.
    From {
        /// A step's folder, or a run's for its last one; `None` as [`Resume::Latest`]. Of another
        /// run it begins a new one in `run.dir`.
        checkpoint: Option<PathBuf>,
        /// Keys, or what they begin with, that may differ from the configuration of the run.
        allow_change: Vec<String>,
    },
}

/// Start of a run.
#[derive(Default)]
pub struct Start {
    /// The checkpoint that it goes on from, and its folder.
    pub restored: Option<(Restored, PathBuf)>,
    /// Allowed changes of the configuration.
    pub changes: Vec<String>,
}

/// Finds and reads what `config` goes on from.
///
/// # Errors
/// When the folder holds a run that may not be gone on with, there is no such checkpoint or a
/// damaged one, or the configuration is another one.
pub fn start(config: &UptrainConfig, resume: &Resume, device: &Device) -> Result<Start, TrainError> {
    let dir = &config.run.dir;
    let (checkpoint, allowed): (_, &[String]) = match resume {
        Resume::Never if holds_run(dir) => return Err(TrainError::RunExists { path: dir.clone() }),
        Resume::Never => return Ok(Start::default()),
        Resume::Latest => (None, &[]),
        Resume::From { checkpoint, allow_change } => (checkpoint.as_deref(), allow_change),
    };
    let found = match checkpoint {
        Some(path) => Some(named(path, dir)?),
        None => checkpoint::list(dir)?.pop().map(|(_, path)| path),
    };
    // A step's folder lies in `ckpt/` of its run's.
    let run = checkpoint.and(found.as_deref()).and_then(|path| path.parent()?.parent()).unwrap_or(dir);
    let changes = changes(config, &run.join(CONFIG_FILE), allowed)?;
    let rules = UpdateRules::new(&config.optimizer);
    let Some(path) = found.clone() else { return Ok(Start { restored: None, changes }) };
    let load = |path: &Path| checkpoint::load(path, &rules, device);
    let restored = match load(&path) {
        Ok(restored) => restored,
        Err(error) => return Err(damaged(error, path, run, |path| load(path).is_ok())),
    };
    Ok(Start { restored: Some((restored, path)), changes })
}

/// The error of reading the checkpoint `path`, with the last one before it of the folder `run` that
/// `is_whole`, if there is one.
fn damaged(error: TrainError, path: PathBuf, run: &Path, is_whole: impl Fn(&Path) -> bool) -> TrainError {
    let same = |other: &Path| fs_err::canonicalize(other).ok() == fs_err::canonicalize(&path).ok();
    let steps = checkpoint::list(run).unwrap_or_default().into_iter().map(|(_, step)| step);
    let earlier: Vec<PathBuf> = steps.take_while(|step| !same(step)).collect();
    match earlier.into_iter().rev().find(|step| is_whole(step)) {
        Some(before) => TrainError::DamagedCheckpoint { path, before, source: Box::new(error) },
        None => error,
    }
}

fn holds_run(dir: &Path) -> bool {
    dir.join(CONFIG_FILE).exists() || dir.join("ckpt").exists() || dir.join("metrics.jsonl").exists()
}

/// The step's folder that `path` names, if a run in `dir` can go on from it.
fn named(path: &Path, dir: &Path) -> Result<PathBuf, TrainError> {
    let step = match checkpoint::is_step(path) {
        true => fs_err::canonicalize(path)?,
        false => match checkpoint::list(path)?.pop() {
            Some((_, step)) => fs_err::canonicalize(step)?,
            None => return Err(TrainError::NotACheckpoint { path: path.to_owned() }),
        },
    };
    if !holds_run(dir) {
        return Ok(step);
    }
    let steps = checkpoint::list(dir)?;
    let own = steps.iter().position(|(_, other)| fs_err::canonicalize(other).is_ok_and(|other| other == step));
    match own.map(|own| &steps[own + 1..]) {
        None => Err(TrainError::RunExists { path: dir.to_owned() }),
        Some([]) => Ok(step),
        Some([(_, later), ..]) => Err(TrainError::LaterCheckpoints { path: step, later: later.clone() }),
    }
}

/// Changes of `config` against the file of the run, all of them allowed.
fn changes(config: &UptrainConfig, path: &Path, allowed: &[String]) -> Result<Vec<String>, TrainError> {
    let text = match path.exists() {
        true => fs_err::read_to_string(path)?,
        false => return Ok(Vec::new()),
    };
    // A key that the run's version did not know has its default.
    let stored = leaves(&document::parse::<UptrainConfig>(&text, path, &[])?, path)?;
    let asked = leaves(config, path)?;
    let mut keys: Vec<&String> = asked.keys().chain(stored.keys().filter(|key| !asked.contains_key(*key))).collect();
    if let Some(key) = allowed.iter().find(|key| !keys.iter().any(|other| is_within(other, key))) {
        return Err(TrainError::NoSuchKey { key: key.clone() });
    }
    keys.retain(|key| stored.get(*key) != asked.get(*key) && !FREE.iter().any(|free| is_within(key, free)));
    let line = |key: &String| {
        let spell = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
        format!("{key}: {} in the run, {} now", spell(stored.get(key)), spell(asked.get(key)))
    };
    let refused: Vec<&&String> =
        keys.iter().filter(|key| !allowed.iter().any(|allowed| is_within(key, allowed))).collect();
    match refused.first() {
        None => Ok(keys.into_iter().map(line).collect()),
        Some(first) => Err(TrainError::ConfigChanged {
            path: path.to_owned(),
            differences: refused.iter().map(|key| format!("  {}", line(key))).collect(),
            example: first.to_string(),
        }),
    }
}

fn is_within(key: &str, prefix: &str) -> bool {
    key.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Every value of a configuration by its key; entries of lists have numbers.
fn leaves(config: &UptrainConfig, path: &Path) -> Result<BTreeMap<String, Value>, TrainError> {
    fn walk(key: String, value: Value, leaves: &mut BTreeMap<String, Value>) {
        let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
        match value {
            Value::Object(entries) if !entries.is_empty() => {
                entries.into_iter().for_each(|(name, value)| walk(below(&name), value, leaves));
            }
            Value::Array(items) if !items.is_empty() => {
                items.into_iter().enumerate().for_each(|(index, value)| walk(below(&index.to_string()), value, leaves));
            }
            leaf => {
                leaves.insert(key, leaf);
            }
        }
    }
    let value =
        serde_json::to_value(config).map_err(|source| TrainError::BadRunFile { path: path.to_owned(), source })?;
    let mut found = BTreeMap::new();
    walk(String::new(), value, &mut found);
    Ok(found)
}
