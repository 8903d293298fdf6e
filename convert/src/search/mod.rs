//! Initialisation by search: candidates of sharing pattern, init and ranks within a budget of all
//! weights, scored on held-out text by their KL to the source.
//!
//! 1. Every pattern and number of recursions that fits the layers and the budget, without
//!    calibration: without LoRA `stepwise`, with what the budget leaves `average`, once with one
//!    rank for all and once spread by residual energy. That is the papers' advice (RRT §2.2:
//!    `stepwise` without LoRA, `average` with it); the spread is ours.
//! 2. The [`FINALISTS`] best patterns of these, calibrated on a part ([`PART`]) of the tokens, with
//!    one rank for all and spread.
//! 3. The least KL of all wins. If it is a calibrated one, the conversion fits it to all tokens.
//!
//! Candidates are scored in memory, or from a scratch folder; nothing else is written. Ties are
//! broken by the order above, so the same input chooses the same.

mod report;

pub(crate) use report::pattern_name;
pub use report::{CandidateReport, SearchReport};

use crate::{
    Calibration, ConvertError, ParameterCounts, Phase, Progress, SourceModel,
    calibrate::{Effect, Scratch, SourceStates, calibrate},
    pipeline::plan,
    plan::{ConversionPlan, stored_dtype},
};
use retie_config::{
    Conversion, DepthAssignment, Init, LayerIndex, LoraConfig, LoraRanks, LoraSpec, Pattern, Projection, SearchSpace,
    ShareError, StoredDtype, TensorOwner, TensorRole,
};
use std::path::Path;

/// Patterns that are calibrated.
const FINALISTS: usize = 2;

/// One token in so many is fitted to while candidates are compared, ...
const PART: usize = 4;

/// ... but no fewer than this, if there are as many.
const LEAST_TOKENS: usize = 2048;

/// The LoRA ranks of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ranks {
    None,
    Uniform(usize),
    Spread,
}

/// The candidates of a pattern, or why it has none.
type Candidates = Result<Vec<(Conversion, Ranks)>, String>;

/// A candidate that was scored.
struct Scored {
    conversion: Conversion,
    report: CandidateReport,
}

/// Tries every conversion of `space`, with the LoRA (not DoRA) that the budget leaves room for;
/// gives the best one, and the ranking. `scratch` is a folder for what calibrated candidates need
/// on the disk; what is written there is removed.
///
/// # Errors
/// When nothing fits the layers and the budget, or as a conversion.
pub fn search(
    source: SourceModel<'_>,
    space: &SearchSpace,
    calibration: &Calibration<'_>,
    scratch: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(Conversion, SearchReport), ConvertError> {
    let parameters = ParameterCounts::from_config(source.config).total();
    let allowed = space.budget.parameters(parameters, element_bytes(source, space.target.dtype));
    let trial = Trial { source, space, calibration, allowed };
    let (mut wanted, mut passed_over) = (Vec::new(), Vec::new());
    for pattern in &space.patterns {
        for recursions in &space.recursions {
            match trial.candidates(pattern, *recursions)? {
                Ok(candidates) => wanted.extend(candidates),
                Err(reason) => passed_over.push(reason),
            }
        }
    }
    if wanted.is_empty() {
        return Err(ConvertError::NothingToSearch { budget: space.budget.to_string(), allowed, reasons: passed_over });
    }
    let first = trial.plan(&wanted[0].0)?;
    let states = SourceStates::from_source(source.tensors, &first, calibration)?;
    let total = wanted.len() + 2 * FINALISTS;
    let mut scored: Vec<Scored> = Vec::new();
    for (conversion, ranks) in wanted {
        let (plan, effect) = trial.plain(&conversion, &states)?;
        let candidate = CandidateReport::new(&plan, ranks.name(), effect, None)?;
        progress(Progress { phase: Phase::Search, done: scored.len() + 1, total, tensor: &candidate.name() });
        scored.push(Scored { conversion, report: candidate });
    }
    // A finalist is a pattern, at its best.
    let mut order: Vec<usize> = (0..scored.len()).collect();
    order.sort_by(|x, y| scored[*x].report.kl.total_cmp(&scored[*y].report.kl).then(x.cmp(y)));
    let mut finalists: Vec<(Pattern, usize)> = Vec::new();
    for i in order {
        let Conversion { pattern, num_recursions, .. } = &scored[i].conversion;
        let key = (pattern.clone(), *num_recursions);
        if !finalists.contains(&key) {
            finalists.push(key);
        }
    }
    let short = trial.shortened();
    for (pattern, recursions) in finalists.into_iter().take(FINALISTS) {
        let candidates = trial.candidates(&pattern, recursions)?.unwrap_or_default();
        // Without LoRA only where the budget leaves nothing for it.
        let without = candidates.len() == 1;
        for (mut conversion, ranks) in candidates.into_iter().filter(|(_, ranks)| without || *ranks != Ranks::None) {
            conversion.init = Init::Calibrated;
            let (plan, effect) = trial.calibrated(&conversion, &short, &states, scratch)?;
            let candidate = CandidateReport::new(&plan, ranks.name(), effect, Some(short.train.len()))?;
            progress(Progress { phase: Phase::Search, done: scored.len() + 1, total, tensor: &candidate.name() });
            scored.push(Scored { conversion, report: candidate });
        }
    }
    scored.sort_by(|x, y| x.report.kl.total_cmp(&y.report.kl));
    let chosen = scored[0].conversion.clone();
    let report = SearchReport {
        budget: space.budget.to_string(),
        allowed_parameters: allowed,
        heldout_tokens: calibration.heldout.len(),
        source_nll: states.nll(source.tensors, calibration)?,
        why: report::why(&scored.iter().map(|scored| &scored.report).collect::<Vec<_>>()),
        candidates: scored.into_iter().map(|scored| scored.report).collect(),
        passed_over,
    };
    Ok((chosen, report))
}

/// Bytes of an element of the linears, as they will be written.
pub(crate) fn element_bytes(source: SourceModel<'_>, dtype: StoredDtype) -> usize {
    let first = TensorOwner::Layer(LayerIndex(0)).weight(TensorRole::Projection(Projection::Q));
    let kept = || source.tensors.info(&first).map(|info| info.dtype);
    stored_dtype(dtype).or_else(kept).map_or(4, retie_checkpoint::Dtype::size)
}

impl Ranks {
    fn name(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Uniform(rank) => format!("rank {rank}"),
            Self::Spread => "spread".to_owned(),
        }
    }
}

