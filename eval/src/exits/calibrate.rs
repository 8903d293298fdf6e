//! Calibration of early exits: documents are divided into three parts. The first fits the probe and
//! gives the grid of thresholds, the second tests them, the third shows the realised risk.

use super::{
    curve::{self, Numbers},
    document::{ExitScorer, Passages, Reference, Served},
    probe,
};
use crate::{Progress, Promise, RiskTest, least_level};
use retie_config::{ExitProbe, ExitRuleKind, Exits, RiskKind, RiskProcedure, SkippedKv};
use retie_model::{CausalLm, ExitRule, kernels::f32_slice, mix};
use serde::Serialize;

/// Settings of a calibration.
#[derive(Clone, Debug)]
pub struct ExitSettings {
    /// Loss of a token.
    pub risk: RiskKind,
    /// Levels, ascending.
    pub levels: Vec<f64>,
    /// Confidence of the promise, for procedures that have one.
    pub confidence: f64,
    /// Procedure.
    pub procedure: RiskProcedure,
    /// Rule whose thresholds are kept.
    pub rule: ExitRuleKind,
    /// Policy for the keys and values of skipped recursions.
    pub kv: SkippedKv,
    /// Seed of the division of the documents.
    pub seed: u64,
}

/// Result of a calibration.
#[derive(Clone, Debug, Serialize)]
pub struct ExitReport {
    /// Loss of a token.
    pub risk: RiskKind,
    /// Policy under which `levels` hold.
    pub kv_policy: SkippedKv,
    /// Rule of `levels`.
    pub rule: ExitRuleKind,
    /// Documents of the three parts.
    pub documents: [usize; 3],
    /// Probes of the rule, if it has any.
    #[serde(skip)]
    pub probes: Vec<ExitProbe>,
    /// Every exit for all tokens: mean loss and agreement of the most probable token, on the second
    /// part.
    pub exits: Vec<ExitFigures>,
    /// Negative log-likelihood of the whole stack on the second part, nats per token.
    pub nll: f64,
    /// Every rule with the keys and values of the whole stack.
    pub rules: Vec<RuleReport>,
    /// The kept rule as it is served, by level.
    pub levels: Vec<LevelReport>,
}

/// One exit for all tokens.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ExitFigures {
    /// Recursion count.
    pub recursions: usize,
    /// Mean loss.
    pub risk: f64,
    /// Part of the tokens whose most probable next token is that of the whole stack.
    pub agreement: f64,
}

/// Thresholds of one rule, with the keys and values of the whole stack.
#[derive(Clone, Debug, Serialize)]
pub struct RuleReport {
    /// The rule.
    pub rule: ExitRuleKind,
    /// Mean recursion count at each level; that of the whole stack where no token leaves.
    pub mean_recursions: Vec<f64>,
    /// Mean loss at each level, on the documents of the test.
    pub risk: Vec<f64>,
}

/// A level and its threshold.
#[derive(Clone, Debug, Serialize)]
pub struct LevelReport {
    /// The level.
    pub level: f64,
    /// The most eager threshold that keeps it; `None` for no early exit.
    pub threshold: Option<f64>,
    /// Mean recursion count on the documents of the test.
    pub mean_recursions: f64,
    /// Mean loss on them.
    pub risk: f64,
    /// Without a threshold: the lowest level that the safest one would keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest_level: Option<f64>,
    /// On the third part, on another text, and, if there is a threshold, on text that the model
    /// writes itself.
    pub realised: Vec<Realised>,
    /// Each policy for skipped recursions that the model can have, with this threshold on the third
    /// part; none without a threshold.
    pub policies: Vec<PolicyReport>,
}

/// A policy for the keys and values of skipped recursions.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyReport {
    /// The policy.
    pub kv_policy: SkippedKv,
    /// What it makes of the documents.
    #[serde(flatten)]
    pub realised: Realised,
}

/// What a threshold does to documents that it was not tested on.
#[derive(Clone, Debug, Serialize)]
pub struct Realised {
    /// Name of the documents.
    pub text: String,
    /// Number of documents.
    pub documents: usize,
    /// Mean loss.
    pub risk: f64,
    /// Mean recursion count.
    pub mean_recursions: f64,
    /// Negative log-likelihood, nats per token.
    pub nll: f64,
    /// That of the whole stack.
    pub whole_nll: f64,
}

