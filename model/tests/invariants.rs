//! What holds exactly of one recursion of a routed model: who sees whom, and that a choice is made of gathered rows.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use burn::tensor::{Device, Tensor};
use retie_config::{Gating, KvStrategy, RouterConfig};
use retie_model::{CausalLm, Choice, Decision, Routing, kernels::Layout};
use std::ops::Range;
use support::{
    differences,
    routed::{Changed, assert_close, flat, rows, run, top_k},
    values,
};

const NAMES: [&str; 2] = ["routed_mlp", "routed_linear"];

/// Tokens that go through a recursion become what the block makes of them.
fn straight_through(name: &str, kv: KvStrategy) -> CausalLm {
    let changed = Changed::new(name, |router| {
        let RouterConfig::ExpertChoice(router) = router else { panic!("{router:?}") };
        (router.gating, router.kv) = (Gating::StraightThrough, kv);
    });
    changed.load()
}

/// The depths of a recursion.
fn depths(model: &CausalLm, recursion: usize) -> Range<usize> {
    let plan = model.share_map().depths();
    let of = |depth: &usize| plan[*depth].recursion == Some(recursion);
    let found: Vec<usize> = (0..plan.len()).filter(of).collect();
    found[0]..found[found.len() - 1] + 1
}

/// A routing in which the rows `chosen` go through `recursion`, of all.
fn given(recursion: usize, num_rows: usize, chosen: &[usize]) -> Routing {
    let alive = (0..num_rows).collect();
    let decision = Decision { recursion, alive, logits: None, auxiliary: None, chosen: chosen.into(), own: None };
    Routing::again(&decision, None)
}

/// Hidden states `[B·T, D]` behind the first depth: each has seen those before it.
fn states(model: &CausalLm, rows: &[Vec<u32>]) -> Tensor<2> {
    let layout = model.rows(Layout::batch(rows.len(), rows[0].len()));
    model.run_depths(model.embed(flat(rows, &Device::flex())), 0..1, &layout, None)
}

fn pass(model: &CausalLm, x: Tensor<2>, recursion: usize, layout: Layout, chosen: &[usize]) -> Vec<f32> {
    let mut routing = given(recursion, x.dims()[0], chosen);
    values(model.run_pass(x, depths(model, recursion), &model.rows(layout), &mut routing, None))
}

#[test]
fn a_batch_gives_what_a_loop_over_its_sequences_gives_and_leaves_the_others_as_they_were() {
    for name in NAMES {
        let model = straight_through(name, KvStrategy::RecursionWise);
        let rows = rows(name);
        let (batch, tokens) = (rows.len(), rows[0].len());
        let x = states(&model, &rows);
        let [num_rows, width] = x.dims();
        let chosen: Vec<usize> = (0..num_rows).filter(|row| row * 5 % 7 < 3 + row / tokens).collect();
        let found = pass(&model, x.clone(), 1, Layout::batch(batch, tokens), &chosen);
        for sequence in 0..batch {
            let from = sequence * tokens;
            let own = chosen.iter().filter(|row| **row / tokens == sequence).map(|row| row - from);
            let own: Vec<usize> = own.collect();
            let alone = pass(&model, x.clone().narrow(0, from, tokens), 1, Layout::batch(1, tokens), &own);
            assert_close(name, &found[from * width..][..alone.len()], &alone);
        }
        let before = values(x);
        for row in (0..num_rows).filter(|row| !chosen.contains(row)) {
            assert_eq!(found[row * width..][..width], before[row * width..][..width], "{name}: row {row}");
        }
    }
}

/// Rotations are relative: neighbours that see nobody else give what they give as a sequence of their own.
#[test]
fn chosen_neighbours_are_a_sequence_of_their_own() {
    for name in NAMES {
        let model = straight_through(name, KvStrategy::RecursionWise);
        let rows = rows(name);
        let (batch, tokens) = (rows.len(), rows[0].len());
        let x = states(&model, &rows);
        let [_, width] = x.dims();
        let chosen: Vec<usize> = (2..7).chain(tokens + 5..tokens + 11).collect();
        let found = pass(&model, x.clone(), 1, Layout::batch(batch, tokens), &chosen);
        for range in [2..7, tokens + 5..tokens + 11] {
            let rows = model.rows(Layout::batch(1, range.len()));
            let alone = model.run_depths(x.clone().narrow(0, range.start, range.len()), depths(&model, 1), &rows, None);
            assert_close(name, &found[range.start * width..range.end * width], &values(alone));
        }
    }
}

#[test]
fn where_all_are_chosen_attention_is_that_of_the_ordinary_block() {
    for name in NAMES {
        let model = straight_through(name, KvStrategy::RecursionWise);
        let rows = rows(name);
        let (batch, tokens) = (rows.len(), rows[0].len());
        let layout = Layout::batch(batch, tokens);
        let x = states(&model, &rows);
        let [num_rows, width] = x.dims();
        let plain = values(model.run_depths(x.clone(), depths(&model, 1), &model.rows(layout.clone()), None));
        let all: Vec<usize> = (0..num_rows).collect();
        assert_eq!(pass(&model, x.clone(), 1, layout.clone(), &all), plain, "bit for bit");
        // All of one sequence and nobody else: gathered rows, in the ordinary order.
        let found = pass(&model, x, 1, layout, &all[tokens..2 * tokens]);
        let second = tokens * width..2 * tokens * width;
        assert_close(name, &found[second.clone()], &plain[second]);
    }
}

/// With shared keys and values a query needs no other: some queries give what they give among all.
#[test]
fn shared_keys_and_values_give_each_query_what_it_has_among_all() {
    let name = "routed_kv";
    let model = straight_through(name, KvStrategy::Shared);
    let rows = rows(name);
    let layout = model.rows(Layout::batch(rows.len(), rows[0].len()));
    let x = states(&model, &rows);
    let [num_rows, width] = x.dims();
    let all: Vec<usize> = (0..num_rows).collect();
    let mut first = given(0, num_rows, &all);
    let x = model.run_pass(x, depths(&model, 0), &layout, &mut first, None);
    let of = |chosen: &[usize]| {
        let mut routing = given(1, num_rows, chosen).with_first(first.first_keys_values().to_vec());
        values(model.run_pass(x.clone(), depths(&model, 1), &layout, &mut routing, None))
    };
    let (every, some) = (of(&all), all.iter().copied().filter(|row| row % 3 != 1).collect::<Vec<_>>());
    let found = of(&some);
    for row in some {
        assert_close(name, &found[row * width..][..width], &every[row * width..][..width]);
    }
}

/// Scores are distinct, so a threshold just below the lowest that top-k takes of a sequence takes the same.
#[test]
fn a_threshold_at_the_lowest_chosen_score_is_top_k() {
    let name = "routed_mlp";
    let mut model = straight_through(name, KvStrategy::RecursionWise);
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
        let (found, by_threshold) = run(&model, &row, Choice::Threshold);
        for (a, b) in routing.decisions().iter().zip(by_threshold.decisions()) {
            assert_eq!(a.chosen, b.chosen);
        }
        assert_eq!(differences(&found, &expected).0, 0.0);
    }
}