/// Inputs that all candidates have in common.
struct Trial<'a> {
    source: SourceModel<'a>,
    space: &'a SearchSpace,
    calibration: &'a Calibration<'a>,
    /// Parameters that the budget allows.
    allowed: usize,
}

impl<'a> Trial<'a> {
    /// Candidates of a pattern, not yet calibrated; or why there is none.
    fn candidates(&self, pattern: &Pattern, num_recursions: usize) -> Result<Candidates, ConvertError> {
        let bare = self.space.candidate(pattern, num_recursions, Init::Stepwise);
        let plan = match self.plan(&bare) {
            Ok(plan) => plan,
            Err(
                error @ (ConvertError::Share(ShareError::Indivisible { .. } | ShareError::TooFewLayers { .. })
                | ConvertError::MixedKinds { .. }),
            ) => {
                let text = error.to_string();
                return Ok(Err(text.lines().next().unwrap_or_default().to_owned()));
            }
            Err(other) => return Err(other),
        };
        let stored = ParameterCounts::from_config(&plan.config).total();
        let Some(left) = self.allowed.checked_sub(stored) else {
            return Ok(Err(format!(
                "{pattern} with {num_recursions} recursions has {stored} parameters without LoRA, above the {} of the budget",
                self.allowed
            )));
        };
        let mut candidates = vec![(bare, Ranks::None)];
        if let Some(rank) = self.largest_rank(&plan, left) {
            let uniform = LoraRanks::Named { rank: Some(rank), by_linear: Default::default() };
            for (lora, ranks) in [(uniform, Ranks::Uniform(rank)), (LoraRanks::Budget(left), Ranks::Spread)] {
                let mut conversion = self.space.candidate(pattern, num_recursions, Init::Average);
                conversion.lora = Some(LoraSpec::lora(lora));
                candidates.push((conversion, ranks));
            }
        }
        Ok(Ok(candidates))
    }

    /// The largest rank for all that `left` parameters buy.
    fn largest_rank(&self, plan: &ConversionPlan, left: usize) -> Option<usize> {
        let (map, shapes) = (plan.map(), self.source.config.projection_shapes());
        let largest = shapes.iter().map(|(_, [out, inp])| *out.min(inp)).max().unwrap_or(0);
        let cost = |rank: usize| -> usize {
            let lora = LoraConfig::uniform(rank);
            let at_depth = |step: &DepthAssignment| -> usize {
                let cost = |(projection, shape): &(Projection, [usize; 2])| {
                    lora.rank_at(step.depth, *projection, *shape) * shape.iter().sum::<usize>()
                };
                shapes.iter().map(cost).sum()
            };
            map.depths().iter().filter(|step| map.is_shared(step.layer)).map(at_depth).sum()
        };
        let (mut low, mut high) = (0, largest); // the cost grows with the rank
        while low < high {
            let middle = (low + high).div_ceil(2);
            if cost(middle) <= left { low = middle } else { high = middle - 1 }
        }
        (low > 0).then_some(low)
    }

    fn plan(&self, conversion: &Conversion) -> Result<ConversionPlan, ConvertError> {
        plan(self.source, conversion, None, &mut |_| {})
    }

    /// Scores a start that copies or averages layers.
    fn plain(&self, conversion: &Conversion, states: &SourceStates) -> Result<(ConversionPlan, Effect), ConvertError> {
        let plan = self.plan(conversion)?;
        let effect = states.plain(self.source.tensors, &plan, self.calibration, conversion.target.seed)?;
        Ok((plan, effect))
    }

    /// Fits a start to `calibration` and scores it.
    fn calibrated(
        &self,
        conversion: &Conversion,
        calibration: &Calibration<'_>,
        states: &SourceStates,
        scratch: &Path,
    ) -> Result<(ConversionPlan, Effect), ConvertError> {
        let plan = plan(self.source, conversion, Some(calibration), &mut |_| {})?;
        let (scratch, seed) = (Scratch::create(scratch)?, conversion.target.seed);
        let fitted = calibrate(self.source.tensors, &plan, calibration, seed, &scratch, &mut |_| {})?;
        let effect = fitted.score(states)?;
        Ok((plan, effect))
    }

    /// The calibration with a part of its tokens, spread over it.
    fn shortened(&self) -> Calibration<'a> {
        let (length, train) = (self.calibration.sequence_length, &self.calibration.train);
        let rows = train.chunks(length).step_by((train.len() / LEAST_TOKENS).clamp(1, PART));
        Calibration { train: rows.flatten().copied().collect(), ..self.calibration.clone() }
    }
}
