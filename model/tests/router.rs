//! Routed models with expert choice: against their own reference (`golden/make_router.py`), causal
//! decoding with ragged caches, and exactness where every row is selected.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod routed;

use burn::tensor::{Device, Tensor};
use retie_config::{ExpertChoiceConfig, Gating, RouterConfig, RouterNetwork, RouterScore};
use retie_model::{CausalLm, SelectionRule, binary_cross_entropy, calibrate, kernels::Layout, z_loss};
use retie_testing::{Golden, GoldenGradients, NextTokenLoss, assert_gradients, differences, ids, values};
use routed::{
    Changed, GRADIENTS, assert_caches_hold_selected_rows, assert_close, assert_decodes, flat, load, rows, run, top_k,
};

const NAMES: [&str; 2] = ["routed_mlp", "routed_linear"];

/// A golden model with a changed router configuration.
fn changed(name: &str, change: impl FnOnce(&mut ExpertChoiceConfig)) -> Changed {
    Changed::new(name, |router| {
        let RouterConfig::ExpertChoice(router) = router else { panic!("{router:?}") };
        change(router);
    })
}

fn chosen(golden: &Golden, name: &str) -> Vec<usize> {
    golden.ints(name).0.into_iter().map(|row| row as usize).collect()
}

#[test]
fn top_k_over_whole_sequences_has_the_values_and_gradients_of_the_reference() {
    for name in NAMES {
        let golden = Golden::named(name);
        let device = Device::flex().autodiff();
        let model = CausalLm::load(&golden.config(), &golden, &device).unwrap();
        let rows = rows(name);
        let (batch, tokens) = (rows.len(), rows[0].len());
        let layout = Layout::batch(batch, tokens);
        let (hidden, routing) = model.forward_routed(flat(&rows, &device), layout, top_k(&model));
        assert_close(name, &values(model.logits(hidden.clone()).inner()), &golden.floats("golden.logits"));

        // The loss of the script: cross-entropy, and the routers' losses with their weights.
        let mut loss = NextTokenLoss::new(&model, hidden, &rows);
        let mut total = loss.nll;
        for decision in routing.decisions() {
            let r = decision.recursion;
            assert_eq!(**decision.selected_rows.host(), chosen(&golden, &format!("golden.chosen.{r}")), "{name} {r}");
            let logits = decision.values();
            assert_close("router", &logits, &golden.floats(&format!("golden.router_logits.{r}")));
            let (bce, z) = (binary_cross_entropy(&logits, &decision.mask()), z_loss(&logits, 1));
            for (found, expected) in [(bce.value, "bce"), (z.value, "z")] {
                let expected = f64::from(golden.floats(&format!("golden.{expected}.{r}"))[0]);
                assert!((found - expected).abs() < 2e-6 * expected.max(1.0), "means of a few f32: {found} {expected}");
            }
            total += 0.3 * bce.value + 0.02 * z.value;
            let grad: Vec<f32> = bce.grad.iter().zip(&z.grad).map(|(bce, z)| 0.3 * bce + 0.02 * z).collect();
            let grad = Tensor::<1>::from_floats(grad.as_slice(), &device).reshape([logits.len(), 1]);
            loss.graph = loss.graph + (decision.logits.clone().unwrap().tensor * grad).sum();
        }
        let expected = f64::from(golden.floats("golden.loss")[0]);
        assert!((total - expected).abs() < 1e-5, "{name}: loss {total} and {expected}");
        let expected = GoldenGradients { golden: &golden, prefix: "golden.grad.", tolerance: GRADIENTS };
        assert_gradients(&model, loss, expected);
    }
}

#[test]
fn every_gating_has_the_logits_of_the_reference() {
    for name in NAMES {
        let golden = Golden::named(name);
        for gating in Gating::ALL.iter().copied() {
            let changed = changed(name, |router| router.gating = gating);
            let unchanged = golden.config() == changed.config;
            let expected = if unchanged { "golden.logits".to_owned() } else { format!("golden.{gating}.logits") };
            let model = changed.load();
            assert_close(&expected, &run(&model, &rows(name), top_k(&model)).0, &golden.floats(&expected));
        }
    }
}

#[test]
fn thresholds_select_the_rows_of_the_reference() {
    for name in NAMES {
        let golden = Golden::named(name);
        let (logits, routing) = run(&load(name), &rows(name), SelectionRule::Causal);
        for decision in routing.decisions() {
            let expected = chosen(&golden, &format!("golden.threshold.chosen.{}", decision.recursion));
            assert_eq!(**decision.selected_rows.host(), expected, "{name} {}", decision.recursion);
        }
        assert_close(name, &logits, &golden.floats("golden.threshold.logits"));
    }
}

