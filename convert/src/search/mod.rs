//! A start by trial: candidates of pattern, init and ranks within a budget of all weights, scored on held-out text by their KL to the
//! source.
//!
//! 1. Every pattern and number of recursions that fits the layers and the budget, without calibration: without LoRA `stepwise`, with what
//!    the budget leaves `average`, once with one rank for all and once spread by residual energy. That is the papers' advice
//!    (RRT §2.2: `stepwise` without LoRA, `average` with it); the spread is ours.
//! 2. The [`FINALISTS`] best patterns of these, calibrated on a part ([`PART`]) of the tokens, with one rank for all and spread.
//! 3. The least KL of all wins. If it is a calibrated one, the conversion fits it to all tokens.
//!
//! Candidates are scored in memory, or from a scratch folder; nothing else is written. Whatever is equal is decided by the order above,
//! so the same input chooses the same.

mod report;

pub use report::{CandidateReport, SearchReport};

use crate::{
    Calibration, ConvertError, ConvertOptions, ParameterCounts, Progress, Stage,
    calibrate::{Effect, Scratch, SourceStates, calibrate},
    pipeline::plan,
    plan::Plan,
};
use retie_checkpoint::{TensorSource, layer_tensor};
use retie_config::{
    Budget, ConvertConfig, Fit, Init, LayerIndex, LoraConfig, ModelConfig, Pattern, Relax, ShareError, Sharing,
};
use std::path::Path;

/// Patterns that are calibrated.
const FINALISTS: usize = 2;

/// One token in so many is fitted to while candidates are compared, ...
const PART: usize = 4;

/// ... but no fewer than this, if there are as many.
const LEAST_TOKENS: usize = 2048;

/// Recursions that are tried where none are asked for.
const RECURSIONS: [usize; 2] = [2, 3];

/// What may be chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchSpace {
    /// Patterns to try.
    pub patterns: Vec<Pattern>,
    /// Numbers of recursions to try.
    pub recursions: Vec<usize>,
    /// What becomes of layers that they do not divide; without it they are passed over.
    pub fit: Option<Fit>,
    /// The most that all weights may be.
    pub budget: Budget,
}

impl SearchSpace {
    /// What `config` leaves open.
    ///
    /// # Errors
    /// When the keys that say which depths share a layer do not go together.
    pub fn of(config: &ConvertConfig, budget: Budget) -> Result<Self, ConvertError> {
        let patterns = match config.chooses_pattern() {
            true => {
                Sharing::ALL.iter().map(|sharing| Pattern::new(*sharing, None, None, None)).collect::<Result<_, _>>()?
            }
            false => vec![config.pattern()?],
        };
        let recursions = match config.num_recursions() {
            0 => RECURSIONS.to_vec(),
            said => vec![said],
        };
        Ok(Self { patterns, recursions, fit: config.fit, budget })
    }
}

/// The ranks of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ranks {
    None,
    Uniform(usize),
    Spread(usize),
}

/// What a pattern offers to be tried, or why it offers nothing.
type Offer = Result<Vec<(ConvertOptions, Ranks)>, String>;

/// A candidate that was scored.
struct Scored {
    options: ConvertOptions,
    report: CandidateReport,
}

