//! Keys and values across recursions: against a reference of their own (`golden/make_kv.py`), caches that hold what they should and no
//! more, and what a strategy costs beside its formula.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Tensor},
};
use retie_config::{ExpertChoiceConfig, KvStrategy, ModelConfig, RouterConfig};
use retie_model::{
    CausalLm, Choice, KvCache, Routing, calibrate,
    kernels::{CrossEntropyTerm, HeadLoss, HeadTerms, Layout, Readout, counted, head_loss},
};
use support::{
    Golden, differences, ids,
    routed::{self, GRADIENTS, assert_close, flat, run, top_k},
    values,
};

const BOTH: [KvStrategy; 2] = [KvStrategy::Shared, KvStrategy::Hybrid];

fn golden() -> Golden {
    Golden::named("routed_kv")
}

fn config(change: impl FnOnce(&mut ExpertChoiceConfig)) -> ModelConfig {
    let mut config = golden().config();
    let Some(RouterConfig::ExpertChoice(router)) = &mut config.recursion.as_mut().unwrap().router else { panic!() };
    change(router);
    config
}

fn load(kv: KvStrategy) -> CausalLm {
    CausalLm::load(&config(|router| router.kv = kv), &golden(), &Device::flex()).unwrap()
}

fn rows() -> Vec<Vec<u32>> {
    routed::rows("routed_kv")
}

#[test]
fn later_recursions_have_the_values_of_the_reference() {
    for kv in BOTH {
        let (model, rows) = (load(kv), rows());
        for (choice, name) in [(top_k(&model), "logits"), (Choice::Threshold, "threshold.logits")] {
            let name = format!("golden.{kv}.{name}");
            assert_close(&name, &run(&model, &rows, choice).0, &golden().floats(&name));
        }
    }
}

/// Those of k and v come from the first recursion alone with `shared`: the reference has no others.
#[test]
fn gradients_are_those_of_the_reference() {
    struct Visitor {
        path: Vec<String>,
        grads: burn::tensor::Gradients,
        tied_head: Vec<f32>,
        golden: Golden,
        kv: KvStrategy,
    }
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let name = self.path.join(".");
            let expected = self.golden.floats(&format!("golden.{}.grad.{name}", self.kv));
            let mut grad = values(param.val().grad_remove(&mut self.grads).expect(&name));
            if name == "model.embed_tokens.weight" {
                grad.iter_mut().zip(&self.tied_head).for_each(|(grad, head)| *grad += head);
            }
            let scale = expected.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
            let (max, _) = differences(&grad, &expected);
            assert!(max <= GRADIENTS * scale, "{}: gradient of {name} differs by {max}, scale {scale}", self.kv);
        }
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
    }
    for kv in BOTH {
        let device = Device::flex().autodiff();
        let config = config(|router| router.kv = kv);
        let model = CausalLm::load(&config, &golden(), &device).unwrap();
        let rows = rows();
        let (batch, tokens, width) = (rows.len(), rows[0].len(), config.hidden_size);
        let (hidden, _) = model.forward_routed(flat(&rows, &device), Layout::batch(batch, tokens), top_k(&model));
        let hidden = hidden.reshape([batch, tokens, width]).narrow(1, 0, tokens - 1);
        let hidden = hidden.reshape([batch * (tokens - 1), width]);
        let targets: Vec<u32> = rows.iter().flat_map(|row| row[1..].to_vec()).collect();
        let cross_entropy = CrossEntropyTerm { weight: 1.0, ..Default::default() };
        let terms = HeadTerms { cross_entropy, ..Default::default() };
        let readout = Readout { hidden: hidden.clone().inner(), terms };
        let HeadLoss { mut readouts, grad_weight } = head_loss(model.head().inner(), &[readout], None, &targets);
        let head = readouts.remove(0);
        let expected = f64::from(golden().floats(&format!("golden.{kv}.loss"))[0]);
        assert!((head.values.nll - expected).abs() < 1e-5, "{kv}: loss {} and {expected}", head.values.nll);
        let grads = (hidden * Tensor::from_inner(head.grad_hidden)).sum().backward();
        model.visit(&mut Visitor { path: Vec::new(), grads, tied_head: values(grad_weight), golden: golden(), kv });
    }
}

#[test]
fn decoding_equals_the_whole_forward_pass_with_every_strategy() {
    for kv in KvStrategy::ALL.iter().copied() {
        let (model, rows, device) = (load(kv), rows(), Device::flex());
        let (batch, tokens) = (rows.len(), rows[0].len());
        let (expected, _) = run(&model, &rows, Choice::Threshold);
        let width = model.config().vocab_size;
        for prompt in [1, 5, tokens] {
            let mut cache = KvCache::new(model.config(), batch, tokens, &device);
            let mut at = 0;
            while at < tokens {
                let count = if at == 0 { prompt } else { 1 };
                let step: Vec<Vec<u32>> = rows.iter().map(|row| row[at..at + count].to_vec()).collect();
                let logits = values(model.logits(model.forward(ids(&step, &device), Some(&mut cache))));
                for (row, logits) in logits.chunks(count * width).enumerate() {
                    let from = (row * tokens + at) * width;
                    assert_close(kv.name(), logits, &expected[from..from + count * width]);
                }
                at += count;
            }
        }
    }
}

