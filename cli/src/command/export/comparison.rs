//! Comparison of a model with its export: weights, logits over some positions, and greedy tokens.
//!
//! Two differences are told apart. Merging LoRA into the weights of an unrolled export may not
//! change a logit beyond the rounding of sums in f32; that is measured before the weights are
//! rounded. Rounding to the type of the export may: every weight has to be the exact one rounded,
//! and how much the logits of the file differ is shown.
//!
//! # Memory
//! One model at a time, in f32, and the pages of the two files that are cached.

use crate::{
    logits::{largest_difference, logits, spread_ids},
    model,
};
use anyhow::Context;
use retie_checkpoint::{Dtype, ModelSource, TensorSource};
use retie_config::ModelConfig;
use retie_engine::{Engine, EngineOptions, Request, StopConditions};
use retie_export::{ExportModel, Unrolled, WeightCheck, Written, check_weights};
use retie_model::{CausalLm, WeightDtype, kernels::on_worker};
use serde::Serialize;
use std::fmt::{self, Display, Formatter};

/// Positions whose logits are compared, and tokens that are generated after them, if the context
/// has room for them.
const POSITIONS: usize = 64;
const NEW_TOKENS: usize = 16;

/// Largest difference of a logit, relative to the largest logit, that the order of sums in f32
/// explains: 2e-5 at the 30 depths of SmolLM2, and more in deeper and wider models.
const F32_SUMS: f32 = 5e-4;

/// Result of a comparison.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Program that read the export.
    reader: String,
    /// Weights of the export beside those that it has to have.
    weights: WeightCheck,
    /// Model with merged weights in f32, beside the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    merged: Option<Difference>,
    /// Export, read again, beside the model.
    reloaded: Difference,
    /// Whether nothing differs beyond what rounding explains.
    pub passed: bool,
}

impl Comparison {
    /// Compares `source` with what was written of it.
    ///
    /// # Errors
    /// The export cannot be read, or is not a model with the tokens of the source.
    pub fn of(source: &ModelSource, exported: ExportModel<'_>, written: &Written) -> anyhow::Result<Self> {
        let sample = Sample::new(&source.config);
        let path = written.model_path();
        let spec = path.to_str().with_context(|| format!("`{}` is not UTF-8", path.display()))?;
        let file = model::open(spec).context("the export cannot be read")?;
        let adapted = written.adapted(file.tensors.as_ref())?;
        let tensors: &dyn TensorSource = match &adapted {
            Some(adapted) => adapted,
            None => file.tensors.as_ref(),
        };
        let reloaded = sample.read(&load(&file.config, tensors)?)?;
        let (format, dtype) = (written.format(), written.report().dtype);
        let exact = format.exact(exported)?;
        let weights = match &adapted {
            Some(adapted) => check_weights(exact.as_ref(), &adapted.files(), dtype)?,
            None => check_weights(exact.as_ref(), tensors, dtype)?,
        };
        let mut merged = None;
        if format.is_unrolled {
            let unrolled = Unrolled::new(exported, Some(Dtype::F32), format.name)?;
            merged = Some(sample.read(&load(unrolled.config(), &unrolled)?)?);
        }
        let model = load(&source.config, source.tensors.as_ref())?;
        let own = sample.read(&model)?;
        let difference = |other: &Reading| sample.difference(&model, &own, other);
        let (merged, reloaded) = (merged.as_ref().map(difference), difference(&reloaded));
        let same_layers = format.is_unrolled || file.config.share_map() == source.config.share_map();
        let passed = merged.as_ref().is_none_or(Difference::is_rounding)
            && (!dtype.is_exact() || format.is_unrolled || reloaded.is_rounding())
            && reloaded.max_difference.is_finite()
            && weights.outside.is_empty()
            && same_layers;
        Ok(Self { reader: format!("retie {}", env!("CARGO_PKG_VERSION")), weights, merged, reloaded, passed })
    }
}

impl Display for Comparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { reader, weights, merged, reloaded, passed } = self;
        if let Some(merged) = merged {
            writeln!(f, "{:<14} {merged}", "merged in f32")?;
        }
        let WeightCheck { tensors, outside } = weights;
        let expected = if merged.is_some() { "the merged ones" } else { "those of the model" };
        write!(f, "{:<14} {} of {tensors} tensors are {expected}, rounded", "weights", tensors - outside.len())?;
        writeln!(f, "{}", outside.first().map(|name| format!("; `{name}` is not")).unwrap_or_default())?;
        writeln!(f, "{:<14} {reloaded}, by {reader}", "reloaded")?;
        writeln!(f, "{:<14} {}", "result", if *passed { "ok" } else { "differs" })
    }
}

/// Difference of two models on a sample.
#[derive(Debug, Serialize)]
struct Difference {
    /// Positions whose logits were compared.
    positions: usize,
    /// `max |Δlogit|`.
    max_difference: f32,
    /// Largest logit of the model.
    largest_logit: f32,
    /// Greedy tokens that were generated.
    greedy_tokens: usize,
    /// How many of them are equal before the first that is not.
    equal_tokens: usize,
    /// By how much the model prefers its own token to the other's at the first that is not equal;
    /// absent if all are.
    #[serde(skip_serializing_if = "Option::is_none")]
    margin: Option<f32>,
}

impl Difference {
    /// True if the order of sums in f32 explains it. Two tokens can change places if the logits of
    /// both may be off by that much.
    fn is_rounding(&self) -> bool {
        let tolerance = F32_SUMS * self.largest_logit;
        self.max_difference <= tolerance && self.margin.is_none_or(|margin| margin <= 2.0 * tolerance)
    }
}

