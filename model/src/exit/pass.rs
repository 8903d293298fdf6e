//! One forward pass whose tokens leave the loop early.

use super::{
    RowExits,
    policy::{Passing, SkippedRecursion},
};
use crate::{
    cache::KvCache,
    causal_lm::CausalLm,
    kernels::{self, RowSet},
    kv::{FirstRecursionKv, replace_rows},
    recursion::RecursionCall,
    router::RoutingDecision,
    row_context::RowContext,
    steps::EnteredStates,
};
use burn::tensor::Tensor;
use std::{ops::Range, sync::Arc};

/// Exits of a pass in progress.
#[derive(Debug)]
pub(crate) struct ExitPass<'m> {
    exits: RowExits<'m>,
    /// Rows that go through the next recursion, ascending.
    staying: Arc<[usize]>,
    skipped: SkippedRecursion,
}

/// What a recursion of the pass runs on.
pub(crate) struct ExitCall<'a> {
    pub model: &'a CausalLm,
    pub recursion: usize,
    pub depths: Range<usize>,
    pub rows: &'a Arc<RowContext>,
    pub first_kv: &'a mut FirstRecursionKv,
    pub cache: Option<&'a mut KvCache>,
    /// What entered the recursions so far, where it is read.
    pub entered: &'a EnteredStates,
}

impl<'m> ExitPass<'m> {
    /// A pass over as many rows as `exits` has limits.
    pub fn new(exits: RowExits<'m>) -> Self {
        let staying = (0..exits.limits.len()).collect();
        Self { skipped: SkippedRecursion::new(exits.kv), exits, staying }
    }

    /// Runs a recursion over the rows that stay, given the states `hidden [M, D]` of all rows.
    /// Returns the states after it, in which rows that have left are as they were, and the rows
    /// that it ran.
    pub fn run(&mut self, hidden: Tensor<2>, call: ExitCall<'_>) -> (Tensor<2>, RoutingDecision) {
        let ExitCall { model, recursion, depths, rows, first_kv, cache, entered } = call;
        let (selected, end) = (RowSet::from(self.staying.clone()), depths.end);
        let inner = RecursionCall { recursion, depths, rows, selected_rows: selected.clone() };
        let decision = RoutingDecision {
            active_rows: selected.clone(),
            selected_rows: selected.clone(),
            ..RoutingDecision::without_rows(recursion)
        };
        let passing = Passing { all: &hidden, call: &inner, first_kv, cache };
        let leaving = self.skipped.run(model, passing); // [k, D]
        let Some(leaving) = leaving else { return (hidden, decision) };
        let all_run = selected.len() == rows.num_rows();
        let leaving = model.fused(leaving, end, (entered, (!all_run).then_some(&selected)));
        let entering = if all_run { hidden.clone() } else { kernels::gather(hidden.clone(), &selected) };
        self.leave(model, recursion + 1, [entering, leaving.clone()]);
        let hidden = if all_run { leaving } else { replace_rows(hidden, leaving, selected) };
        (hidden, decision)
    }

    /// The `selected` rows that stay after `recursions` recursions of a routed model, given the
    /// states `[M, D]` of all rows before and after the last one. Its router decides on them next.
    pub fn retain(
        &mut self,
        model: &CausalLm,
        recursions: usize,
        selected: RowSet,
        [before, after]: [&Tensor<2>; 2],
    ) -> RowSet {
        if selected.is_empty() {
            return selected;
        }
        self.staying = selected.host().clone();
        let of_rows = |x: &Tensor<2>| kernels::gather(x.clone(), &selected);
        self.leave(model, recursions, [of_rows(before), of_rows(after)]);
        RowSet::from(self.staying.clone())
    }

    /// Lets rows leave after `recursions` recursions, given the states of those that stayed before
    /// and after the last one.
    fn leave(&mut self, model: &CausalLm, recursions: usize, [before, after]: [Tensor<2>; 2]) {
        if recursions == model.share_map().num_recursions() {
            return;
        }
        let RowExits { rule, limits, .. } = &self.exits;
        let asks = |row: &usize| limits[*row].threshold.is_finite() && recursions < limits[*row].max_recursions;
        let numbers = match rule.filter(|_| self.staying.iter().any(asks)) {
            Some(rule) => rule.numbers(model, recursions, [before, after]),
            None => vec![f32::NEG_INFINITY; self.staying.len()],
        };
        let stays = |(row, number): (&usize, f32)| {
            let limit = limits[*row];
            (number < limit.threshold && recursions < limit.max_recursions).then_some(*row)
        };
        self.staying = self.staying.iter().zip(numbers).filter_map(stays).collect();
    }
}
