//! Token choice (Mixture-of-Recursions, §2.2.1, Eq. 2.2): each token selects its recursion count
//! before the loop. After its last recursion, gating combines its output with the state at the
//! loop's entry.
//!
//! Let `x` be the state at the loop's entry, `h` the state before a recursion and `y = block(h)`.
//! In its last recursion a token becomes the gated combination of `x` and `y`. In earlier
//! recursions it becomes `y` (`intermediate: plain`), or the gated combination of `h` and `y`,
//! which for `weighted` is `p·y` (`intermediate: gated`).

use super::{
    loop_entry::LoopEntry,
    network::{Router, recursion_scores},
    random::{RandomLogits, warmup_rows},
    selector::{ActiveRows, MakesSelector, Origin, Passage, TokenSelector},
    trace::{Logits, RoutingDecision},
};
use crate::{
    causal_lm::CausalLm,
    kernels::{self, Late, Merge, RowSet, Segment},
};
use burn::tensor::Tensor;
use retie_config::{Gating, IntermediateState, TokenChoiceConfig};

/// Token selector of [`TokenChoiceConfig`].
#[derive(Debug)]
pub(crate) struct TokenChoice<'m> {
    config: &'m TokenChoiceConfig,
    /// The router of all recursions; `None` for random routers.
    router: Option<&'m Router>,
    num_recursions: usize,
    random: Option<RandomLogits>,
    /// For each row, true if the warm-up sends it through every recursion.
    full_recursion: Vec<bool>,
    /// Recursion counts; before the first recursion, those of a replayed pass, if any.
    entry: Option<LoopEntry>,
}

impl<'m> TokenChoice<'m> {
    fn new(model: &'m CausalLm, config: &'m TokenChoiceConfig, origin: Origin<'_>) -> Self {
        let num_recursions = model.share_map().num_recursions();
        let random = (!config.network.has_weights()).then(|| RandomLogits::new(&origin, num_recursions));
        let full_recursion = warmup_rows(&origin);
        let entry = match origin {
            Origin::Tokens { entry, .. } | Origin::Replay { entry, .. } => entry.map(|entry| *entry),
        };
        Self { config, router: model.model.routers.first(), num_recursions, random, full_recursion, entry }
    }

    /// Runs the router over every row and selects recursion counts; a replayed selection stays.
    fn enter(&self, active: &ActiveRows) -> LoopEntry {
        let hidden = active.hidden();
        let logits = match (self.router, &self.random) {
            (_, Some(random)) => random.logits(active.rows(), &hidden.device()),
            (Some(router), None) => Logits::new(router.logits(hidden.clone(), self.config.input)), // [M, R]
            (None, None) => unreachable!("loading checks that the model has its router"),
        };
        if let Some(entry) = &self.entry {
            return entry.with(hidden, logits);
        }
        // How many rows go on depends on the scores, and shapes on their number: a device's are
        // read.
        let scores = Late::new(recursion_scores(logits.tensor.clone().inner(), self.config.score, self.config.alpha));
        let chosen = last_best(scores.values(), self.num_recursions, self.config.biases.as_deref());
        let full = |row: usize| self.full_recursion.get(row).copied().unwrap_or(false);
        let last = |(row, chosen): (usize, &usize)| if full(row) { self.num_recursions - 1 } else { *chosen };
        let last_recursions = chosen.iter().enumerate().map(last).collect();
        LoopEntry { hidden, logits, last_recursions, router_recursions: chosen.into() }
    }

    fn chosen(&self) -> &LoopEntry {
        match &self.entry {
            Some(entry) => entry,
            None => unreachable!("tokens choose before the first recursion"),
        }
    }
}

impl MakesSelector for TokenChoiceConfig {
    fn selector<'m>(&'m self, model: &'m CausalLm, origin: Origin<'_>) -> Box<dyn TokenSelector + 'm> {
        Box::new(TokenChoice::new(model, self, origin))
    }
}

