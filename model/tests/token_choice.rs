//! Routed models with token choice: against their own reference (`golden/make_token_choice.py`),
//! and exact properties.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod routed;

use burn::{
    module::Param,
    tensor::{Device, Tensor},
};
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow};
use retie_config::{
    ExpertChoiceConfig, Gating, IntermediateState, ModelConfig, RouterConfig, RouterNetwork, TokenChoiceConfig,
    TokenChoiceScore,
};
use retie_model::{
    CausalLm, FullRecursionWarmup, NamedVisitor, SelectionRule, balancing, decisiveness, kernels::Layout, visit_named,
    z_loss,
};
use retie_testing::{Golden, GoldenGradients, NextTokenLoss, assert_gradients, differences, ids, values};
use routed::{
    Changed, GRADIENTS, assert_caches_hold_selected_rows, assert_close, assert_decodes, flat, load, rows, run,
};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

const NAMES: [&str; 2] = ["routed_softmax", "routed_sigmoid"];

/// A golden model with a changed router configuration.
fn changed(name: &str, change: impl FnOnce(&mut TokenChoiceConfig)) -> Changed {
    Changed::new(name, |router| {
        let RouterConfig::TokenChoice(router) = router else { panic!("{router:?}") };
        change(router);
    })
}

fn plain_logits(model: &CausalLm, rows: &[Vec<u32>]) -> Vec<f32> {
    values(model.logits(model.forward(ids(rows, &model.device()), None)))
}

/// Recursion count of each token in the golden file.
fn expected_recursion_counts(golden: &Golden) -> Vec<usize> {
    golden.ints("golden.depths").0.into_iter().map(|depth| depth as usize + 1).collect()
}

#[test]
fn values_and_gradients_are_those_of_the_reference() {
    for name in NAMES {
        let golden = Golden::named(name);
        let device = Device::flex().autodiff();
        let model = CausalLm::load(&golden.config(), &golden, &device).unwrap();
        let rows = rows(name);
        let (batch, tokens) = (rows.len(), rows[0].len());
        let layout = Layout::batch(batch, tokens);
        let (hidden, routing) = model.forward_routed(flat(&rows, &device), layout, SelectionRule::Causal);
        assert_close(name, &values(model.logits(hidden.clone()).inner()), &golden.floats("golden.logits"));
        assert_eq!(routing.recursion_counts(batch * tokens), expected_recursion_counts(&golden));
        let first = &routing.decisions()[0];
        let (logits, chosen) = (first.values(), first.router_recursions.clone().unwrap());
        assert_close("router", &logits, &golden.floats("golden.router_logits"));

        // The loss of the script: cross-entropy, and the router's losses with their weights.
        let mut loss = NextTokenLoss::new(&model, hidden, &rows);
        let router = model.token_choice().unwrap();
        let outputs = logits.len() / chosen.len();
        let losses = [
            ("balancing", 0.3, balancing(&logits, &chosen, outputs, router.score, router.alpha)),
            ("z", 0.02, z_loss(&logits, outputs)),
            ("decisiveness", 0.05, decisiveness(&logits, outputs, Some(router.score))),
        ];
        let (mut total, mut grad) = (loss.nll, vec![0.0; logits.len()]);
        for (what, weight, found) in losses {
            let expected = f64::from(golden.floats(&format!("golden.{what}"))[0]);
            assert!((found.value - expected).abs() < 2e-6 * expected.max(1.0), "{what}: {} {expected}", found.value);
            total += weight * found.value;
            grad.iter_mut().zip(&found.grad).for_each(|(sum, grad)| *sum += weight as f32 * grad);
        }
        let expected = f64::from(golden.floats("golden.loss")[0]);
        assert!((total - expected).abs() < 1e-5, "{name}: loss {total} and {expected}");
        let grad = Tensor::<1>::from_floats(grad.as_slice(), &device).reshape([chosen.len(), outputs]);
        loss.graph = loss.graph + (first.logits.clone().unwrap().tensor * grad).sum();
        let expected = GoldenGradients { golden: &golden, prefix: "golden.grad.", tolerance: GRADIENTS };
        assert_gradients(&model, loss, expected);
    }
}

#[test]
fn every_gating_has_the_logits_of_the_reference() {
    for name in NAMES {
        let golden = Golden::named(name);
        for gating in Gating::ALL.iter().copied() {
            for intermediate in IntermediateState::ALL.iter().copied() {
                if (gating, intermediate) == (Gating::Additive, IntermediateState::Gated) {
                    continue;
                }
                let model =
                    changed(name, |router| (router.gating, router.intermediate) = (gating, intermediate)).load();
                let expected = format!("golden.{gating}.{intermediate}.logits");
                let (found, _) = run(&model, &rows(name), SelectionRule::Causal);
                assert_close(&expected, &found, &golden.floats(&expected));
            }
        }
    }
}

