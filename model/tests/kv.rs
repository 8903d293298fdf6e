//! KV sharing in routed models: against its own reference (`golden/make_kv.py`), cache contents,
//! and measured cost against the formulas.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod routed;

use burn::tensor::Device;
use retie_config::{ExpertChoiceConfig, KvSharing, ModelConfig, RouterConfig};
use retie_model::{
    CausalLm, KvCache, SelectionRule, calibrate,
    kernels::{Layout, counted},
};
use retie_testing::{Golden, GoldenGradients, NextTokenLoss, assert_gradients, differences, ids, values};
use routed::{GRADIENTS, assert_close, assert_decodes, flat, run, top_k};

const BOTH: [KvSharing; 2] = [KvSharing::Shared, KvSharing::Hybrid];

fn golden() -> Golden {
    Golden::named("routed_kv")
}

fn config(kv: KvSharing, change: impl FnOnce(&mut ExpertChoiceConfig)) -> ModelConfig {
    let mut config = golden().config();
    let recursion = config.recursion.as_mut().unwrap();
    recursion.kv_sharing = kv;
    let Some(RouterConfig::ExpertChoice(router)) = &mut recursion.router else { panic!() };
    change(router);
    config
}

fn load(kv: KvSharing) -> CausalLm {
    CausalLm::load(&config(kv, |_| {}), &golden(), &Device::flex()).unwrap()
}

fn rows() -> Vec<Vec<u32>> {
    routed::rows("routed_kv")
}

#[test]
fn later_recursions_have_the_values_of_the_reference() {
    for kv in BOTH {
        let (model, rows) = (load(kv), rows());
        for (choice, name) in [(top_k(&model), "logits"), (SelectionRule::Causal, "threshold.logits")] {
            let name = format!("golden.{kv}.{name}");
            assert_close(&name, &run(&model, &rows, choice).0, &golden().floats(&name));
        }
    }
}

/// With `shared`, gradients of k and v come from the first recursion alone: the reference has no
/// others.
#[test]
fn gradients_are_those_of_the_reference() {
    for kv in BOTH {
        let device = Device::flex().autodiff();
        let config = config(kv, |_| {});
        let model = CausalLm::load(&config, &golden(), &device).unwrap();
        let rows = rows();
        let layout = Layout::batch(rows.len(), rows[0].len());
        let (hidden, _) = model.forward_routed(flat(&rows, &device), layout, top_k(&model));
        let loss = NextTokenLoss::new(&model, hidden, &rows);
        let (nll, expected) = (loss.nll, f64::from(golden().floats(&format!("golden.{kv}.loss"))[0]));
        assert!((nll - expected).abs() < 1e-5, "{kv}: loss {nll} and {expected}");
        let (golden, prefix) = (golden(), format!("golden.{kv}.grad."));
        let expected = GoldenGradients { golden: &golden, prefix: &prefix, tolerance: GRADIENTS };
        assert_gradients(&model, loss, expected);
    }
}

#[test]
fn decoding_equals_the_whole_forward_pass_with_every_strategy() {
    for kv in KvSharing::ALL.iter().copied() {
        assert_decodes(kv.name(), &load(kv), &rows());
    }
}

#[test]
fn padding_later_tokens_and_neighbours_do_not_matter() {
    for kv in BOTH {
        let (model, rows) = (load(kv), rows());
        let (tokens, width) = (rows[0].len(), model.config().vocab_size);
        let padded: Vec<Vec<u32>> =
            rows.iter().enumerate().map(|(i, row)| [&row[..tokens - 3 * i], &vec![0; 3 * i][..]].concat()).collect();
        let (batch, _) = run(&model, &padded, SelectionRule::Causal);
        for (i, row) in rows.iter().enumerate() {
            let alone = run(&model, &[row[..tokens - 3 * i].to_vec()], SelectionRule::Causal).0;
            assert_close(kv.name(), &batch[i * tokens * width..][..alone.len()], &alone);
        }
        // Two endings of one prefix, which is read once.
        let all = [&rows[0][..6], &rows[0][6..11], &rows[1][2..4]].concat();
        let layout = Layout::packed([(6, 0..0), (5, 0..6), (2, 0..6)]);
        let logits = values(model.logits(model.forward_packed(flat(&[all], &model.device()), layout)));
        let alone = |ids: &[&[u32]]| run(&model, &[ids.concat()], SelectionRule::Causal).0;
        assert_close("first", &logits[..11 * width], &alone(&[&rows[0][..11]]));
        assert_close("second", &logits[11 * width..], &alone(&[&rows[0][..6], &rows[1][2..4]])[6 * width..]);
    }
}