impl Display for Difference {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { positions, max_difference, largest_logit, greedy_tokens, equal_tokens, margin } = self;
        write!(f, "max |Δlogit| {max_difference:.1e} of {largest_logit:.1} over {positions} positions, ")?;
        write!(f, "{equal_tokens} of {greedy_tokens} greedy tokens equal")?;
        margin.map_or(Ok(()), |margin| write!(f, " (the next is a choice between logits {margin:.1e} apart)"))
    }
}

fn load(config: &ModelConfig, tensors: &dyn TensorSource) -> anyhow::Result<CausalLm> {
    Ok(CausalLm::load_with(config, tensors, &retie_model::device("cpu")?, WeightDtype::F32)?)
}

/// Token ids that both models read, and the number of tokens that they continue them with.
struct Sample {
    ids: Vec<u32>,
    new_tokens: usize,
}

/// What a model makes of a sample.
struct Reading {
    /// Logits `[positions, V]`.
    logits: Vec<f32>,
    /// Greedy tokens.
    tokens: Vec<u32>,
}

impl Sample {
    fn new(config: &ModelConfig) -> Self {
        let context = config.max_position_embeddings;
        let positions = context.saturating_sub(NEW_TOKENS).clamp(1, POSITIONS);
        let new_tokens = NEW_TOKENS.min(context.saturating_sub(positions));
        Self { ids: spread_ids(positions, config.vocab_size), new_tokens }
    }

    fn read(&self, model: &CausalLm) -> anyhow::Result<Reading> {
        on_worker(|| Ok(Reading { logits: logits(model, &self.ids), tokens: self.generate(model)? }))
    }

    /// Greedy tokens after the ids, by the engine and its cache; an EOS token does not end them.
    fn generate(&self, model: &CausalLm) -> anyhow::Result<Vec<u32>> {
        let Self { ids, new_tokens } = self;
        if *new_tokens == 0 {
            return Ok(Vec::new());
        }
        let options = EngineOptions { num_slots: 1, context: ids.len() + new_tokens, max_step_tokens: ids.len() };
        let mut engine = Engine::new(model.clone(), options)?;
        let stop = StopConditions { max_new_tokens: Some(*new_tokens), ..StopConditions::default() };
        engine.admit(Request { prompt: ids.clone(), stop, ..Request::default() })?;
        let mut tokens = Vec::new();
        while !engine.is_idle() {
            for progress in engine.step() {
                progress.failed.map_or(Ok(()), Err)?;
                tokens.extend(progress.token);
            }
        }
        Ok(tokens)
    }

    /// Difference of `other` from `own`, the reading of `model`.
    fn difference(&self, model: &CausalLm, own: &Reading, other: &Reading) -> Difference {
        let equal_tokens = own.tokens.iter().zip(&other.tokens).take_while(|(a, b)| a == b).count();
        let margin = match (own.tokens.get(equal_tokens), other.tokens.get(equal_tokens)) {
            (Some(a), Some(b)) => Some(self.margin(model, &own.tokens[..equal_tokens], [*a, *b])),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => Some(f32::INFINITY),
        };
        let max_difference = match own.logits.len() == other.logits.len() {
            true => largest_difference(&own.logits, &other.logits),
            false => f32::INFINITY,
        };
        Difference {
            positions: self.ids.len(),
            max_difference,
            largest_logit: own.logits.iter().fold(0.0f32, |most, x| most.max(x.abs())),
            greedy_tokens: own.tokens.len(),
            equal_tokens,
            margin,
        }
    }

    /// Difference of the logits of two tokens after the ids and `tokens`.
    fn margin(&self, model: &CausalLm, tokens: &[u32], [a, b]: [u32; 2]) -> f32 {
        let ids = [self.ids.as_slice(), tokens].concat();
        let all = on_worker(|| logits(model, &ids));
        let last = &all[all.len() - model.config().vocab_size..];
        last[a as usize] - last[b as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::{Init, RecursionConfig, Sharing};
    use serde_json::{Value, json};
    use std::path::Path;

    /// A Llama of four depths with a context of `context` positions.
    fn config(context: usize) -> ModelConfig {
        let Value::Object(map) = json!({
            "model_type": "llama", "vocab_size": 40, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 4,
            "num_attention_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "max_position_embeddings": context,
        }) else {
            unreachable!()
        };
        let recursion = Some(RecursionConfig::new(2, Sharing::Cycle, Init::Average));
        ModelConfig { recursion, ..ModelConfig::from_json(map, Path::new("tiny")).unwrap() }
    }

    #[test]
    fn a_sample_fits_the_context() {
        for (context, positions, new_tokens) in [(256, 64, 16), (40, 24, 16), (16, 1, 15), (1, 1, 0)] {
            let sample = Sample::new(&config(context));
            assert_eq!((sample.ids.len(), sample.new_tokens), (positions, new_tokens), "{context}");
        }
    }

    #[test]
    fn rounding_is_told_from_another_model() {
        let difference = |max_difference, margin| Difference {
            positions: 64,
            max_difference,
            largest_logit: 10.0,
            greedy_tokens: 16,
            equal_tokens: 15,
            margin,
        };
        assert!(difference(0.004, None).is_rounding() && difference(0.004, Some(0.009)).is_rounding());
        assert!(!difference(0.006, None).is_rounding() && !difference(f32::INFINITY, None).is_rounding());
        assert!(!difference(0.004, Some(0.011)).is_rounding() && !difference(0.004, Some(f32::INFINITY)).is_rounding());
    }
}