/// The second row of the golden batch has no token in the last recursion, the third has.
#[test]
fn a_row_does_not_depend_on_other_rows_or_padding() {
    for name in NAMES {
        let model = load(name);
        let rows = rows(name);
        let (tokens, width) = (rows[0].len(), model.config().vocab_size);
        let padded: Vec<Vec<u32>> =
            rows.iter().enumerate().map(|(i, row)| [&row[..tokens - 3 * i], &vec![0; 3 * i][..]].concat()).collect();
        for (batch, cut) in [(&rows, 0), (&padded, 3)] {
            let (found, _) = run(&model, batch, SelectionRule::Causal);
            for (i, row) in rows.iter().enumerate() {
                let alone = run(&model, &[row[..tokens - cut * i].to_vec()], SelectionRule::Causal).0;
                assert_close(name, &found[i * tokens * width..][..alone.len()], &alone);
            }
        }
    }
}

#[test]
fn decoding_with_ragged_caches_equals_the_whole_forward_pass() {
    let drawn = changed("routed_softmax", |router| router.network = RouterNetwork::Random);
    let drawn = ("routed_softmax", drawn.load());
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
        let (expected, _) = run(&model, std::slice::from_ref(&row), SelectionRule::Causal);
        let width = model.config().vocab_size;
        for at in [3, row.len() - 1] {
            let mut other = row.clone();
            other[at] = (other[at] + 7) % width as u32;
            let (found, _) = run(&model, &[other], SelectionRule::Causal);
            assert_close("before", &found[..at * width], &expected[..at * width]);
            assert!(differences(&found[at * width..], &expected[at * width..]).0 > 0.01, "after");
        }
    }
}

#[test]
fn a_router_without_preference_is_the_plain_recursive_model_bit_for_bit() {
    for name in NAMES {
        let rows = rows(name);
        let expected = plain_logits(&changed(name, |_| {}).unrouted().load(), &rows);
        for (gating, intermediate) in [
            (Gating::StraightThrough, IntermediateState::Plain),
            (Gating::StraightThrough, IntermediateState::Gated),
            (Gating::Delta, IntermediateState::Plain),
            (Gating::Delta, IntermediateState::Gated),
        ] {
            let changed = changed(name, |router| {
                let num_recursions = if name == "routed_softmax" { 3 } else { 2 };
                (router.gating, router.intermediate, router.biases) = (gating, intermediate, None);
                router.alpha = router.score.default_alpha(gating, num_recursions);
            });
            assert_eq!(run(&changed.without_preference().load(), &rows, SelectionRule::Causal).0, expected);
        }
    }
}

#[test]
fn weighted_gating_at_the_full_recursion_count_adds_the_gated_output_to_the_entry() {
    let rows = rows("routed_softmax");
    let device = Device::flex();
    let changed = changed("routed_softmax", |router| router.alpha = 1.5).without_preference();
    let (found, routing) = run(&changed.load(), &rows, SelectionRule::Causal);
    assert!(routing.recursion_counts(rows.len() * rows[0].len()).iter().all(|depth| *depth == 3));
    // A softmax over three equal logits, times 1.5: the gate is one half.
    let plain = changed.unrouted().load();
    let packed = plain.row_context(Layout::batch(rows.len(), rows[0].len()));
    let last = plain.share_map().num_depths() - 1;
    let entered = plain.run_depths(plain.embed(flat(&rows, &device)), 0..1, &packed);
    let left = plain.run_depths(entered.clone(), 1..last, &packed);
    let x = plain.run_depths(entered + left * 0.5, last..last + 1, &packed);
    assert_close("weighted", &found, &values(plain.logits(plain.norm(x))));
}

#[test]
fn a_warm_up_sends_a_part_of_the_tokens_through_every_recursion() {
    for name in NAMES {
        let model = load(name);
        let rows = rows(name);
        let count = rows.len() * rows[0].len();
        let depths = |part| run(&model, &rows, SelectionRule::Warmup(FullRecursionWarmup { part, step: 1 })).1;
        let by_router = expected_recursion_counts(&Golden::named(name));
        assert_eq!(depths(0.0).recursion_counts(count), by_router);
        let deepest = *by_router.iter().max().unwrap();
        let all = depths(1.0);
        assert_eq!(all.recursion_counts(count), vec![deepest; count]);
        // The trace has the router's choice, without the changes of the warm-up.
        let chosen: Vec<usize> =
            all.decisions()[0].router_recursions.iter().flat_map(|by_router| by_router.iter()).map(|i| i + 1).collect();
        assert_eq!(chosen, by_router);
        let some = depths(0.5).recursion_counts(count);
        assert!(some.iter().zip(&by_router).all(|(some, by_router)| some == by_router || *some == deepest));
        assert!(some != by_router && some.iter().sum::<usize>() < deepest * count);
    }
}

