//! `retie check`: consistency checks of a model, measured on its weights.

use crate::{
    args::{DeviceArgs, JsonArgs},
    error::Status,
    logits::{largest_difference, logits, spread_ids},
    model, output,
};
use anyhow::{bail, ensure};
use burn::tensor::Device;
use clap::{Args, Subcommand};
use retie_checkpoint::ModelSource;
use retie_config::{DepthExtra, Init, MechanismAt, Relax, StepConfig, steps_with};
use retie_convert::{ConvertError, Enlarged, with_steps};
use retie_model::CausalLm;
use serde::Serialize;
use std::fmt::{self, Display, Formatter};

/// Check what has to hold of a model
#[derive(Debug, Subcommand)]
pub enum Check {
    Identity(Identity),
}

/// Check that what a conversion added leaves the logits alone: with and without each extra, the
/// magnitudes of DoRA and each mechanism of the steps, with a mechanism that it does not have, or
/// beside another model
#[derive(Debug, Args)]
pub struct Identity {
    /// A Hugging Face folder, a .gguf file, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// A model that is to have the same logits, e.g. the source of a conversion at full rank
    #[arg(long, value_name = "MODEL")]
    reference: Option<String>,
    /// A mechanism to insert, as in `retie insert`; several are inserted one by one and in pairs
    #[arg(long, value_name = "MECHANISM")]
    with: Vec<MechanismAt>,
    /// Tokens of the text that both read: ids spread over the vocabulary
    #[arg(long, value_name = "N", default_value_t = 128)]
    tokens: usize,
    /// Largest difference of a logit that passes; for magnitudes of DoRA 1e-4 of the largest logit,
    /// if that is more
    #[arg(long, value_name = "DIFFERENCE", default_value_t = 1e-5)]
    tolerance: f32,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// Tolerance for DoRA magnitudes, as a fraction of the largest logit. Loading a model measures the
/// norms of DoRA anew, so a magnitude divided by its norm is 1 only up to rounding.
const ROUNDING: f32 = 1e-4;

/// Result of `retie check identity`.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    tokens: usize,
    comparisons: Vec<Comparison>,
}

/// Comparison of the model's logits with those of another model.
#[derive(Debug, Serialize)]
struct Comparison {
    with: String,
    /// `max |Δlogit|`.
    max_difference: f32,
    /// Largest difference that passes.
    tolerance: f32,
    passed: bool,
}

impl Check {
    pub fn run(self) -> anyhow::Result<Status> {
        match self {
            Self::Identity(identity) => identity.run(),
        }
    }
}

