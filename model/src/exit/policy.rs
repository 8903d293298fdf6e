//! Keys and values of skipped recursions ([`SkippedKv`]).
//!
//! What a later token attends to, of one that skipped a recursion:
//!
//! - `skip`: nothing (MoR, §2.2.2, <https://arxiv.org/abs/2507.10524>).
//! - `latest`: keys and values of its last recursion, by layer (Huginn,
//!   <https://arxiv.org/abs/2502.05171>).
//! - `propagate`: those that the recursion's weights make of the state that left (CALM,
//!   <https://arxiv.org/abs/2207.07061>).
//! - `recompute`: its own; it runs through the recursion as soon as a later token does (EE-LLM,
//!   <https://arxiv.org/abs/2312.04916>).
//! - `shared`: those of the first recursion, as for every token (MoR, §2.2.2).

use crate::{
    cache::KvCache,
    causal_lm::CausalLm,
    kernels::{self, Layout, RowSet},
    kv::{FirstRecursionKv, KeysValues, KvSource, replace_rows},
    recursion::{RecursionCall, SharedKv, selected_before_all},
    row_context::RowContext,
};
use burn::tensor::Tensor;
use retie_config::SkippedKv;

/// Keys and values of one pass that later recursions need.
#[derive(Debug)]
pub(super) struct SkippedRecursion {
    policy: SkippedKv,
    /// Of `latest`: keys and values of all rows in the recursion before, by layer.
    latest: FirstRecursionKv,
    /// Of `recompute` without a cache: the states of all rows if none had left, `[M, D]`.
    unbroken: Option<Tensor<2>>,
    /// Of `recompute` with a cache: the rows that ran the recursion before.
    ran: RowSet,
}

/// Rows that pass a recursion.
pub(super) struct Passing<'a> {
    /// States of all rows, `[M, D]`; of those that have left, the state that left.
    pub all: &'a Tensor<2>,
    pub call: &'a RecursionCall<'a>,
    pub first_kv: &'a mut FirstRecursionKv,
    pub cache: Option<&'a mut KvCache>,
}

impl SkippedRecursion {
    pub fn new(policy: SkippedKv) -> Self {
        Self { policy, latest: FirstRecursionKv::default(), unbroken: None, ran: RowSet::from([]) }
    }

    /// Runs the selected rows; `None` if there are none. Gives their states, `[k, D]`.
    pub fn run(&mut self, model: &CausalLm, passing: Passing<'_>) -> Option<Tensor<2>> {
        match self.policy {
            SkippedKv::Latest | SkippedKv::Propagate => self.run_filled(model, passing),
            SkippedKv::Recompute => self.run_recomputed(model, passing),
            SkippedKv::Skip | SkippedKv::Shared => {
                let Passing { all, call, first_kv, cache } = passing;
                let x = selected(all, call)?;
                Some(model.run_recursion(x, call, SharedKv { first: first_kv, cache }))
            }
        }
    }

    /// `latest` and `propagate`: every depth has keys and values of all rows.
    fn run_filled(&mut self, model: &CausalLm, passing: Passing<'_>) -> Option<Tensor<2>> {
        let Passing { all, call, mut cache, .. } = passing;
        let mut x = selected(all, call);
        let all_run = call.selects_all();
        let context = selected_before_all(call);
        let rows = context.as_ref().unwrap_or(call.rows);
        let keeps = self.policy == SkippedKv::Latest;
        let has_left = |row: &usize| call.selected_rows.host().binary_search(row).is_err();
        let gone: RowSet = (0..call.rows.num_rows()).filter(has_left).collect();
        for depth in call.depths.clone() {
            let cache = cache.as_deref_mut().map(|cache| cache.depth(depth, &call.rows.layout));
            let mut kept = None;
            let source = if all_run {
                KvSource::Computed { cache, kept: keeps.then_some(&mut kept) }
            } else {
                let first = match self.policy {
                    SkippedKv::Propagate => propagated(model, all, call, (depth, &gone)),
                    _ => self.latest.get(model.layer(depth)),
                };
                let Some(_) = &x else {
                    // Nobody runs: the cache gets what later tokens attend to.
                    if let Some(cache) = cache {
                        let _ = cache.append(first);
                    }
                    continue;
                };
                KvSource::Overlaid { first, rows: call.selected_rows.clone(), cache, kept: keeps.then_some(&mut kept) }
            };
            x = x.map(|x| model.run_depth(x, depth, rows, source));
            if let Some(kept) = kept {
                self.latest.insert(model.layer(depth), kept);
            }
        }
        x
    }

    /// `recompute`. Without a cache every row runs, and those that left keep their states.
    fn run_recomputed(&mut self, model: &CausalLm, passing: Passing<'_>) -> Option<Tensor<2>> {
        let Passing { all, call, cache, .. } = passing;
        if let Some(cache) = cache {
            let ran = std::mem::replace(&mut self.ran, call.selected_rows.clone());
            let just_left: Vec<usize> = ran
                .host()
                .iter()
                .copied()
                .filter(|row| call.selected_rows.host().binary_search(row).is_err())
                .collect();
            return super::pending::run(model, all, call, &just_left, cache);
        }
        let entering = self.unbroken.take().unwrap_or_else(|| all.clone());
        let leaving = model.run_depths(entering, call.depths.clone(), call.rows);
        self.unbroken = Some(leaving.clone());
        selected(&leaving, call)
    }
}

/// The selected rows of `all [M, D]`; `None` if there are none.
pub(super) fn selected(all: &Tensor<2>, call: &RecursionCall<'_>) -> Option<Tensor<2>> {
    match call.selected_rows.len() {
        0 => None,
        _ if call.selects_all() => Some(all.clone()),
        _ => Some(kernels::gather(all.clone(), &call.selected_rows)),
    }
}

/// Keys and values `[M, K·H]` that `depth` makes of the states of the rows `gone`; others are
/// zeros.
fn propagated(
    model: &CausalLm,
    all: &Tensor<2>,
    call: &RecursionCall<'_>,
    (depth, gone): (usize, &RowSet),
) -> KeysValues {
    let x = kernels::gather(all.clone(), gone);
    let rows: RowContext = call.rows.only(gone, Layout::packed([(gone.len(), 0..0)]));
    model.keys_values(x, depth, &rows).map(|made| {
        let [_, width] = made.dims();
        let zeros = Tensor::zeros([call.rows.num_rows(), width], &made.device());
        replace_rows(zeros, made, gone.clone())
    })
}