/// A text to go on with.
#[derive(Clone, Copy, Debug)]
pub struct Beginning<'a> {
    /// Token ids, at least one.
    pub prompt: &'a [u32],
    /// Most tokens that are written, at least one.
    pub new_tokens: usize,
}

/// What the model itself writes after each beginning, in token ids, with exits by a rule at a
/// threshold.
pub type WriteOwn<'a, E> = dyn FnMut(&ExitRule, f64, &[Beginning<'_>]) -> Result<Vec<Vec<u32>>, E> + 'a;

/// Texts of a calibration, in token ids; documents have two or more.
#[derive(Clone, Copy, Debug)]
pub struct ExitTexts<'a> {
    /// Documents of the kind that the promise is about.
    pub documents: &'a [Vec<u32>],
    /// Another kind, with its name.
    pub other: Option<(&'a str, &'a [Vec<u32>])>,
}

/// Documents that the model goes on with, at most.
const OWN_TEXTS: usize = 16;
/// Part of such a document that is given.
const GIVEN: usize = 4;
/// Documents between two reports of progress.
const AT_ONCE: usize = 16;

/// Calibrates the exits of `model`, which passes [`CausalLm::check_exits`] and
/// [`CausalLm::check_exit_rule`]. The realised risk of its own text is taken from what `write_own`
/// makes of held-out documents.
///
/// # Errors
/// Those of `write_own`.
pub fn calibrate_exits<E>(
    model: &CausalLm,
    exits: Exits,
    ExitTexts { documents, other }: ExitTexts<'_>,
    settings: &ExitSettings,
    write_own: &mut WriteOwn<'_, E>,
    progress: &mut dyn FnMut(Progress),
) -> Result<ExitReport, E> {
    let scorer = ExitScorer { model, exits, risk: settings.risk };
    let others = other.map_or(0, |(_, documents)| documents.len());
    let (num_fit, num_heldout) = (documents.len() / 4, documents.len() / 4);
    let num_tested = documents.len() - num_fit - num_heldout;
    let of_level = num_heldout * (1 + SkippedKv::ALL.len()) + others;
    let total = documents.len() + others + curve::MOST * num_tested + settings.levels.len() * of_level;
    let mut steps = Steps { done: 0, total, progress };
    let order: Vec<&[u32]> =
        shuffled(documents.len(), settings.seed).into_iter().map(|document| documents[document].as_slice()).collect();
    let mut passages: Vec<Passages> = Vec::new();
    for some in order.chunks(AT_ONCE) {
        passages.extend(scorer.passages(some));
        steps.advance(some.len());
    }
    let heldout = passages.split_off(documents.len() - num_heldout);
    let tested = passages.split_off(num_fit);
    let fit = passages;

    let probes = probes(&scorer, &fit);
    let for_model = ExitRuleKind::ALL.iter().filter(|kind| model.check_exit_rule(**kind).is_ok());
    let rules = for_model.map(|kind| {
        let rule = ExitRule::new(*kind, &probes, &model.device());
        let grid = curve::grid(&numbers(&scorer, &rule, &fit));
        rule_report(&scorer, settings, &rule, (&grid, &tested))
    });
    let rules: Vec<RuleReport> = rules.collect();
    let rule = ExitRule::new(settings.rule, &probes, &model.device());
    let grid = curve::grid(&numbers(&scorer, &rule, &fit));
    let mut levels = test_levels(&scorer, settings, &rule, (&grid, &tested), &mut steps);

    let heldout: Vec<&Reference> = heldout.iter().map(|passages| &passages.reference).collect();
    let other_documents: Vec<&[u32]> = other.iter().flat_map(|(_, documents)| *documents).map(Vec::as_slice).collect();
    let other_references = scorer.whole(&other_documents);
    steps.advance(others);
    let other_references: Vec<&Reference> = other_references.iter().collect();
    for level in &mut levels {
        let threshold = level.threshold.unwrap_or(f64::INFINITY);
        let mut under = |kv, text: &str, references: &[&Reference]| {
            let mut advance = |count| steps.advance(count);
            Realised::new(text, references, scorer.served(references, (&rule, kv), threshold, &mut advance))
        };
        level.realised.push(under(settings.kv, "held out", &heldout));
        if let Some((name, _)) = other {
            level.realised.push(under(settings.kv, name, &other_references));
        }
        // Without exits every token is that of the whole stack.
        if level.threshold.is_some() {
            let own = own_text(&scorer, &rule, threshold, &heldout, write_own)?;
            level.realised.push(under(settings.kv, "its own", &own.iter().collect::<Vec<_>>()));
            let possible = SkippedKv::ALL.iter().copied().filter(|kv| model.check_exits(*kv).is_ok());
            let realised = |kv| PolicyReport { kv_policy: kv, realised: under(kv, "held out", &heldout) };
            level.policies = possible.map(realised).collect();
        }
    }
    steps.advance(total); // also what no threshold was left for
    let exits = (1..scorer.exits.num_recursions()).map(|recursions| ExitFigures {
        recursions,
        risk: mean_of(&tested, |passages| {
            let losses = &passages.losses[recursions - 1];
            losses.iter().map(|x| f64::from(*x)).sum::<f64>() / losses.len() as f64
        }),
        agreement: mean_of(&tested, |passages| {
            let agrees = &passages.agrees[recursions - 1];
            agrees.iter().filter(|agrees| **agrees).count() as f64 / agrees.len() as f64
        }),
    });
    Ok(ExitReport {
        risk: settings.risk,
        kv_policy: settings.kv,
        rule: settings.rule,
        documents: [fit.len(), tested.len(), heldout.len()],
        exits: exits.collect(),
        nll: mean_of(&tested, |passages| passages.reference.nll()),
        probes: if settings.rule == ExitRuleKind::Probe { probes } else { Vec::new() },
        rules,
        levels,
    })
}