#[test]
fn biases_change_selections_and_not_gates() {
    let name = "routed_softmax";
    let rows = rows(name);
    let forced = |depth: usize| {
        changed(name, move |router| {
            let mut biases = vec![0.0; 3];
            biases[depth] = 10.0;
            router.biases = Some(biases);
            router.score = TokenChoiceScore::Softmax;
        })
        .load()
    };
    let (_, unbiased) = run(&load(name), &rows, SelectionRule::Causal);
    for depth in 0..3 {
        let (_, routing) = run(&forced(depth), &rows, SelectionRule::Causal);
        assert!(routing.recursion_counts(rows.len() * rows[0].len()).iter().all(|found| *found == depth + 1));
        assert_eq!(routing.decisions()[0].values(), unbiased.decisions()[0].values());
    }
}

/// Expert choice with auxiliary routers, on the golden model without them.
#[test]
fn an_auxiliary_router_selects_at_inference_and_gives_the_body_no_gradient() {
    struct WithAuxiliary {
        golden: Golden,
        config: ModelConfig,
        infos: BTreeMap<String, TensorInfo>,
    }
    impl TensorSource for WithAuxiliary {
        fn names(&self) -> Vec<&str> {
            self.golden.weight_names().into_iter().chain(self.infos.keys().map(String::as_str)).collect()
        }
        fn info(&self, name: &str) -> Option<&TensorInfo> {
            self.infos.get(name).or_else(|| self.golden.info(name))
        }
        fn path_of(&self, name: &str) -> &Path {
            self.golden.path_of(name)
        }
        fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
            match self.infos.get(name) {
                // Negates the first channel, so that it selects differently from the router.
                Some(info) => {
                    let values: Vec<f32> = (0..info.shape[1]).map(|i| if i == 0 { -1.0 } else { 0.0 }).collect();
                    Ok(narrow(&values, Dtype::F32).into())
                }
                None => self.golden.bytes(name),
            }
        }
    }
    let golden = Golden::named("routed_mlp");
    let mut config = golden.config();
    let Some(RouterConfig::ExpertChoice(router)) = &mut config.recursion.as_mut().unwrap().router else { panic!() };
    router.auxiliary = Some(RouterNetwork::Linear);
    router.thresholds = Some(vec![None, Some(0.0), Some(0.0)]);
    let info = || TensorInfo { dtype: Dtype::F32, shape: vec![1, 16] };
    let infos = (0..3).map(|r| (format!("model.auxiliary_routers.{r}.out_proj.weight"), info())).collect();
    let source = WithAuxiliary { golden, config, infos };
    let device = Device::flex().autodiff();
    let model = CausalLm::load(&source.config, &source, &device).unwrap();
    let rows = rows("routed_mlp");
    let layout = || Layout::batch(rows.len(), rows[0].len());
    let (_, causal) = model.forward_routed(flat(&rows, &device), layout(), SelectionRule::Causal);
    for decision in causal.decisions().iter().skip(1) {
        let above: Vec<bool> = decision.auxiliary_values().into_iter().map(|u| u > 0.0).collect();
        assert_eq!(decision.mask(), above);
    }
    // Top-k goes by the router.
    let capacities = model.expert_choice().unwrap().capacities.clone();
    let (_, top) = model.forward_routed(flat(&rows, &device), layout(), SelectionRule::TopK(capacities.clone()));
    let expected = source.golden.ints("golden.chosen.1").0;
    assert_eq!(
        **top.decisions()[1].selected_rows.host(),
        expected.into_iter().map(|row| row as usize).collect::<Vec<_>>()
    );
    assert_eq!(
        top.decisions()[1].selected_rows.len(),
        rows.len() * ExpertChoiceConfig::tokens(capacities[1], rows[0].len())
    );
    let sums = top
        .decisions()
        .iter()
        .filter_map(|decision| decision.auxiliary_logits.clone())
        .map(|u| u.tensor.square().sum());
    let mut grads = sums.reduce(|a, b| a + b).unwrap().backward();
    struct Visitor<'a>(&'a mut burn::tensor::Gradients, Vec<String>);
    impl NamedVisitor for Visitor<'_> {
        fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            if param.val().grad_remove(self.0).is_some() {
                self.1.push(name.to_owned());
            }
        }
    }
    let mut visitor = Visitor(&mut grads, Vec::new());
    visit_named(&model, &mut visitor);
    assert_eq!(visitor.1, source.infos.keys().cloned().collect::<Vec<_>>());
}