#[test]
fn padding_later_tokens_and_neighbours_do_not_matter() {
    for kv in BOTH {
        let (model, rows) = (load(kv), rows());
        let (tokens, width) = (rows[0].len(), model.config().vocab_size);
        let padded: Vec<Vec<u32>> =
            rows.iter().enumerate().map(|(i, row)| [&row[..tokens - 3 * i], &vec![0; 3 * i][..]].concat()).collect();
        let (batch, _) = run(&model, &padded, Choice::Threshold);
        for (i, row) in rows.iter().enumerate() {
            let alone = run(&model, &[row[..tokens - 3 * i].to_vec()], Choice::Threshold).0;
            assert_close(kv.name(), &batch[i * tokens * width..][..alone.len()], &alone);
        }
        // Two ends of one beginning, which is read once.
        let all = [&rows[0][..6], &rows[0][6..11], &rows[1][2..4]].concat();
        let layout = Layout::packed([(6, 0..0), (5, 0..6), (2, 0..6)]);
        let logits = values(model.logits(model.forward_packed(flat(&[all], &model.device()), layout)));
        let alone = |ids: &[&[u32]]| run(&model, &[ids.concat()], Choice::Threshold).0;
        assert_close("first", &logits[..11 * width], &alone(&[&rows[0][..11]]));
        assert_close("second", &logits[11 * width..], &alone(&[&rows[0][..6], &rows[1][2..4]])[6 * width..]);
    }
}

#[test]
fn a_model_of_one_recursion_has_nothing_to_share() {
    let first_end = |model: &CausalLm| model.until(model.share_map().recursion_ends().unwrap()[0]);
    let expected = run(&first_end(&load(KvStrategy::RecursionWise)), &rows(), Choice::Threshold).0;
    for kv in BOTH {
        assert_eq!(run(&first_end(&load(kv)), &rows(), Choice::Threshold).0, expected);
    }
}

#[test]
fn where_every_token_goes_through_hybrid_is_the_plain_recursive_model_and_shared_is_not() {
    let model = |kv| {
        let config = config(|router| {
            (router.kv, router.gating) = (kv, retie_config::Gating::StraightThrough);
            router.capacities.fill(1.0);
            router.thresholds = None;
        });
        CausalLm::load(&config, &golden(), &Device::flex()).unwrap()
    };
    let logits = |kv| run(&model(kv), &rows(), Choice::Threshold).0;
    let plain = logits(KvStrategy::RecursionWise);
    assert_eq!(logits(KvStrategy::Hybrid), plain);
    assert!(differences(&logits(KvStrategy::Shared), &plain).0 > 0.01);
}

/// Prefill of nine tokens through eight depths: the first layer, two of each of three recursions, the last layer.
#[test]
fn a_cache_holds_the_tokens_that_its_strategy_says() {
    let device = Device::flex();
    let row = rows()[0][..9].to_vec();
    let cache = |kv| {
        let thirds = config(|router| (router.kv, router.capacities) = (kv, ExpertChoiceConfig::default_capacities(3)));
        let model = calibrate(CausalLm::load(&thirds, &golden(), &device).unwrap(), std::slice::from_ref(&row));
        let mut cache = KvCache::new(model.config(), 1, 9, &device);
        let _ = model.forward(ids(std::slice::from_ref(&row), &device), Some(&mut cache));
        cache
    };
    // Of keys and of values, two heads of four numbers in f32.
    let token = 2 * 2 * 4 * 4;
    let own = cache(KvStrategy::RecursionWise);
    assert_eq!([0, 1, 2].map(|r| own.reached(r).map(<[usize]>::to_vec)), [None, Some(vec![6]), Some(vec![3])]);
    assert_eq!(own.bytes(), (9 + 9 + 9 + 6 + 6 + 3 + 3 + 9) * token);
    assert_eq!(cache(KvStrategy::Shared).bytes(), 4 * 9 * token);
    assert_eq!(cache(KvStrategy::Hybrid).bytes(), 8 * 9 * token);
}

#[test]
fn bytes_and_operations_are_those_of_the_formulas() {
    let device = Device::flex();
    // Tokens that differ in their order only, so that chosen ones are spread as the formulas assume.
    let row = |seed: usize| (0..1200).map(|i: usize| ((i * i + seed * i * 7 + i / 11) % 40) as u32).collect::<Vec<_>>();
    let rows: Vec<Vec<u32>> = (0..3).map(row).collect();
    let tokens = rows[0].len();
    for kv in KvStrategy::ALL.iter().copied() {
        let model = calibrate(load(kv), &rows);
        let mut cache = KvCache::new(model.config(), rows.len(), tokens, &device);
        let mut routing = Routing::default();
        let (_, done) = counted(|| model.forward_with(ids(&rows, &device), Some(&mut cache), &mut routing));
        let full = model.config().cost(tokens, None).unwrap();
        let (mut bytes, mut linear, mut attention) = (0.0, 0.0, 0.0);
        for at in (0..rows.len()).map(|row| row * tokens..(row + 1) * tokens) {
            let share = |chosen: &[usize]| chosen.iter().filter(|row| at.contains(row)).count() as f64 / tokens as f64;
            let shares: Vec<f64> = routing.decisions().iter().map(|decision| share(&decision.chosen)).collect();
            let cost = model.config().cost(tokens, Some(&shares)).unwrap();
            (bytes, linear, attention) = (bytes + cost.cache_bytes, linear + cost.linear, attention + cost.attention);
        }
        let near = |what: &str, found: f64, expected: f64, tolerance: f64| {
            assert!((found / expected - 1.0).abs() < tolerance, "{kv} {what}: {found} and {expected}");
        };
        // Counts of whole tokens: exact but for the rounding of a share.
        near("bytes", cache.bytes() as f64, bytes, 1e-9);
        near("linear", done.linear as f64, linear, 1e-9);
        near("attention", done.attention as f64, attention, 0.01);
        near("operations", done.total() as f64, linear + attention, 0.01);
        assert!(done.total() as f64 <= 0.85 * 3.0 * (full.linear + full.attention), "{kv}: less than at full depth");
    }
}
