//! Routers for a recursive model: its tensors as they are, and a new router for each recursion, or
//! one for all (Mixture-of-Recursions, <https://arxiv.org/abs/2507.10524>, §2.2).
//!
//! How their weights start stands with the list of tensors (`retie_config::TensorInit`). Routers
//! are stored in f32.

use crate::{
    Check, ConvertError, OutputFiles, ParameterCounts, Progress, SourceModel,
    check::write_notes_and_checks,
    enlarged::{Enlarged, Written},
    lints::unused_keys,
    output_files::write_json,
};
use retie_checkpoint::check_tensors;
use retie_config::{KvSharing, ModelConfig, RecursionConfig, RouterConfig};
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path};

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
    let enlarged = Enlarged::new(source, target, *seed);
    let Written { staging, checks } = enlarged.write(out, progress)?;
    let report = RouterReport {
        schema: 1,
        notes: notes(router, &recursion),
        recursion,
        seed: *seed,
        parameters: ParameterCounts::from_config(enlarged.config()),
        checks,
    };
    write_json(&staging.path().join(ROUTER_REPORT_FILE), &report)?;
    files.write(staging.path())?;
    staging.publish()?;
    Ok(report)
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
    let spec = router.spec();
    let state = match learns {
        false => "the routers choose at random",
        true if exact && spec.zero_takes_all() => {
            "every token goes through all recursions until the router has learned"
        }
        true => "the routers have learned nothing yet",
    };
    if spec.skips() {
        notes.push(format!("{state}: uptrain the model before it is used, best with {}", spec.advice()));
    }
    notes
}

impl fmt::Display for RouterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RecursionConfig { num_recursions, sharing, .. } = &self.recursion;
        let Some(router) = &self.recursion.router else { return Ok(()) };
        writeln!(f, "{} ({sharing})", router.spec().title(*num_recursions))?;
        writeln!(f, "\n{:<12} {}", "kind", router.kind())?;
        let (input, (score, alpha)) = (router.spec().input(), router.spec().score());
        writeln!(f, "{:<12} {}, reads {input} hidden states", "network", router.network())?;
        writeln!(f, "{:<12} {alpha} of {score}", "score")?;
        writeln!(f, "{:<12} {}", "gating", router.gating())?;
        for (name, value) in router.spec().rows() {
            writeln!(f, "{name:<12} {value}")?;
        }
        writeln!(f, "{:<12} {}", "kv_sharing", self.recursion.kv_sharing)?;
        writeln!(f, "{:<12} {} of {}", "parameters", self.parameters.routers, self.parameters.total())?;
        write_notes_and_checks(f, &self.notes, &self.checks)
    }
}
