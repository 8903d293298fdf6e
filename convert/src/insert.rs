//! Mechanisms for the recursions of a model: its tensors as they are, and those of the mechanisms
//! as they start, which for most of them is without an effect (`retie_config::StepMechanism`).

use crate::{
    Check, ConvertError, OutputFiles, ParameterCounts, Progress, SourceModel,
    check::write_notes_and_checks,
    enlarged::{Enlarged, Written},
    output_files::write_json,
};
use retie_checkpoint::check_tensors;
use retie_config::{ModelConfig, RecursionConfig, StepConfig};
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path};

/// Name of the report in the folder.
pub const INSERT_REPORT_FILE: &str = "insert.json";

/// What a model gets.
#[derive(Clone, Debug, PartialEq)]
pub struct InsertOptions {
    /// Its step table.
    pub steps: Vec<StepConfig>,
    /// Longest sequence that it is used for; that of the model if `None`.
    pub context: Option<usize>,
    /// Seed of weights that are drawn.
    pub seed: u64,
}

/// Report of the mechanisms that were inserted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InsertReport {
    /// Version of these keys: 1.
    pub schema: u32,
    /// The `recursion` object of the new model.
    pub recursion: RecursionConfig,
    /// Seed of weights that are drawn.
    pub seed: u64,
    /// Parameters that are stored.
    pub parameters: ParameterCounts,
    /// Remarks for the reader.
    pub notes: Vec<String>,
    /// Checks of the written folder.
    pub checks: Vec<Check>,
}

/// Configuration of `config`, a recursive model, with another step table.
///
/// # Errors
/// When the model is not recursive, or the table does not fit it.
pub fn with_steps(config: &ModelConfig, steps: Vec<StepConfig>) -> Result<ModelConfig, ConvertError> {
    let Some(recursion) = &config.recursion else { return Err(ConvertError::StepsWithoutRecursion) };
    let recursion = RecursionConfig { steps, ..recursion.clone() };
    let target = ModelConfig { recursion: Some(recursion), ..config.clone() };
    target.validate()?;
    Ok(target)
}

/// Writes `source`, a recursive model, with mechanisms into the folder `out`, which appears whole
/// or not at all.
///
/// # Errors
/// When the model is not recursive or the mechanisms do not fit it; a file cannot be read or
/// written; or a check of the result fails.
pub fn insert(
    source: SourceModel<'_>,
    options: &InsertOptions,
    files: &OutputFiles,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<InsertReport, ConvertError> {
    let SourceModel { tensors, config } = source;
    let InsertOptions { steps, context, seed } = options;
    check_tensors(config, tensors)?;
    let mut target = with_steps(config, steps.clone())?;
    let mut notes = notes(&target);
    if let Some(context) = *context {
        notes.push(format!(
            "sequences may have {context} tokens, where the model has seen {}: what it makes of positions beyond them is to be measured",
            config.max_position_embeddings
        ));
        target.set_context(context);
    }
    let enlarged = Enlarged::new(tensors, target, *seed);
    let Some(recursion) = enlarged.config().recursion.clone() else {
        return Err(ConvertError::StepsWithoutRecursion);
    };
    let Written { staging, checks } = enlarged.write(out, progress)?;
    let report = InsertReport {
        schema: 1,
        notes,
        recursion,
        seed: *seed,
        parameters: ParameterCounts::from_config(enlarged.config()),
        checks,
    };
    write_json(&staging.path().join(INSERT_REPORT_FILE), &report)?;
    files.write(staging.path())?;
    staging.publish()?;
    Ok(report)
}

/// A remark on each mechanism that changes the logits at once.
fn notes(config: &ModelConfig) -> Vec<String> {
    let mut notes = Vec::new();
    let steps = config.recursion.iter().flat_map(|recursion| &recursion.steps);
    for mechanism in steps.flat_map(StepConfig::mechanisms) {
        let note = format!("`{mechanism}` changes the logits at once: uptrain the model before it is used");
        if !mechanism.parameters().keeps_logits() && !notes.contains(&note) {
            notes.push(note);
        }
    }
    notes
}

impl fmt::Display for InsertReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RecursionConfig { num_recursions, sharing, steps, .. } = &self.recursion;
        writeln!(f, "steps of {num_recursions} recursions ({sharing})\n")?;
        for (recursion, step) in steps.iter().enumerate() {
            let name = if steps.len() == 1 { "all".to_owned() } else { format!("recursion {recursion}") };
            let mechanisms: Vec<_> = step.mechanisms().map(ToString::to_string).collect();
            let mechanisms = if mechanisms.is_empty() { "none".to_owned() } else { mechanisms.join(", ") };
            writeln!(f, "{name:<12} {mechanisms}")?;
        }
        writeln!(f, "{:<12} {} of {}", "parameters", self.parameters.steps, self.parameters.total())?;
        write_notes_and_checks(f, &self.notes, &self.checks)
    }
}