#[test]
fn selected_rows_are_nested_across_recursions() {
    for name in NAMES {
        let model = load(name);
        let capacities = model.expert_choice().unwrap().capacities.clone();
        let rows = rows(name);
        let (_, routing) = run(&model, &rows, top_k(&model));
        let tokens = rows[0].len();
        let mut before: Vec<usize> = (0..rows.len() * tokens).collect();
        for (decision, capacity) in routing.decisions().iter().zip(capacities) {
            assert_eq!(**decision.active_rows.host(), before);
            assert!(
                decision.selected_rows.host().iter().all(|row| before.contains(row))
                    && decision.selected_rows.host().is_sorted()
            );
            assert_eq!(decision.selected_rows.len(), rows.len() * ExpertChoiceConfig::tokens(capacity, tokens));
            before = decision.selected_rows.host().to_vec();
        }
        let passes: usize = routing.decisions().iter().map(|decision| decision.selected_rows.len()).sum();
        assert_eq!(routing.recursion_counts(rows.len() * tokens).into_iter().sum::<usize>(), passes);
    }
}

#[test]
fn decoding_with_ragged_caches_equals_the_whole_forward_pass() {
    let drawn = changed("routed_mlp", |router| {
        router.network = RouterNetwork::Random;
        router.thresholds = Some(vec![None, Some(-0.5), Some(0.7)]);
    });
    let drawn = ("routed_mlp", drawn.load());
    for (name, model) in NAMES.map(|name| (name, load(name))).into_iter().chain([drawn]) {
        let rows = rows(name);
        let (caches, trace) = assert_decodes(name, &model, &rows);
        assert_caches_hold_selected_rows(&caches, &trace, &rows);
    }
}

#[test]
fn changing_a_token_changes_nothing_before_it() {
    for name in NAMES {
        let model = load(name);
        let row = rows(name).remove(0);
        let logits = |row: &[u32]| run(&model, &[row.to_vec()], SelectionRule::Causal).0;
        let (expected, width) = (logits(&row), model.config().vocab_size);
        for at in [3, 9, row.len() - 1] {
            let mut other = row.clone();
            other[at] = (other[at] + 7) % width as u32;
            let found = logits(&other);
            // Products over other numbers of rows may sum in another order.
            assert_close("before", &found[..at * width], &expected[..at * width]);
            assert!(differences(&found[at * width..], &expected[at * width..]).0 > 0.01, "after");
        }
    }
}

#[test]
fn top_k_is_not_causal() {
    let model = load("routed_mlp");
    let row = rows("routed_mlp").remove(0);
    let width = model.config().vocab_size;
    let logits = |row: &[u32]| run(&model, &[row.to_vec()], top_k(&model)).0;
    let (expected, last) = (logits(&row), row.len() - 1);
    let changed = (0..width as u32).any(|id| {
        let mut other = row.clone();
        other[last] = id;
        differences(&logits(&other)[..last * width], &expected[..last * width]).0 > 0.01
    });
    assert!(changed, "some last token takes the place of an earlier one");
}

#[test]
fn padding_and_neighbours_do_not_matter() {
    for name in NAMES {
        let model = load(name);
        let rows = rows(name);
        let (tokens, width) = (rows[0].len(), model.config().vocab_size);
        let padded: Vec<Vec<u32>> =
            rows.iter().enumerate().map(|(i, row)| [&row[..tokens - 3 * i], &vec![0; 3 * i][..]].concat()).collect();
        let (batch, _) = run(&model, &padded, SelectionRule::Causal);
        for (i, row) in rows.iter().enumerate() {
            let alone = run(&model, &[row[..tokens - 3 * i].to_vec()], SelectionRule::Causal).0;
            assert_close(name, &batch[i * tokens * width..][..alone.len()], &alone);
        }
        // Top-k is per sequence: reordered rows keep their logits.
        let (forward, _) = run(&model, &rows, top_k(&model));
        let (backward, _) = run(&model, &rows.iter().rev().cloned().collect::<Vec<_>>(), top_k(&model));
        for (a, b) in forward.chunks(tokens * width).zip(backward.rchunks(tokens * width)) {
            assert_close(name, a, b);
        }
    }
}

#[test]
fn packed_sequences_with_a_shared_prefix_give_the_logits_of_separate_ones() {
    for name in NAMES {
        let model = load(name);
        let rows = rows(name);
        let (beginning, ends) = (&rows[0][..6], [&rows[0][6..11], &rows[1][2..4]]);
        let all = [beginning, ends[0], ends[1], &rows[1][..8]].concat();
        let layout = Layout::packed([(6, 0..0), (5, 0..6), (2, 0..6), (8, 0..0)]);
        let hidden = model.forward_packed(flat(&[all], &model.device()), layout);
        let logits = values(model.logits(hidden));
        let width = model.config().vocab_size;
        let alone = |row: Vec<u32>| run(&model, &[row], SelectionRule::Causal).0;
        let first = alone([beginning, ends[0]].concat());
        assert_close("first", &logits[..11 * width], &first);
        let second = alone([beginning, ends[1]].concat());
        assert_close("second", &logits[11 * width..13 * width], &second[6 * width..]);
        assert_close("third", &logits[13 * width..], &alone(rows[1][..8].to_vec()));
    }
}