/// Tries everything in `space`, with the element type, norms and seed of `base`, and what the budget leaves for LoRA (not DoRA); gives what to convert with, and the ranking. `scratch` is a folder
/// for what calibrated candidates need on the disk; what is written there is removed.
///
/// # Errors
/// When nothing fits the layers and the budget, or as a conversion.
pub fn search(
    source: &dyn TensorSource,
    config: &ModelConfig,
    base: &ConvertOptions,
    space: &SearchSpace,
    calibration: &Calibration<'_>,
    scratch: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(ConvertOptions, SearchReport), ConvertError> {
    let element_bytes = element_bytes(source, config, base);
    let allowed = space.budget.parameters(ParameterCounts::of(config)?.total(), element_bytes);
    let trial = Trial { source, config, base, calibration, allowed };
    let (mut wanted, mut passed_over) = (Vec::new(), Vec::new());
    for pattern in &space.patterns {
        for recursions in &space.recursions {
            match trial.candidates(pattern, *recursions, space.fit)? {
                Ok(candidates) => wanted.extend(candidates),
                Err(reason) => passed_over.push(reason),
            }
        }
    }
    if wanted.is_empty() {
        return Err(ConvertError::NothingToSearch { budget: space.budget.to_string(), allowed, reasons: passed_over });
    }
    let first = trial.plan(&wanted[0].0)?;
    let states = SourceStates::of(source, &first, calibration)?;
    let total = wanted.len() + 2 * FINALISTS;
    let mut scored: Vec<Scored> = Vec::new();
    for (options, ranks) in wanted {
        let (plan, effect) = trial.plain(&options, &states)?;
        let candidate = CandidateReport::new(&plan, ranks.name(), effect, None)?;
        progress(Progress { stage: Stage::Search, done: scored.len() + 1, total, tensor: &candidate.name() });
        scored.push(Scored { options, report: candidate });
    }
    // A finalist is a pattern, at its best.
    let mut order: Vec<usize> = (0..scored.len()).collect();
    order.sort_by(|x, y| scored[*x].report.kl.total_cmp(&scored[*y].report.kl).then(x.cmp(y)));
    let mut finalists: Vec<(Pattern, usize)> = Vec::new();
    for i in order {
        let key = (scored[i].options.pattern.clone(), scored[i].options.recursions);
        if !finalists.contains(&key) {
            finalists.push(key);
        }
    }
    let short = trial.shortened();
    for (pattern, recursions) in finalists.into_iter().take(FINALISTS) {
        let offer = trial.candidates(&pattern, recursions, space.fit)?.unwrap_or_default();
        // Without LoRA only where the budget leaves nothing for it.
        let without = offer.len() == 1;
        for (mut options, ranks) in offer.into_iter().filter(|(_, ranks)| without || *ranks != Ranks::None) {
            options.init = Init::Calibrated;
            let (plan, effect) = trial.calibrated(&options, &short, &states, scratch)?;
            let candidate = CandidateReport::new(&plan, ranks.name(), effect, Some(short.fit.len()))?;
            progress(Progress { stage: Stage::Search, done: scored.len() + 1, total, tensor: &candidate.name() });
            scored.push(Scored { options, report: candidate });
        }
    }
    scored.sort_by(|x, y| x.report.kl.total_cmp(&y.report.kl));
    let chosen = scored[0].options.clone();
    let report = SearchReport {
        budget: space.budget.to_string(),
        allowed_parameters: allowed,
        heldout_tokens: calibration.heldout.len(),
        source_nll: states.nll(source, calibration)?,
        why: report::why(&scored.iter().map(|scored| &scored.report).collect::<Vec<_>>()),
        candidates: scored.into_iter().map(|scored| scored.report).collect(),
        passed_over,
    };
    Ok((chosen, report))
}

/// Bytes of an element of the linears, as they will be written.
fn element_bytes(source: &dyn TensorSource, config: &ModelConfig, base: &ConvertOptions) -> usize {
    let (first, _) = config.projection_shapes()[0];
    let stored = source.info(&layer_tensor(LayerIndex(0), &format!("{first}.weight"))).map(|info| info.dtype);
    base.dtype.or(stored).map_or(4, retie_checkpoint::Dtype::size)
}

impl Ranks {
    fn name(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Uniform(rank) => format!("rank {rank}"),
            Self::Spread(_) => "spread".to_owned(),
        }
    }
}

/// What all candidates have in common.
struct Trial<'a> {
    source: &'a dyn TensorSource,
    config: &'a ModelConfig,
    base: &'a ConvertOptions,
    calibration: &'a Calibration<'a>,
    allowed: usize,
}