/// What the model itself makes of the beginnings of documents, measured from there on.
fn own_text<E>(
    scorer: &ExitScorer<'_>,
    rule: &ExitRule,
    threshold: f64,
    documents: &[&Reference],
    write_own: &mut WriteOwn<'_, E>,
) -> Result<Vec<Reference>, E> {
    let beginning = |reference: &&'_ Reference| {
        let given = reference.tokens().len().div_ceil(GIVEN);
        (reference.tokens()[..given].to_vec(), reference.tokens().len() - given)
    };
    let given: Vec<_> = documents.iter().take(OWN_TEXTS).map(beginning).filter(|(_, rest)| *rest > 0).collect();
    let beginnings: Vec<_> =
        given.iter().map(|(prompt, new_tokens)| Beginning { prompt, new_tokens: *new_tokens }).collect();
    let written = write_own(rule, threshold, &beginnings)?;
    let whole = given.into_iter().zip(written).filter(|(_, new)| !new.is_empty());
    // The row of the last given token is what the first new one was chosen from.
    let (starts, texts): (Vec<usize>, Vec<Vec<u32>>) =
        whole.map(|((tokens, _), new)| (tokens.len() - 1, [tokens, new].concat())).unzip();
    let references = scorer.whole(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    Ok(references.into_iter().zip(starts).map(|(reference, start)| reference.measured_from(start)).collect())
}

impl Realised {
    fn new(text: &str, references: &[&Reference], served: Vec<Served>) -> Self {
        let mean = |of: fn(&Served) -> f64| served.iter().map(of).sum::<f64>() / served.len().max(1) as f64;
        let whole = references.iter().map(|reference| reference.nll()).sum::<f64>();
        Self {
            text: text.to_owned(),
            documents: references.len(),
            risk: mean(|served| served.loss),
            mean_recursions: mean(|served| served.recursions),
            nll: mean(|served| served.nll),
            whole_nll: whole / references.len().max(1) as f64,
        }
    }
}

/// Progress over documents.
struct Steps<'a> {
    done: usize,
    total: usize,
    progress: &'a mut dyn FnMut(Progress),
}

impl Steps<'_> {
    fn advance(&mut self, count: usize) {
        self.done = (self.done + count).min(self.total);
        (self.progress)(Progress { done: self.done, total: self.total });
    }
}