impl TokenSelector for TokenChoice<'_> {
    fn select(&mut self, active: &ActiveRows, recursion: usize, _: &[Segment]) -> RoutingDecision {
        if recursion == 0 {
            self.entry = Some(self.enter(active));
        }
        let entry = self.chosen();
        let goes_on = |row: &usize| entry.last_recursions[*row] >= recursion;
        let first = (recursion == 0).then(|| (entry.logits.clone(), entry.router_recursions.clone()));
        let (logits, router_recursions) = first.unzip();
        RoutingDecision {
            recursion,
            active_rows: active.rows().clone(),
            logits,
            auxiliary_logits: None,
            selected_rows: active.rows().host().iter().copied().filter(goes_on).collect(),
            router_recursions,
        }
    }

    fn merge(&self, passage: Passage, decision: &RoutingDecision) -> Tensor<2> {
        let Passage { all, entering, leaving } = passage;
        let RoutingDecision { recursion, selected_rows, .. } = decision;
        let (entry, gating) = (self.chosen(), self.config.gating);
        let gates = recursion_scores(entry.logits.tensor.clone(), self.config.score, self.config.alpha);
        let gates = gates.narrow(1, *recursion, 1); // [M, 1]
        let is_last = |row: &&usize| entry.last_recursions[**row] == *recursion;
        let (done, going): (Vec<usize>, Vec<usize>) = selected_rows.host().iter().partition(is_last);
        let mut out = all;
        for (rows, leaves) in [(done, true), (going, false)] {
            if rows.is_empty() {
                continue;
            }
            let rows = RowSet::from(rows);
            let at = selected_rows.positions(&rows);
            let (gate, y) = (kernels::gather(gates.clone(), &rows), kernels::gather(leaving.clone(), &at));
            let left = match (leaves, self.config.intermediate) {
                (true, _) => combined(kernels::gather(entry.hidden.clone(), &rows), y, gate, gating),
                (false, IntermediateState::Plain) => y,
                (false, IntermediateState::Gated) if gating == Gating::Weighted => y * gate,
                (false, IntermediateState::Gated) => combined(kernels::gather(entering.clone(), &at), y, gate, gating),
            };
            out = put(out, left, rows);
        }
        out
    }

    fn entry(&self) -> Option<&LoopEntry> {
        self.entry.as_ref()
    }
}

/// Index of the largest sum of score and bias in each row of `scores [M, R]`; the last one of
/// equal sums.
fn last_best(scores: &[f32], num_recursions: usize, biases: Option<&[f32]>) -> Vec<usize> {
    let bias = |recursion: usize| biases.and_then(|biases| biases.get(recursion)).copied().unwrap_or(0.0);
    let best = |row: &[f32]| {
        let value = |recursion: usize| row[recursion] + bias(recursion);
        (1..num_recursions).fold(0, |best, next| if value(next) >= value(best) { next } else { best })
    };
    scores.chunks_exact(num_recursions).map(best).collect()
}

/// Gated combination of all rows of `x` and `y`, `[k, D]` each.
fn combined(x: Tensor<2>, y: Tensor<2>, gate: Tensor<2>, gating: Gating) -> Tensor<2> {
    let [num_rows, _] = x.dims();
    kernels::merge(x, y, gate, Merge { rows: (0..num_rows).collect(), gating })
}

/// `x [M, D]` with `rows` replaced by `y [k, D]`.
fn put(x: Tensor<2>, y: Tensor<2>, rows: RowSet) -> Tensor<2> {
    let [num_rows, _] = x.dims();
    if rows.len() == num_rows {
        return y;
    }
    let gate = Tensor::zeros([rows.len(), 1], &x.device());
    // Straight-through gating inserts `y` as it is; the constant gate has no gradient.
    kernels::merge(x, y, gate, Merge { rows, gating: Gating::StraightThrough })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_count_for_the_choice_and_of_equals_the_last_is_chosen() {
        let scores = [0.5, 0.3, 0.2, 0.1, 0.1, 0.8, 0.4, 0.4, 0.2, 1.0, 1.0, 1.0];
        assert_eq!(last_best(&scores, 3, None), [0, 2, 1, 2]);
        assert_eq!(last_best(&scores, 3, Some(&[0.0, 0.25, 0.0])), [1, 2, 1, 1]);
        assert_eq!(last_best(&[f32::NAN; 3], 3, None), [0]);
    }
}