#[test]
fn a_gate_of_one_and_a_capacity_of_one_are_the_plain_recursive_model_bit_for_bit() {
    for name in NAMES {
        let rows = rows(name);
        let everyone = |router: &mut ExpertChoiceConfig| {
            router.capacities.fill(1.0);
            router.thresholds = None;
        };
        let plain = changed(name, everyone).unrouted().load();
        let expected = values(plain.logits(plain.forward(ids(&rows, &plain.device()), None)));
        // The sigmoid of 0 is exactly ½, and twice that is 1.
        let delta = changed(name, |router| {
            everyone(router);
            (router.gating, router.score, router.alpha) = (Gating::Delta, RouterScore::Sigmoid, 2.0);
        });
        let straight = changed(name, |router| {
            everyone(router);
            router.gating = Gating::StraightThrough;
        });
        for model in [delta.without_preference().load(), straight.load()] {
            for choice in [SelectionRule::Causal, top_k(&model)] {
                assert_eq!(run(&model, &rows, choice).0, expected);
            }
        }
        let weighted = changed(name, |router| {
            everyone(router);
            (router.gating, router.score, router.alpha) = (Gating::Weighted, RouterScore::Sigmoid, 2.0);
        });
        let (weighted, _) = run(&weighted.without_preference().load(), &rows, SelectionRule::Causal);
        assert!(differences(&weighted, &expected).0 > 0.01, "x + block(x) is not block(x)");
    }
}

#[test]
fn a_gate_of_zero_skips_the_recursions() {
    let rows = rows("routed_mlp");
    let device = Device::flex();
    let shut = |gating| {
        changed("routed_mlp", |router| (router.gating, router.score) = (gating, RouterScore::Tanh)).without_preference()
    };
    let plain = shut(Gating::Delta).unrouted().load();
    let depths = plain.share_map().num_depths();
    let packed = plain.row_context(Layout::batch(rows.len(), rows[0].len()));
    let x = plain.run_depths(plain.embed(flat(&rows, &device)), 0..1, &packed);
    let x = plain.run_depths(x, depths - 1..depths, &packed);
    let expected = values(plain.logits(plain.norm(x)));
    for gating in [Gating::Delta, Gating::Weighted] {
        let model = shut(gating).load();
        assert_eq!(run(&model, &rows, top_k(&model)).0, expected);
    }
}

#[test]
fn random_routers_select_by_capacity_and_have_no_parameters() {
    let model = changed("routed_mlp", |router| router.network = RouterNetwork::Random).load();
    assert!(model.parameters().iter().all(|(name, _)| !name.contains("routers")));
    let rows = rows("routed_mlp");
    let (_, routing) = run(&model, &rows, top_k(&model));
    let taken: Vec<usize> = routing.decisions().iter().map(|decision| decision.selected_rows.len()).collect();
    assert_eq!(taken, [54, 36, 15]);
    // A token that went further than another one of its sequence has the higher logit.
    let [first, _, last] = routing.decisions() else { panic!() };
    let values = first.values();
    let lowest = last.selected_rows.host().iter().map(|row| (row / 18, values[*row]));
    for (row, depth) in routing.recursion_counts(54).into_iter().enumerate().filter(|(_, depth)| *depth < 3) {
        assert!(lowest.clone().filter(|(at, _)| *at == row / 18).all(|(_, u)| u > values[row]), "{row} {depth}");
    }
}

#[test]
fn calibrated_thresholds_select_the_capacities_on_the_text() {
    for name in NAMES {
        let rows = rows(name);
        let model = calibrate(load(name), &rows);
        let router = model.expert_choice().unwrap();
        let (_, routing) = run(&model, &rows, SelectionRule::Causal);
        let total = rows.len() * rows[0].len();
        for (decision, capacity) in routing.decisions().iter().zip(&router.capacities) {
            let expected = (capacity * total as f64).floor() as usize;
            let found = decision.selected_rows.len();
            // The first router of `cycle` reads embeddings: a token that occurs in each of the
            // three rows has the same logit there.
            let ties = if name == "routed_linear" { rows.len() - 1 } else { 0 };
            assert!(found <= expected && found + ties >= expected, "{name}: {found} and {expected}");
        }
        assert_eq!(router.threshold(0).is_none(), router.capacities[0] == 1.0);
        assert_eq!(router.thresholds.as_ref().map(Vec::len), Some(router.capacities.len()));
    }
}