/// Tests the thresholds of `grid` as they are served, until no level accepts one.
fn test_levels(
    scorer: &ExitScorer<'_>,
    settings: &ExitSettings,
    rule: &ExitRule,
    (grid, tested): (&[f64], &[Passages]),
    steps: &mut Steps<'_>,
) -> Vec<LevelReport> {
    let whole = mean_of(tested, Passages::mean_recursions);
    let mut tests: Vec<_> =
        settings.levels.iter().map(|level| Some(RiskTest::new(promise(settings, *level)))).collect();
    let never = |level: &f64| LevelReport {
        level: *level,
        threshold: None,
        mean_recursions: whole,
        risk: 0.0,
        nearest_level: None,
        realised: Vec::new(),
        policies: Vec::new(),
    };
    let mut levels: Vec<LevelReport> = settings.levels.iter().map(never).collect();
    let references: Vec<&Reference> = tested.iter().map(|passages| &passages.reference).collect();
    for (index, threshold) in grid.iter().enumerate() {
        if tests.iter().all(Option::is_none) {
            break;
        }
        let mut advance = |count| steps.advance(count);
        let served = scorer.served(&references, (rule, settings.kv), *threshold, &mut advance);
        let losses: Vec<f64> = served.iter().map(|served| served.loss).collect();
        let mean_recursions = served.iter().map(|served| served.recursions).sum::<f64>() / served.len().max(1) as f64;
        for (test, level) in tests.iter_mut().zip(&mut levels) {
            if test.take_if(|test| !test.accepts(&losses)).is_some() && index == 0 {
                level.nearest_level = Some(least_level(promise(settings, level.level), &losses));
            }
            if test.is_some() {
                level.threshold = Some(*threshold);
                level.mean_recursions = mean_recursions;
                level.risk = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
            }
        }
    }
    levels
}

fn promise(settings: &ExitSettings, level: f64) -> Promise {
    Promise { procedure: settings.procedure, level, confidence: settings.confidence }
}

/// A rule with the keys and values of the whole stack, at each level.
fn rule_report(
    scorer: &ExitScorer<'_>,
    settings: &ExitSettings,
    rule: &ExitRule,
    (grid, tested): (&[f64], &[Passages]),
) -> RuleReport {
    let numbers = numbers(scorer, rule, tested);
    let at = |threshold: f64| -> (Vec<f64>, Vec<f64>) {
        tested.iter().zip(&numbers).map(|(passages, numbers)| curve::at_threshold(passages, numbers, threshold)).unzip()
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let points: Vec<_> = grid.iter().map(|threshold| at(*threshold)).collect();
    let of_level = |level: &f64| {
        let mut test = RiskTest::new(promise(settings, *level));
        let accepted = points.iter().take_while(|(losses, _)| test.accepts(losses)).last();
        let never = (mean_of(tested, Passages::mean_recursions), 0.0);
        accepted.map_or(never, |(losses, recursions)| (mean(recursions), mean(losses)))
    };
    let (mean_recursions, risk) = settings.levels.iter().map(of_level).unzip();
    RuleReport { rule: rule.kind(), mean_recursions, risk }
}

/// Numbers of `rule` on every document, exit and token.
fn numbers(scorer: &ExitScorer<'_>, rule: &ExitRule, documents: &[Passages]) -> Numbers {
    let of_document = |Passages { states, .. }: &Passages| {
        let at_exit = |recursions: usize| {
            let states = [&states[recursions - 1], &states[recursions]].map(Clone::clone);
            rule.numbers(scorer.model, recursions, states)
        };
        (1..scorer.exits.num_recursions()).map(at_exit).collect()
    };
    documents.iter().map(of_document).collect()
}

/// One probe for each exit.
fn probes(scorer: &ExitScorer<'_>, documents: &[Passages]) -> Vec<ExitProbe> {
    let width = scorer.model.config().hidden_size;
    let of_exit = |exit: usize| {
        let rows = |passages: &Passages| f32_slice(&passages.states[exit].clone().into_data()).to_vec();
        let rows: Vec<f32> = documents.iter().flat_map(rows).collect();
        let labels: Vec<bool> = documents.iter().flat_map(|passages| passages.agrees[exit - 1].clone()).collect();
        probe::fit(&rows, &labels, width)
    };
    (1..scorer.exits.num_recursions()).map(of_exit).collect()
}

fn mean_of(documents: &[Passages], of: impl Fn(&Passages) -> f64) -> f64 {
    documents.iter().map(of).sum::<f64>() / documents.len().max(1) as f64
}

/// Indices below `count` in an order that follows from `seed`.
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|i| mix(mix(seed) ^ *i as u64));
    order
}
