//! Routers for a recursive model: its tensors as they are, and a new router for each recursion, or
//! one for all (Mixture-of-Recursions, <https://arxiv.org/abs/2507.10524>, §2.2).
//!
//! How their weights start stands with the list of tensors ([`TensorInit`]). Routers are stored in
//! f32.

use crate::{
    Check, ConvertError, OutputFiles, ParameterCounts, Phase, Progress, SourceModel,
    factorize::{Draw, fill_gaussian},
    lints::unused_keys,
    output_files::write_json,
};
use retie_checkpoint::{
    Dtype, FolderWriter, SafetensorsFolder, Staging, TensorInfo, TensorSource, check_tensors, narrow,
};
use retie_config::{KvSharing, ModelConfig, RecursionConfig, RouterConfig, TensorInit, TensorOwner, TensorSpec};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, path::Path};

/// Name of the report in the folder.
pub const ROUTER_REPORT_FILE: &str = "router.json";

/// Report of the routers that were added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouterReport {
    /// Version of these keys: 1.
    pub schema: u32,
    /// The `recursion` object of the new model.
    pub recursion: RecursionConfig,
    /// Seed of the routers' weights.
    pub seed: u64,
    /// Parameters that are stored.
    pub parameters: ParameterCounts,
    /// Remarks for the reader.
    pub notes: Vec<String>,
    /// Checks of the written folder.
    pub checks: Vec<Check>,
}

/// The routers that a model gets.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterOptions {
    /// Their kind and shape.
    pub router: RouterConfig,
    /// KV sharing across recursions; that of the model if `None`.
    pub kv_sharing: Option<KvSharing>,
    /// Seed of their weights.
    pub seed: u64,
}

/// Writes `source`, a recursive model, with routers into the folder `out`, which appears whole or
/// not at all.
///
/// # Errors
/// When the model is not recursive, has a router, or has no loop; the router does not fit it; a
/// file cannot be read or written; or a check of the result fails.
pub fn add_router(
    source: SourceModel<'_>,
    options: &RouterOptions,
    files: &OutputFiles,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<RouterReport, ConvertError> {
    let SourceModel { tensors: source, config } = source;
    let RouterOptions { router, kv_sharing, seed } = options;
    let Some(recursion) = &config.recursion else { return Err(ConvertError::RouterWithoutRecursion) };
    if let Some(router) = &recursion.router {
        return Err(ConvertError::AlreadyRouted { kind: router.kind() });
    }
    check_tensors(config, source)?;
    let kv_sharing = kv_sharing.unwrap_or(recursion.kv_sharing);
    let recursion = RecursionConfig { router: Some(router.clone()), kv_sharing, ..recursion.clone() };
    let target = ModelConfig { recursion: Some(recursion.clone()), ..config.clone() };
    target.validate()?;
    let entries = entries(source, &target);
    let own = own_tensors(&target, *seed);
    let staging = Staging::new(out)?;
    write_json(&staging.path().join("config.json"), &target.to_json())?;
    let mut writer = FolderWriter::create(staging.path(), &entries, retie_checkpoint::DEFAULT_MAX_SHARD_BYTES)?;
    for (i, (name, _)) in entries.iter().enumerate() {
        match own.get(name) {
            Some(values) => writer.write(name, &narrow(values, Dtype::F32))?,
            None => writer.write(name, &source.bytes(name)?)?,
        }
        progress(Progress { phase: Phase::Write, done: i + 1, total: entries.len(), tensor: name });
    }
    writer.finish()?;
    let report = RouterReport {
        schema: 1,
        notes: notes(router, &recursion),
        recursion,
        seed: *seed,
        parameters: ParameterCounts::from_config(&target),
        checks: checks(source, &own, &entries, staging.path(), progress)?,
    };
    let failures: Vec<_> = report.checks.iter().filter(|check| !check.passed).cloned().collect();
    if !failures.is_empty() {
        return Err(ConvertError::ChecksFailed { failures });
    }
    write_json(&staging.path().join(ROUTER_REPORT_FILE), &report)?;
    files.write(staging.path())?;
    staging.publish()?;
    Ok(report)
}

/// Name and type of every tensor that is written.
fn entries(source: &dyn TensorSource, target: &ModelConfig) -> Vec<(String, TensorInfo)> {
    let entry = |spec: TensorSpec| {
        let name = spec.name();
        let dtype = source.info(&name).map_or(Dtype::F32, |info| info.dtype);
        (name, TensorInfo { dtype, shape: spec.shape })
    };
    target.tensors().into_iter().map(entry).collect()
}

/// The routers' weights by name.
fn own_tensors(target: &ModelConfig, seed: u64) -> BTreeMap<String, Vec<f32>> {
    let specs = target.tensors().into_iter().filter(|spec| matches!(spec.owner, TensorOwner::Router(..)));
    let values = |(index, spec): (usize, TensorSpec)| {
        let (rows, width) = (spec.shape[0], spec.shape[1]);
        let mut values = vec![0.0f32; rows * width];
        match spec.init {
            TensorInit::Constant(value) => values.fill(value),
            TensorInit::Normal { std } => {
                let all: Vec<usize> = (0..rows).collect();
                fill_gaussian(&mut values, width, &all, Draw { seed, stream: index as u64 });
                // `fill_gaussian` draws from N(0, 1/width).
                let scale = (std * (width as f64).sqrt()) as f32;
                values.iter_mut().for_each(|x| *x *= scale);
            }
            TensorInit::Source | TensorInit::Residual | TensorInit::RowNorms => {
                unreachable!("nothing of a router comes from the source")
            }
        }
        (spec.name(), values)
    };
    specs.enumerate().map(values).collect()
}

fn notes(router: &RouterConfig, recursion: &RecursionConfig) -> Vec<String> {
    let (score, alpha) = router.spec().score();
    let exact = router.spec().starts_as_without(recursion.num_recursions);
    let mut notes = Vec::new();
    if !exact {
        notes.push(format!(
            "with gating `{}`, score `{score}` and alpha {alpha} a token that goes through every recursion does not have the \
             hidden states that the model had: its logits have to be learned again",
            router.gating()
        ));
    }
    notes.extend(unused_keys(recursion));
    let learns = router.network().has_weights();
    let chooses = match router {
        RouterConfig::ExpertChoice(router) => router.capacities.iter().any(|capacity| *capacity < 1.0),
        RouterConfig::TokenChoice(_) => true,
    };
    let state = match router {
        _ if !learns => "the routers draw lots",
        RouterConfig::TokenChoice(_) if exact => "every token goes through all recursions until the router has learned",
        _ => "the routers have learned nothing yet",
    };
    let warmup = match router {
        RouterConfig::ExpertChoice(_) => "a capacity warm-up from 1",
        RouterConfig::TokenChoice(_) => "a depth warm-up and a balance of the depths",
    };
    if chooses {
        notes.push(format!("{state}: uptrain the model before it is used, best with {warmup}"));
    }
    notes
}

fn checks(
    source: &dyn TensorSource,
    own: &BTreeMap<String, Vec<f32>>,
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
        let same = match own.get(name) {
            Some(values) => written.equals(name, &narrow(values, Dtype::F32))?,
            None => written.equals(name, &source.bytes(name)?)?,
        };
        if !same {
            bad.push(format!("`{name}`"));
        }
        progress(Progress { phase: Phase::Check, done: i + 1, total: entries.len(), tensor: name });
    }
    let copied = entries.len() - own.len();
    let good = format!("{copied} tensors equal the source's byte for byte, {} are new", own.len());
    let bad = (!bad.is_empty()).then(|| format!("not as they should be: {}", bad.join(", ")));
    checks.push(check("copies", bad, good));
    Ok(checks)
}

