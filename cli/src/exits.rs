//! Calibrated exits of a model folder: reading, checking, and what they make of an engine.

use crate::{choice::choice, model, output};
use anyhow::{Context, bail, ensure};
use burn::tensor::Device;
use clap::Args;
use retie_checkpoint::ModelSource;
use retie_config::{EXITS_FILE, EXITS_SCHEMA, ExitCalibration, HashedFile, SkippedKv};
use retie_engine::ExitOptions;
use retie_model::{CausalLm, ExitRule};
use retie_serve::ServedExits;
use std::path::{Path, PathBuf};

/// How tokens leave the loop early.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Early exits")]
pub struct ExitArgs {
    /// Let tokens leave the loop early, with the threshold that `retie calibrate` found for this
    /// risk or the next lower one
    #[arg(long, value_name = "LEVEL")]
    exit_risk: Option<f64>,
    /// Let every token leave the loop after N recursions at the latest
    #[arg(long, value_name = "N")]
    max_recursions: Option<usize>,
    /// Keys and values of skipped recursions; by default those of the calibration, else
    /// `propagate`, `skip` for a routed model, `shared` for one with shared keys and values
    #[arg(long, value_name = "POLICY", value_parser = choice::<SkippedKv>(SkippedKv::NAMES))]
    kv_policy: Option<SkippedKv>,
}

/// Exits of a generation.
#[derive(Clone, Debug)]
pub struct ChosenExits {
    pub engine: ExitOptions,
    pub max_recursions: Option<usize>,
    pub threshold: Option<f32>,
}

impl ExitArgs {
    /// The chosen exits; `None` if none are asked for.
    ///
    /// # Errors
    /// There is no calibration of this checkpoint, policy and level, or the model has fewer
    /// recursions.
    pub fn choose(self, source: &ModelSource, model: &CausalLm) -> anyhow::Result<Option<ChosenExits>> {
        let Self { exit_risk, max_recursions, kv_policy } = self;
        if exit_risk.is_none() && max_recursions.is_none() {
            ensure!(
                kv_policy.is_none(),
                "`--kv-policy` is given, but no token leaves early\nhint: add `--exit-risk` or `--max-recursions`"
            );
            return Ok(None);
        }
        let most = model.share_map().num_recursions();
        if let Some(asked) = max_recursions {
            ensure!(
                (1..=most).contains(&asked),
                "`--max-recursions` is `{asked}`, but `{}` has {most} recursions\nhint: give 1 to {most}",
                source.spec
            );
        }
        let calibration = exit_risk.map(|_| calibration(source)).transpose()?;
        if let (Some(found), Some(asked)) = (&calibration, kv_policy) {
            ensure!(
                found.kv_policy == asked,
                "the thresholds of `{}` were calibrated under the policy `{}`, not `{asked}`\n\
                 hint: leave `--kv-policy` out, or calibrate again with `--kv-policy {asked}`",
                source.spec,
                found.kv_policy
            );
        }
        let threshold = match (&calibration, exit_risk) {
            (Some(calibration), Some(level)) => Some(threshold(calibration, level)?),
            _ => None,
        };
        let kv = kv_policy.or(calibration.as_ref().map(|found| found.kv_policy));
        let kv = kv.unwrap_or_else(|| model.default_skipped_kv());
        model
            .check_exits(kv)
            .map_err(|reason| anyhow::anyhow!("tokens of `{}` cannot leave early: {reason}", source.spec))?;
        let rule = calibration.map(|found| rule(&found, &model.device()));
        Ok(Some(ChosenExits { engine: ExitOptions { rule, kv }, max_recursions, threshold }))
    }
}

/// Path of the calibration of `source`.
pub fn path(source: &ModelSource) -> PathBuf {
    source.path.join(EXITS_FILE)
}

/// Files of a checkpoint with their hashes, for its calibration.
pub fn files(source: &ModelSource) -> anyhow::Result<Vec<HashedFile>> {
    let files = model::parent(source)?.files.into_iter();
    Ok(files.map(|file| HashedFile { name: file.name, sha256: file.sha256 }).collect())
}

/// The exit rule of a calibration.
pub fn rule(calibration: &ExitCalibration, device: &Device) -> ExitRule {
    ExitRule::new(calibration.rule, &calibration.probes, device)
}

/// Reads the calibration of `source`.
///
/// # Errors
/// There is none, or it is not one of this checkpoint.
pub fn calibration(source: &ModelSource) -> anyhow::Result<ExitCalibration> {
    let path = path(source);
    let again = format!("retie calibrate {} --text FILE", output::word(Path::new(&source.spec)));
    if !path.is_file() {
        bail!("`{}` has no calibrated exits: there is no `{EXITS_FILE}`\nhint: {again}", source.spec);
    }
    let text = fs_err::read_to_string(&path)?;
    let bad = || format!("`{}` is not a calibration of exits\nhint: {again}", path.display());
    let found: ExitCalibration = serde_json::from_str(&text).with_context(bad)?;
    ensure!(
        found.schema == EXITS_SCHEMA,
        "`{}` has schema {}, expected {EXITS_SCHEMA}\nhint: {again}",
        path.display(),
        found.schema
    );
    if let Some(other) = files(source)?.iter().find(|file| !found.model.contains(file)) {
        bail!(
            "`{}` was made for another checkpoint: it has another hash of `{}`\nhint: {again}",
            path.display(),
            other.name
        );
    }
    Ok(found)
}

/// Threshold of a calibration for `level`; infinite if no token may leave.
pub fn threshold(calibration: &ExitCalibration, level: f64) -> anyhow::Result<f32> {
    let wrong = |expected| {
        let hint = format!("calibrate again with `--level {level}`, or accept a higher risk");
        anyhow::anyhow!("`--exit-risk` is `{level}`, expected {expected}\nhint: {hint}")
    };
    calibration.number(level).map_err(wrong)
}

/// Early exits of a model that is served: those of its calibration if it has one, else by recursion
/// counts alone; `None` for a model whose tokens cannot leave.
///
/// # Errors
/// The calibration is not one of this checkpoint, or its policy is not for the model.
pub fn served(source: &ModelSource, model: &CausalLm) -> anyhow::Result<Option<ServedExits>> {
    let calibration = if path(source).is_file() { Some(calibration(source)?) } else { None };
    let kv = calibration.as_ref().map_or_else(|| model.default_skipped_kv(), |found| found.kv_policy);
    match (model.check_exits(kv), &calibration) {
        (Err(_), None) => return Ok(None),
        (Err(reason), Some(_)) => bail!(
            "tokens of `{}` cannot leave early: {reason}\nhint: remove `{}`, or calibrate again",
            source.spec,
            path(source).display()
        ),
        (Ok(()), _) => {}
    }
    let rule = calibration.as_ref().map(|found| rule(found, &model.device()));
    Ok(Some(ServedExits { options: ExitOptions { rule, kv }, calibration }))
}