impl Identity {
    fn run(self) -> anyhow::Result<Status> {
        let device = retie_model::device(&self.device.device)?;
        let source = model::open(&self.model)?;
        let config = &source.config;
        let limit = config.max_position_embeddings;
        ensure!((1..=limit).contains(&self.tokens), "`--tokens` is {}, expected 1 to {limit}", self.tokens);
        // The gates of a selection close its later recursions: they are no identity to leave out.
        let is_gate = |extra: &DepthExtra| {
            *extra == DepthExtra::ResidualScale
                && config.recursion.as_ref().is_some_and(|recursion| recursion.init == Init::Select)
        };
        let extras = config.recursion.iter().flat_map(|recursion| recursion.extras.clone());
        let extras = extras.filter(|extra| !is_gate(extra));
        let mut others = Vec::new();
        let mut rounded = Vec::new();
        let loaded = CausalLm::load(config, source.tensors.as_ref(), &device)?;
        let mut bare = loaded.clone();
        for extra in extras {
            others.push((format!("without {extra}"), loaded.without_extra(extra)));
            bare = bare.without_extra(extra);
        }
        if others.len() > 1 {
            others.push(("without any".to_owned(), bare));
        }
        if config.recursion.iter().flat_map(|recursion| &recursion.lora).any(|lora| lora.relax == Relax::Dora) {
            rounded.push(("without magnitudes".to_owned(), loaded.without_magnitudes()));
        }
        others.extend(without_mechanisms(&source, &loaded));
        others.extend(self.with_mechanisms(&source, &device)?);
        if let Some(reference) = &self.reference {
            let other = model::open(reference)?;
            let (found, expected) = (other.config.vocab_size, config.vocab_size);
            ensure!(found == expected, "`{reference}` has {found} tokens, `{}` has {expected}", self.model);
            let other = CausalLm::load(&other.config, other.tensors.as_ref(), &device)?;
            others.push((format!("beside {reference}"), other));
        }
        if others.is_empty() && rounded.is_empty() {
            bail!(
                "`{}` has no extras, magnitudes or mechanisms to leave out\nhint: name another model with `--reference` or a mechanism with `--with`, or convert with `--extras` or `--relax dora`",
                self.model
            );
        }
        let ids = spread_ids(self.tokens, config.vocab_size);
        let expected = logits(&loaded, &ids);
        let compare = |(with, other): (String, CausalLm), tolerance: f32| {
            let max_difference = largest_difference(&expected, &logits(&other, &ids));
            Comparison { with, max_difference, tolerance, passed: max_difference <= tolerance }
        };
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let mut comparisons: Vec<_> = others.into_iter().map(|other| compare(other, self.tolerance)).collect();
        comparisons.extend(rounded.into_iter().map(|other| compare(other, self.tolerance.max(ROUNDING * largest))));
        let report = Report { model: self.model, tokens: self.tokens, comparisons };
        match self.json.json {
            true => output::json(&report)?,
            false => output::data(&report)?,
        }
        Ok(if report.comparisons.iter().all(|c| c.passed) { Status::Done } else { Status::CheckFailed })
    }
}

/// The model without each mechanism that starts without an effect.
fn without_mechanisms(source: &ModelSource, loaded: &CausalLm) -> Vec<(String, CausalLm)> {
    let rows = source.config.recursion.iter().flat_map(|recursion| &recursion.steps);
    let mut names: Vec<&str> = Vec::new();
    for mechanism in rows.flat_map(StepConfig::mechanisms) {
        if mechanism.parameters().keeps_logits() && !names.contains(&mechanism.name()) {
            names.push(mechanism.name());
        }
    }
    names.into_iter().map(|name| (format!("without {name}"), loaded.without_mechanism(name))).collect()
}

impl Identity {
    /// The model with each mechanism of `--with`, and with each pair that goes together.
    fn with_mechanisms(&self, source: &ModelSource, device: &Device) -> anyhow::Result<Vec<(String, CausalLm)>> {
        let config = &source.config;
        let alone = self.with.iter().map(|one| (format!("with {}", one.mechanism), vec![one.clone()]));
        let pair = |at: usize| {
            let first = &self.with[at];
            let name = move |other: &MechanismAt| format!("with {} and {}", first.mechanism, other.mechanism);
            self.with[at + 1..].iter().map(move |other| (name(other), vec![first.clone(), other.clone()]))
        };
        let pairs = (0..self.with.len()).flat_map(pair);
        let mut models = Vec::new();
        for (name, added) in alone.chain(pairs) {
            let recursion = config.recursion.as_ref().ok_or(ConvertError::StepsWithoutRecursion)?;
            let steps = match steps_with(&recursion.steps, &added, recursion.num_recursions) {
                // Two in one place of the table.
                Err(_) if added.len() > 1 => continue,
                steps => steps?,
            };
            let enlarged = Enlarged::new(source.tensors.as_ref(), with_steps(config, steps)?, 0);
            models.push((name, CausalLm::load(enlarged.config(), &enlarged, device)?));
        }
        Ok(models)
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { model, tokens, comparisons } = self;
        let title = format!("logits of {model} on {tokens} tokens");
        let width = comparisons.iter().map(|comparison| comparison.with.chars().count()).max().unwrap_or(0).max(40);
        writeln!(f, "{title:<width$} {:>10}  at most", "difference")?;
        for Comparison { with, max_difference, tolerance, passed } in comparisons {
            let verdict = if *passed { "ok" } else { "differs" };
            writeln!(f, "{with:<width$} {max_difference:>10.2e}  {tolerance:<7.0e}  {verdict}")?;
        }
        Ok(())
    }
}
