//! Comparison of a model with its export: logits over some positions, and greedy tokens.

use crate::{
    logits::{largest_difference, logits, spread_ids},
    model,
};
use anyhow::Context;
use retie_checkpoint::ModelSource;
use retie_config::ModelConfig;
use retie_engine::{Engine, EngineOptions, Request, StopConditions};
use retie_model::{CausalLm, WeightDtype, kernels::on_worker};
use serde::Serialize;
use std::{
    fmt::{self, Display, Formatter},
    path::Path,
};

/// Positions whose logits are compared, and tokens that are generated after them, if the context
/// has room for them.
const POSITIONS: usize = 64;
const NEW_TOKENS: usize = 16;

/// Result of a comparison.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Program that read the export.
    pub reader: String,
    /// Positions whose logits were compared.
    pub positions: usize,
    /// `max |Δlogit|`.
    pub max_difference: f32,
    /// Largest difference that passes.
    pub tolerance: f32,
    /// Greedy tokens that were generated.
    pub greedy_tokens: usize,
    /// How many of them are equal before the first that is not.
    pub equal_tokens: usize,
    /// By how much the model prefers its own token to that of the export at the first that is not
    /// equal; absent if all are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f32>,
    /// Whether logits and tokens differ by no more than rounding explains.
    pub passed: bool,
}

impl Comparison {
    /// Compares `source` with the model at `path`. `tolerance` is relative to the largest logit.
    ///
    /// # Errors
    /// The export cannot be read, or is not a model with the tokens of the source.
    pub fn of(source: &ModelSource, path: &Path, tolerance: f64) -> anyhow::Result<Self> {
        let sample = Sample::new(&source.config);
        let exported = {
            let spec = path.to_str().with_context(|| format!("`{}` is not UTF-8", path.display()))?;
            let written = model::open(spec).context("the export cannot be read")?;
            let model = load(&written)?;
            sample.read(&model)?
        };
        let model = load(source)?;
        let own = sample.read(&model)?;
        let largest = own.logits.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let tolerance = tolerance as f32 * largest;
        let same = own.tokens.iter().zip(&exported.tokens).take_while(|(a, b)| a == b).count();
        let margin = match (own.tokens.get(same), exported.tokens.get(same)) {
            (Some(a), Some(b)) => Some(sample.margin(&model, &own.tokens[..same], [*a, *b])),
            _ => None,
        };
        let max_difference = match own.logits.len() == exported.logits.len() {
            true => largest_difference(&own.logits, &exported.logits),
            false => f32::INFINITY,
        };
        // Two logits that differ by `margin` can change places if each may be off by the tolerance.
        let tie = margin.is_none_or(|margin| margin <= 2.0 * tolerance);
        Ok(Self {
            reader: format!("retie {}", env!("CARGO_PKG_VERSION")),
            positions: sample.ids.len(),
            max_difference,
            tolerance,
            greedy_tokens: own.tokens.len(),
            equal_tokens: same,
            margin,
            passed: max_difference <= tolerance && tie && own.tokens.len() == exported.tokens.len(),
        })
    }
}

impl Display for Comparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { reader, positions, max_difference, tolerance, greedy_tokens, equal_tokens, margin, passed } = self;
        let verdict = if *passed { "ok" } else { "differs" };
        writeln!(
            f,
            "{:<14} {reader}: max |Δlogit| {max_difference:.1e} over {positions} positions, at most {tolerance:.1e}",
            "reloaded by"
        )?;
        write!(f, "{:<14} {equal_tokens} of {greedy_tokens} equal", "greedy tokens")?;
        if let Some(margin) = margin {
            write!(f, "; the next differs where the two logits are {margin:.1e} apart")?;
        }
        writeln!(f, "\n{:<14} {verdict}", "result")
    }
}

fn load(source: &ModelSource) -> anyhow::Result<CausalLm> {
    let device = retie_model::device("cpu")?;
    Ok(CausalLm::load_with(&source.config, source.tensors.as_ref(), &device, WeightDtype::F32)?)
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
            tokens.extend(engine.step().into_iter().filter_map(|progress| progress.token));
        }
        Ok(tokens)
    }

    /// Difference of the logits of two tokens after the ids and `tokens`.
    fn margin(&self, model: &CausalLm, tokens: &[u32], [a, b]: [u32; 2]) -> f32 {
        let ids = [self.ids.as_slice(), tokens].concat();
        let all = on_worker(|| logits(model, &ids));
        let last = &all[all.len() - model.config().vocab_size..];
        last[a as usize] - last[b as usize]
    }
}
