//! Routers for a recursive model: its tensors as they are, and a new router for each recursion, or one for all
//! (Mixture-of-Recursions, <https://arxiv.org/abs/2507.10524>, §2.2).
//!
//! A network's last layer starts at zero with gating `delta`, so that under a sigmoid with `alpha: 2` every gate is exactly 1; and where
//! tokens choose their depth with a gating that keeps what the block gives, so that all depths score alike and every token goes through all
//! recursions. Else, and in hidden layers, weights are drawn from N(0, `initializer_range`), as in the reference. Routers are stored in f32.

use crate::{
    Check, ConvertError, Extras, ParameterCounts,
    factorize::{Draw, fill_gaussian},
    pipeline::{Progress, Stage, write_json},
};
use retie_checkpoint::{
    Dtype, FolderWriter, RouterKind, SafetensorsFolder, Staging, TensorInfo, TensorSource, check_tensors,
    expected_tensors, narrow, router_tensor, router_tensors,
};
use retie_config::{
    ExpertChoiceConfig, Gating, KvStrategy, ModelConfig, RecursionConfig, RouterConfig, RouterScore, TokenChoiceConfig,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, io::Write, path::Path};

/// Name of the report in the folder.
pub const ROUTER_REPORT_FILE: &str = "router.json";

/// Spread of the weights of a model whose configuration does not say: the default of transformers.
const INITIALIZER_RANGE: f64 = 0.02;

/// What was added.
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
    /// What the reader should know.
    pub notes: Vec<String>,
    /// What was verified on the written folder.
    pub checks: Vec<Check>,
}

