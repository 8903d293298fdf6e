//! Result of a search.

use crate::{ConvertError, ParameterCounts, calibrate::Effect, plan::ConversionPlan};
use retie_config::{Init, RecursionConfig};
use serde::{Deserialize, Serialize};

/// A search and its ranking.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchReport {
    /// The most that all weights might be, as it was asked for.
    pub budget: String,
    /// The limit in parameters.
    pub allowed_parameters: usize,
    /// Tokens that all candidates were scored on.
    pub heldout_tokens: usize,
    /// NLL of the source on them.
    pub source_nll: f64,
    /// Why the first one was taken.
    pub why: String,
    /// Every candidate, from the least KL up.
    pub candidates: Vec<CandidateReport>,
    /// Patterns that were not tried, and why.
    pub passed_over: Vec<String>,
}

/// A candidate's score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateReport {
    /// Its pattern with its unshared layers.
    pub sharing: String,
    /// Passes over the shared block.
    pub recursions: usize,
    /// Where the shared layers come from.
    pub init: Init,
    /// Ranks of its LoRA: `none`, one rank, or `spread`.
    pub lora: String,
    /// Stored parameters.
    pub parameters: usize,
    /// Tokens that it was fitted to, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fitted_tokens: Option<usize>,
    /// NLL on the held-out tokens.
    pub nll: f64,
    /// KL to the source on them.
    pub kl: f64,
}

impl CandidateReport {
    pub(super) fn new(
        plan: &ConversionPlan,
        lora: String,
        effect: Effect,
        fitted_tokens: Option<usize>,
    ) -> Result<Self, ConvertError> {
        let sharing = plan.config.recursion.as_ref().map(pattern_name).unwrap_or_default();
        Ok(Self {
            sharing,
            recursions: plan.map().num_recursions(),
            init: plan.config.recursion.as_ref().map_or(Init::Average, |recursion| recursion.init),
            lora,
            parameters: ParameterCounts::from_config(&plan.config).total(),
            fitted_tokens,
            nll: effect.nll,
            kl: effect.kl,
        })
    }

    /// In a few words: `middle_cycle ×2, average, LoRA rank 64`.
    #[must_use]
    pub fn name(&self) -> String {
        let lora = if self.lora == "none" { "no LoRA".to_owned() } else { format!("LoRA {}", self.lora) };
        format!("{} ×{}, {}, {lora}", self.sharing, self.recursions, self.init)
    }
}

/// The pattern's name, with its unshared layers where the name does not say them.
pub(crate) fn pattern_name(recursion: &RecursionConfig) -> String {
    let ends = [("prelude", recursion.prelude), ("coda", recursion.coda)];
    let ends = ends.into_iter().filter_map(|(name, layers)| Some(format!(", {name} {}", layers?)));
    std::iter::once(recursion.sharing.name().to_owned()).chain(ends).collect()
}

/// Why the first of a ranking is the best.
pub(super) fn why(ranking: &[&CandidateReport]) -> String {
    let (first, others) = (ranking[0], &ranking[1..]);
    let mut text =
        format!("{}: KL {:.3} to the source, the least of {} candidates", first.name(), first.kl, ranking.len());
    if let Some(second) = others.first() {
        text += &format!("; next is {} with {:.3}", second.name(), second.kl);
    }
    let other = others.iter().find(|other| (&other.sharing, other.recursions) != (&first.sharing, first.recursions));
    if let Some(other) = other.filter(|other| others.first() != Some(other)) {
        text += &format!("; the best other pattern is {} with {:.3}", other.name(), other.kl);
    }
    text
}
