//! Exact properties of one recursion of a routed model: visibility between rows, and selection from
//! gathered rows.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod routed;

use burn::tensor::{Device, Tensor};
use retie_config::{Gating, KvSharing, RouterConfig};
use retie_model::{
    CausalLm, EnteredStates, FirstRecursionKv, Forward, Replay, RoutingDecision, RowContext, SelectionRule,
    kernels::Layout,
};
use retie_testing::{differences, values};
use routed::{Changed, assert_close, flat, rows, run, top_k};
use std::{ops::Range, sync::Arc};

const NAMES: [&str; 2] = ["routed_mlp", "routed_linear"];

/// Model whose selected tokens become the output of the block.
fn straight_through(name: &str, kv: KvSharing) -> CausalLm {
    let changed = Changed::new(name, |router| {
        let RouterConfig::ExpertChoice(router) = router else { panic!("{router:?}") };
        router.gating = Gating::StraightThrough;
    });
    changed.with_kv_sharing(kv).load()
}

/// Depths of a recursion.
fn depths(model: &CausalLm, recursion: usize) -> Range<usize> {
    let plan = model.share_map().depths();
    let belongs = |depth: &usize| plan[*depth].recursion == Some(recursion);
    let found: Vec<usize> = (0..plan.len()).filter(belongs).collect();
    found[0]..found[found.len() - 1] + 1
}

/// Runs `recursion` over the `selected` rows of `x`, with the keys and values of the first
/// recursion if it reads them.
fn replay<'m>(
    model: &'m CausalLm,
    x: Tensor<2>,
    recursion: usize,
    rows: RowContext,
    (selected, first_kv): (&[usize], FirstRecursionKv),
) -> Forward<'m> {
    let decision = RoutingDecision {
        recursion,
        active_rows: (0..x.dims()[0]).collect(),
        logits: None,
        auxiliary_logits: None,
        selected_rows: selected.into(),
        router_recursions: None,
    };
    let Range { start, end } = depths(model, recursion);
    let entered = EnteredStates::default();
    let replay = Replay { depth: start, hidden: x, decision: Some(decision), entry: None, first_kv, entered };
    let mut forward = model.replay(Arc::new(rows), replay);
    forward.advance_to(end);
    forward
}

/// Hidden states `[B·T, D]` after the first depth: each depends on those before it.
fn states(model: &CausalLm, rows: &[Vec<u32>]) -> Tensor<2> {
    let layout = model.row_context(Layout::batch(rows.len(), rows[0].len()));
    model.run_depths(model.embed(flat(rows, &Device::flex())), 0..1, &layout)
}

fn pass(model: &CausalLm, x: Tensor<2>, recursion: usize, layout: Layout, selected: &[usize]) -> Vec<f32> {
    let rows = model.row_context(layout);
    values(replay(model, x, recursion, rows, (selected, FirstRecursionKv::default())).hidden().clone())
}

#[test]
fn a_batch_equals_a_loop_over_its_sequences_and_other_rows_do_not_change() {
    for name in NAMES {
        let model = straight_through(name, KvSharing::RecursionWise);
        let rows = rows(name);
        let (batch, tokens) = (rows.len(), rows[0].len());
        let x = states(&model, &rows);
        let [num_rows, width] = x.dims();
        let selected: Vec<usize> = (0..num_rows).filter(|row| row * 5 % 7 < 3 + row / tokens).collect();
        let found = pass(&model, x.clone(), 1, Layout::batch(batch, tokens), &selected);
        for sequence in 0..batch {
            let from = sequence * tokens;
            let in_sequence = selected.iter().filter(|row| **row / tokens == sequence).map(|row| row - from);
            let in_sequence: Vec<usize> = in_sequence.collect();
            let alone = pass(&model, x.clone().narrow(0, from, tokens), 1, Layout::batch(1, tokens), &in_sequence);
            assert_close(name, &found[from * width..][..alone.len()], &alone);
        }
        let before = values(x);
        for row in (0..num_rows).filter(|row| !selected.contains(row)) {
            assert_eq!(found[row * width..][..width], before[row * width..][..width], "{name}: row {row}");
        }
    }
}