/// Writes `source`, a recursive model whose configuration is `config`, with a router into the folder `out`, which appears whole or not
/// at all.
///
/// # Errors
/// When the model is not recursive, has a router, or has no loop; the router does not fit it; a file cannot be read or written; or a
/// check of the result fails.
pub fn add_router(
    source: &dyn TensorSource,
    config: &ModelConfig,
    router: &RouterConfig,
    seed: u64,
    extras: &Extras,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<RouterReport, ConvertError> {
    let Some(recursion) = &config.recursion else { return Err(ConvertError::RouterWithoutRecursion) };
    if let Some(router) = &recursion.router {
        return Err(ConvertError::AlreadyRouted { kind: router.kind() });
    }
    check_tensors(config, source)?;
    let recursion = RecursionConfig { router: Some(router.clone()), ..recursion.clone() };
    let target = ModelConfig { recursion: Some(recursion.clone()), ..config.clone() };
    // The router is checked with the pattern.
    let entries = entries(source, &target)?;
    let own = own_tensors(&target, router, seed);
    let staging = Staging::new(out)?;
    write_json(&staging.path().join("config.json"), &target.to_json())?;
    let mut writer = FolderWriter::create(staging.path(), &entries, retie_checkpoint::DEFAULT_MAX_SHARD_BYTES)?;
    for (i, (name, _)) in entries.iter().enumerate() {
        match own.get(name) {
            Some(values) => writer.write(name, &narrow(values, Dtype::F32))?,
            None => writer.write(name, &source.bytes(name)?)?,
        }
        progress(Progress { stage: Stage::Write, done: i + 1, total: entries.len(), tensor: name });
    }
    writer.finish()?;
    let report = RouterReport {
        schema: 1,
        notes: notes(router, &recursion),
        recursion,
        seed,
        parameters: ParameterCounts::of(&target)?,
        checks: checks(source, &own, &entries, staging.path(), progress)?,
    };
    let failures: Vec<_> = report.checks.iter().filter(|check| !check.passed).cloned().collect();
    if !failures.is_empty() {
        return Err(ConvertError::ChecksFailed { failures });
    }
    write_json(&staging.path().join(ROUTER_REPORT_FILE), &report)?;
    for (name, content) in &extras.files {
        fs_err::File::create(staging.path().join(name))?.write_all(content)?;
    }
    if let Some(provenance) = &extras.provenance {
        provenance.save(staging.path())?;
    }
    staging.publish()?;
    Ok(report)
}

/// Name and type of every tensor that is written.
fn entries(source: &dyn TensorSource, target: &ModelConfig) -> Result<Vec<(String, TensorInfo)>, ConvertError> {
    let expected = expected_tensors(target)?.into_iter();
    let entry = |(name, shape): (String, Vec<usize>)| {
        let dtype = source.info(&name).map_or(Dtype::F32, |info| info.dtype);
        (name, TensorInfo { dtype, shape })
    };
    Ok(expected.map(entry).collect())
}

/// The routers' weights by name.
fn own_tensors(target: &ModelConfig, router: &RouterConfig, seed: u64) -> BTreeMap<String, Vec<f32>> {
    let starts_at_zero = match router {
        RouterConfig::ExpertChoice(router) => router.gating == Gating::Delta,
        RouterConfig::TokenChoice(router) => matches!(router.gating, Gating::Delta | Gating::StraightThrough),
    };
    let main = router_tensor(RouterKind::Main, 0, "");
    let main = main.trim_end_matches("0.");
    let spread = target.other.get("initializer_range").and_then(serde_json::Value::as_f64).unwrap_or(INITIALIZER_RANGE);
    let tensors = router_tensors(target).into_iter().enumerate();
    let values = |(index, (name, shape)): (usize, (String, Vec<usize>))| {
        let (rows, width) = (shape[0], shape[1]);
        let mut values = vec![0.0f32; rows * width];
        if !(starts_at_zero && name.starts_with(main) && name.ends_with("out_proj.weight")) {
            let all: Vec<usize> = (0..rows).collect();
            fill_gaussian(&mut values, width, &all, Draw { seed, stream: index as u64 });
            // That draws from N(0, 1/width).
            let scale = (spread * (width as f64).sqrt()) as f32;
            values.iter_mut().for_each(|x| *x *= scale);
        }
        (name, values)
    };
    tensors.map(values).collect()
}

fn notes(router: &RouterConfig, recursion: &RecursionConfig) -> Vec<String> {
    let (score, alpha, exact) = match router {
        RouterConfig::ExpertChoice(ExpertChoiceConfig { gating, score, alpha, .. }) => {
            let at_zero = *score == RouterScore::Sigmoid && *alpha == 2.0;
            (score.name(), *alpha, keeps(*gating, at_zero))
        }
        RouterConfig::TokenChoice(TokenChoiceConfig { gating, score, alpha, .. }) => {
            let at_zero = *alpha == score.default_alpha(Gating::Delta, recursion.num_recursions);
            (score.name(), *alpha, keeps(*gating, at_zero))
        }
    };
    let mut notes = Vec::new();
    if !exact {
        notes.push(format!(
            "with gating `{}`, score `{score}` and alpha {alpha} a token that goes through every recursion does not have the \
             hidden states that the model had: its logits have to be learned again",
            router.gating()
        ));
    }
    if router.kv() == KvStrategy::Shared && (recursion.lora.is_some() || !recursion.share_norms) {
        let unused = "what later depths own for `k_proj` and `v_proj` is not used";
        notes.push(format!("with kv `shared` only the first recursion makes keys and values: {unused}"));
    }
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

/// Whether a token that goes through every recursion is what it was; `at_zero`: logits of 0 are gates of 1.
fn keeps(gating: Gating, at_zero: bool) -> bool {
    match gating {
        Gating::StraightThrough => true,
        Gating::Delta => at_zero,
        Gating::Weighted | Gating::Additive => false,
    }
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
        progress(Progress { stage: Stage::Check, done: i + 1, total: entries.len(), tensor: name });
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
        let (input, score, alpha) = match router {
            RouterConfig::ExpertChoice(router) => (router.input, router.score.name(), router.alpha),
            RouterConfig::TokenChoice(router) => (router.input, router.score.name(), router.alpha),
        };
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
        writeln!(f, "{:<12} {}", "kv", router.kv())?;
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