#[test]
fn an_exit_after_the_first_recursion_does_not_depend_on_kv_sharing() {
    let first_end = |kv| {
        let (model, rows) = (load(kv), rows());
        let layout = Layout::batch(rows.len(), rows[0].len());
        let forward = model.begin(flat(&rows, &model.device()), layout, SelectionRule::Causal);
        values(forward.exit_after(1).0)
    };
    let expected = first_end(KvSharing::RecursionWise);
    for kv in BOTH {
        assert_eq!(first_end(kv), expected);
    }
}

#[test]
fn with_every_token_selected_hybrid_is_the_plain_recursive_model_and_shared_is_not() {
    let model = |kv| {
        let config = config(kv, |router| {
            router.gating = retie_config::Gating::StraightThrough;
            router.capacities.fill(1.0);
            router.thresholds = None;
        });
        CausalLm::load(&config, &golden(), &Device::flex()).unwrap()
    };
    let logits = |kv| run(&model(kv), &rows(), SelectionRule::Causal).0;
    let plain = logits(KvSharing::RecursionWise);
    assert_eq!(logits(KvSharing::Hybrid), plain);
    assert!(differences(&logits(KvSharing::Shared), &plain).0 > 0.01);
}

/// Prefill of nine tokens through eight depths: the first layer, two depths of each of three
/// recursions, the last layer.
#[test]
fn a_cache_holds_the_tokens_of_its_kv_sharing_strategy() {
    let device = Device::flex();
    let row = rows()[0][..9].to_vec();
    let cache = |kv| {
        let thirds = config(kv, |router| router.capacities = ExpertChoiceConfig::default_capacities(3));
        let model = calibrate(CausalLm::load(&thirds, &golden(), &device).unwrap(), std::slice::from_ref(&row));
        let mut cache = KvCache::for_batch(model.config(), 1, 9, &device);
        let _ = model.forward(ids(std::slice::from_ref(&row), &device), Some(&mut cache));
        cache
    };
    // Keys and values: two heads of four numbers each, in f32.
    let token = 2 * 2 * 4 * 4;
    let recursion_wise = cache(KvSharing::RecursionWise);
    assert_eq!([0, 1, 2].map(|r| recursion_wise.num_selected(r)), [None, Some(vec![6]), Some(vec![3])]);
    assert_eq!(recursion_wise.bytes(), (9 + 9 + 9 + 6 + 6 + 3 + 3 + 9) * token);
    assert_eq!(cache(KvSharing::Shared).bytes(), 4 * 9 * token);
    assert_eq!(cache(KvSharing::Hybrid).bytes(), 8 * 9 * token);
}

#[test]
fn bytes_and_operations_are_those_of_the_formulas() {
    let device = Device::flex();
    // Tokens that differ only in their order, so that selected ones are spread as the formulas
    // assume.
    let row = |seed: usize| (0..1200).map(|i: usize| ((i * i + seed * i * 7 + i / 11) % 40) as u32).collect::<Vec<_>>();
    let rows: Vec<Vec<u32>> = (0..3).map(row).collect();
    let tokens = rows[0].len();
    for kv in KvSharing::ALL.iter().copied() {
        let model = calibrate(load(kv), &rows);
        let mut cache = KvCache::for_batch(model.config(), rows.len(), tokens, &device);
        let ((_, trace), done) = counted(|| model.forward_traced(ids(&rows, &device), Some(&mut cache)));
        let full = model.config().full_recursion_cost(tokens);
        let (mut bytes, mut linear, mut attention) = (0.0, 0.0, 0.0);
        for at in (0..rows.len()).map(|row| row * tokens..(row + 1) * tokens) {
            let share = |chosen: &[usize]| chosen.iter().filter(|row| at.contains(row)).count() as f64 / tokens as f64;
            let shares: Vec<f64> =
                trace.decisions().iter().map(|decision| share(decision.selected_rows.host())).collect();
            let cost = model.config().cost(tokens, Some(&shares));
            (bytes, linear, attention) =
                (bytes + cost.cache_bytes, linear + cost.linear + cost.routers, attention + cost.attention);
        }
        let near = |what: &str, found: f64, expected: f64, tolerance: f64| {
            assert!((found / expected - 1.0).abs() < tolerance, "{kv} {what}: {found} and {expected}");
        };
        // Counts of whole tokens: exact except for the rounding of the fraction.
        near("bytes", cache.bytes() as f64, bytes, 1e-9);
        near("linear", done.linear as f64, linear, 1e-9);
        near("attention", done.attention as f64, attention, 0.01);
        near("operations", done.total() as f64, linear + attention, 0.01);
        assert!(done.total() as f64 <= 0.85 * 3.0 * (full.linear + full.attention), "{kv}: less than at full depth");
    }
}