impl fmt::Display for RouterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RecursionConfig { num_recursions, sharing, .. } = &self.recursion;
        let Some(router) = &self.recursion.router else { return Ok(()) };
        match router {
            RouterConfig::ExpertChoice(_) => {
                writeln!(f, "a router for each of {num_recursions} recursions ({sharing})")?
            }
            RouterConfig::TokenChoice(_) => writeln!(f, "a router of {num_recursions} depths ({sharing})")?,
        }
        writeln!(f, "\n{:<12} {}", "kind", router.kind())?;
        let (input, (score, alpha)) = (router.spec().input(), router.spec().score());
        writeln!(f, "{:<12} {}, reads {input} hidden states", "network", router.network())?;
        writeln!(f, "{:<12} {alpha} of {score}", "score")?;
        writeln!(f, "{:<12} {}", "gating", router.gating())?;
        match router {
            RouterConfig::ExpertChoice(router) => {
                let list: Vec<_> = router.capacities.iter().map(|capacity| format!("{capacity:.4}")).collect();
                writeln!(f, "{:<12} {}", "capacities", list.join(", "))?;
                if let Some(network) = router.auxiliary {
                    writeln!(f, "{:<12} {network}", "auxiliary")?;
                }
            }
            RouterConfig::TokenChoice(router) => writeln!(f, "{:<12} {}", "intermediate", router.intermediate)?,
        }
        writeln!(f, "{:<12} {}", "kv_sharing", self.recursion.kv_sharing)?;
        writeln!(f, "{:<12} {} of {}", "parameters", self.parameters.routers, self.parameters.total())?;
        for note in &self.notes {
            writeln!(f, "\nnote: {note}")?;
        }
        writeln!(f, "\nchecks of the written folder")?;
        for check in &self.checks {
            writeln!(f, "  {} {:<8} {}", if check.passed { "ok    " } else { "FAILED" }, check.name, check.detail)?;
        }
        Ok(())
    }
}
