//! Expert choice (Mixture-of-Recursions, §2.2.1): each recursion scores the active rows and selects
//! some of them. Gating combines the hidden states of a selected row before and after the block.

use super::{
    network::{Router, scores},
    random::RandomLogits,
    selector::{ActiveRows, MakesSelector, Origin, Passage, SelectionRule, TokenSelector},
    threshold, top_k,
    trace::{Logits, RoutingDecision},
};
use crate::{
    causal_lm::CausalLm,
    kernels::{self, Merge, RowSet, Segment},
};
use burn::tensor::Tensor;
use retie_config::ExpertChoiceConfig;

/// Token selector of [`ExpertChoiceConfig`].
#[derive(Debug)]
pub(crate) struct ExpertChoice<'m> {
    config: &'m ExpertChoiceConfig,
    /// One per recursion; empty for random routers.
    routers: &'m [Router],
    /// One per recursion, if inference selects by auxiliary routers; else empty.
    auxiliary_routers: &'m [Router],
    random: Option<RandomLogits>,
    rule: Rule,
}

/// Rule by which a recursion selects rows.
#[derive(Debug)]
enum Rule {
    Threshold,
    /// One capacity per recursion.
    TopK(Vec<f64>),
    /// The rows that the replayed pass selected.
    Replay(RowSet),
}

impl<'m> ExpertChoice<'m> {
    fn new(model: &'m CausalLm, config: &'m ExpertChoiceConfig, origin: Origin<'_>) -> Self {
        let random = (!config.network.has_weights()).then(|| RandomLogits::new(&origin, 1));
        let rule = match origin {
            Origin::Tokens { rule: SelectionRule::TopK(capacities), .. } => Rule::TopK(capacities),
            Origin::Tokens { rule: SelectionRule::Causal | SelectionRule::Warmup(_), .. } => Rule::Threshold,
            Origin::Replay { decision, .. } => Rule::Replay(decision.selected_rows),
        };
        Self { config, routers: &model.model.routers, auxiliary_routers: &model.model.auxiliary_routers, random, rule }
    }
}

impl MakesSelector for ExpertChoiceConfig {
    fn selector<'m>(&'m self, model: &'m CausalLm, origin: Origin<'_>) -> Box<dyn TokenSelector + 'm> {
        Box::new(ExpertChoice::new(model, self, origin))
    }
}

impl CausalLm {
    /// Logits `[n, 1]` by which a recursion selects at inference, of states `[n, D]` that enter it;
    /// `None` without a router of its own with weights.
    pub(crate) fn causal_router_logits(&self, recursion: usize, x: Tensor<2>) -> Option<Tensor<2>> {
        let input = self.expert_choice()?.input;
        let router = self.model.auxiliary_routers.get(recursion).or(self.model.routers.get(recursion))?;
        Some(router.logits(x, input))
    }
}

impl TokenSelector for ExpertChoice<'_> {
    fn select(&mut self, active: &ActiveRows, recursion: usize, segments: &[Segment]) -> RoutingDecision {
        let (rows, input) = (active.rows(), self.config.input);
        let logits = match (self.routers.get(recursion), &self.random) {
            (_, Some(random)) => random.logits(rows, &active.hidden().device()),
            (Some(router), None) => Logits::new(router.logits(active.hidden(), input)), // [n, 1]
            (None, None) => unreachable!("loading checks that each recursion has a router"),
        };
        let auxiliary_logits = self.auxiliary_routers.get(recursion);
        let auxiliary_logits =
            auxiliary_logits.map(|router| Logits::new(router.logits(active.hidden().detach(), input))); // [n, 1]
        let selected_rows = match &self.rule {
            Rule::Replay(selected) => selected.clone(),
            Rule::TopK(capacities) => top_k::select(rows, logits.late(), segments, capacities[recursion]),
            Rule::Threshold => {
                let logits = auxiliary_logits.as_ref().unwrap_or(&logits).late();
                threshold::select(rows, logits, self.config.threshold(recursion))
            }
        };
        RoutingDecision {
            recursion,
            active_rows: rows.clone(),
            logits: Some(logits),
            auxiliary_logits,
            selected_rows,
            router_recursions: None,
        }
    }

    fn merge(&self, passage: Passage, decision: &RoutingDecision) -> Tensor<2> {
        let RoutingDecision { active_rows, selected_rows, .. } = decision;
        let Some(logits) = decision.logits.clone() else { unreachable!("rows are selected by their logits") };
        let gate = scores(logits.tensor, self.config.score, self.config.alpha);
        let gate = match selected_rows.len() == active_rows.len() {
            true => gate,
            false => kernels::gather(gate, &active_rows.positions(selected_rows)),
        };
        let merge = Merge { rows: selected_rows.clone(), gating: self.config.gating };
        kernels::merge(passage.all, passage.leaving, gate, merge)
    }
}