impl<'a> Trial<'a> {
    /// Candidates of a pattern, not yet calibrated; or why there is none.
    fn candidates(&self, pattern: &Pattern, recursions: usize, fit: Option<Fit>) -> Result<Offer, ConvertError> {
        let bare = ConvertOptions {
            recursions,
            pattern: pattern.clone(),
            fit,
            init: Init::Stepwise,
            relax: Relax::Lora,
            lora_rank: None,
            lora_ranks: Default::default(),
            lora_budget: None,
            lora_from: 0,
            ..self.base.clone()
        };
        let plan = match self.plan(&bare) {
            Ok(plan) => plan,
            Err(ConvertError::Share(error @ (ShareError::Indivisible { .. } | ShareError::TooFewLayers { .. }))) => {
                let text = error.to_string();
                return Ok(Err(text.lines().next().unwrap_or_default().to_owned()));
            }
            Err(error @ ConvertError::MixedKinds { .. }) => {
                let text = error.to_string();
                return Ok(Err(text.lines().next().unwrap_or_default().to_owned()));
            }
            Err(other) => return Err(other),
        };
        let stored = ParameterCounts::of(&plan.config)?.total();
        let Some(left) = self.allowed.checked_sub(stored) else {
            return Ok(Err(format!(
                "{pattern} with {recursions} recursions has {stored} parameters without LoRA, above the {} of the budget",
                self.allowed
            )));
        };
        let with_lora = |ranks| {
            let mut options = ConvertOptions { init: Init::Average, ..bare.clone() };
            match ranks {
                Ranks::Uniform(rank) => options.lora_rank = Some(rank),
                Ranks::Spread(budget) => options.lora_budget = Some(budget),
                Ranks::None => {}
            }
            (options, ranks)
        };
        let mut candidates = vec![(bare.clone(), Ranks::None)];
        if let Some(rank) = self.largest_rank(&plan, left)? {
            candidates.push(with_lora(Ranks::Uniform(rank)));
            candidates.push(with_lora(Ranks::Spread(left)));
        }
        Ok(Ok(candidates))
    }

    /// The largest rank for all that `left` parameters buy.
    fn largest_rank(&self, plan: &Plan, left: usize) -> Result<Option<usize>, ConvertError> {
        let largest = self.config.projection_shapes().iter().map(|(_, [out, inp])| *out.min(inp)).max().unwrap_or(0);
        let cost = |rank: usize| -> Result<usize, ConvertError> {
            let lora = LoraConfig::uniform(rank);
            let map = plan.map();
            let looped = map.depths().iter().filter(|step| map.is_shared(step.layer));
            let shapes = self.config.projection_shapes();
            let of = |step: &retie_config::DepthPlan| -> usize {
                shapes
                    .iter()
                    .map(|(name, shape)| lora.rank_at(step.depth, name, *shape) * shape.iter().sum::<usize>())
                    .sum()
            };
            Ok(looped.map(of).sum())
        };
        let (mut low, mut high) = (0, largest); // the cost grows with the rank
        while low < high {
            let middle = (low + high).div_ceil(2);
            if cost(middle)? <= left { low = middle } else { high = middle - 1 }
        }
        Ok((low > 0).then_some(low))
    }

    fn plan(&self, options: &ConvertOptions) -> Result<Plan, ConvertError> {
        plan(self.source, self.config, options, None, &mut |_| {})
    }

    /// Scores a start that chooses layers or means them.
    fn plain(&self, options: &ConvertOptions, states: &SourceStates) -> Result<(Plan, Effect), ConvertError> {
        let plan = self.plan(options)?;
        let effect = states.plain(self.source, &plan, self.calibration, options.seed)?;
        Ok((plan, effect))
    }

    /// Fits a start to `calibration` and scores it.
    fn calibrated(
        &self,
        options: &ConvertOptions,
        calibration: &Calibration<'_>,
        states: &SourceStates,
        scratch: &Path,
    ) -> Result<(Plan, Effect), ConvertError> {
        let plan = plan(self.source, self.config, options, Some(calibration), &mut |_| {})?;
        let scratch = Scratch::create(scratch)?;
        let effect = calibrate(self.source, &plan, calibration, options.seed, &scratch, &mut |_| {})?.score(states)?;
        Ok((plan, effect))
    }

    /// The calibration with a part of its tokens, spread over it.
    fn shortened(&self) -> Calibration<'a> {
        let (length, fit) = (self.calibration.sequence_length, &self.calibration.fit);
        let rows = fit.chunks(length).step_by((fit.len() / LEAST_TOKENS).clamp(1, PART));
        Calibration { fit: rows.flatten().copied().collect(), ..self.calibration.clone() }
    }
}