/// Rotary embeddings are relative: adjacent rows that attend to no others give the same as a
/// sequence of their own.
#[test]
fn selected_adjacent_rows_are_a_sequence_of_their_own() {
    for name in NAMES {
        let model = straight_through(name, KvSharing::RecursionWise);
        let rows = rows(name);
        let (batch, tokens) = (rows.len(), rows[0].len());
        let x = states(&model, &rows);
        let [_, width] = x.dims();
        let selected: Vec<usize> = (2..7).chain(tokens + 5..tokens + 11).collect();
        let found = pass(&model, x.clone(), 1, Layout::batch(batch, tokens), &selected);
        for range in [2..7, tokens + 5..tokens + 11] {
            let rows = model.row_context(Layout::batch(1, range.len()));
            let alone = model.run_depths(x.clone().narrow(0, range.start, range.len()), depths(&model, 1), &rows);
            assert_close(name, &found[range.start * width..range.end * width], &values(alone));
        }
    }
}

#[test]
fn selecting_all_rows_is_the_plain_block() {
    for name in NAMES {
        let model = straight_through(name, KvSharing::RecursionWise);
        let rows = rows(name);
        let (batch, tokens) = (rows.len(), rows[0].len());
        let layout = Layout::batch(batch, tokens);
        let x = states(&model, &rows);
        let [num_rows, width] = x.dims();
        let plain = values(model.run_depths(x.clone(), depths(&model, 1), &model.row_context(layout.clone())));
        let all: Vec<usize> = (0..num_rows).collect();
        assert_eq!(pass(&model, x.clone(), 1, layout.clone(), &all), plain, "bit for bit");
        // All rows of one sequence and no others: gathered rows, in the original order.
        let found = pass(&model, x, 1, layout, &all[tokens..2 * tokens]);
        let second = tokens * width..2 * tokens * width;
        assert_close(name, &found[second.clone()], &plain[second]);
    }
}

/// With shared keys and values a query needs no other query: a subset gives the same as all.
#[test]
fn with_shared_keys_and_values_a_subset_of_queries_gives_the_same_as_all() {
    let name = "routed_kv";
    let model = straight_through(name, KvSharing::Shared);
    let rows = rows(name);
    let context = || model.row_context(Layout::batch(rows.len(), rows[0].len()));
    let x = states(&model, &rows);
    let [num_rows, width] = x.dims();
    let all: Vec<usize> = (0..num_rows).collect();
    let first = replay(&model, x, 0, context(), (&all, FirstRecursionKv::default()));
    let second = |selected: &[usize]| {
        let first_kv = first.first_recursion_kv().clone();
        values(replay(&model, first.hidden().clone(), 1, context(), (selected, first_kv)).hidden().clone())
    };
    let (every, some) = (second(&all), all.iter().copied().filter(|row| row % 3 != 1).collect::<Vec<_>>());
    let found = second(&some);
    for row in some {
        assert_close(name, &found[row * width..][..width], &every[row * width..][..width]);
    }
}

/// Logits are distinct, so a threshold just below the lowest one in the top-k of a sequence selects
/// the same rows.
#[test]
fn a_threshold_at_the_lowest_selected_logit_is_top_k() {
    let name = "routed_mlp";
    let mut model = straight_through(name, KvSharing::RecursionWise);
    for row in rows(name) {
        let row = [row];
        let (expected, routing) = run(&model, &row, top_k(&model));
        let thresholds = routing.decisions().iter().map(|decision| {
            let mut taken = Vec::new();
            for (u, chosen) in decision.values().into_iter().zip(decision.mask()) {
                taken.extend(chosen.then_some(u));
            }
            let lowest = taken.into_iter().fold(f32::INFINITY, f32::min);
            Some(f64::from(lowest.next_down()))
        });
        model.set_thresholds(thresholds.collect());
        let (found, by_threshold) = run(&model, &row, SelectionRule::Causal);
        for (a, b) in routing.decisions().iter().zip(by_threshold.decisions()) {
            assert_eq!(a.selected_rows.host(), b.selected_rows.host());
        }
        assert_eq!(differences(&found, &expected).0, 0.0);
    }
}
