//! Uptraining a model with routers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_checkpoint::ModelSource;
use retie_config::{
    AuxiliaryRouterBceConfig, ExpertChoiceConfig, Gating, GroupConfig, HiddenConfig, HiddenPair, IntermediateState,
    LossTerm, RouterBalancingConfig, RouterBceConfig, RouterConfig, RouterDecisivenessConfig, RouterInput,
    RouterNetwork, RouterZLossConfig, TokenChoiceConfig, TokenChoiceScore, UptrainConfig,
};
use retie_trainer::{MODEL_DIR, Resume, StepRow, TrainError, read_metrics};
use std::{path::Path, sync::atomic::AtomicBool};
use support::{bits, config, run, start, stop_after, with_router};

/// The run of [`config`] on its student with routers.
fn routed(dir: &Path, gating: Gating, capacities: [f64; 2]) -> UptrainConfig {
    with_network(dir, RouterNetwork::Mlp, gating, capacities)
}

fn with_network(dir: &Path, network: RouterNetwork, gating: Gating, capacities: [f64; 2]) -> UptrainConfig {
    let mut config = with_router(dir, &expert_choice(network, gating, capacities));
    config.train.capacity_warmup_steps = Some(4);
    if network.has_weights() {
        config.losses.push(LossTerm::new(0.1, RouterBceConfig {}));
        config.losses.push(LossTerm::new(0.01, RouterZLossConfig {}));
    }
    config
}

fn expert_choice(network: RouterNetwork, gating: Gating, capacities: [f64; 2]) -> RouterConfig {
    RouterConfig::ExpertChoice(ExpertChoiceConfig {
        network,
        input: RouterInput::Normalized,
        alpha: gating.default_alpha(),
        gating,
        capacities: capacities.to_vec(),
        ..ExpertChoiceConfig::new(2)
    })
}

/// The same where tokens choose their depth, with every loss that they can have.
fn token_choice(dir: &Path, gating: Gating, intermediate: IntermediateState) -> UptrainConfig {
    let router = RouterConfig::TokenChoice(TokenChoiceConfig {
        network: RouterNetwork::Mlp,
        input: RouterInput::Normalized,
        alpha: TokenChoiceScore::Softmax.default_alpha(gating, 2),
        gating,
        intermediate,
        ..TokenChoiceConfig::default()
    });
    let mut config = with_router(dir, &router);
    config.losses.push(LossTerm::new(0.1, RouterBalancingConfig {}));
    config.losses.push(LossTerm::new(0.01, RouterZLossConfig {}));
    config.losses.push(LossTerm::new(0.02, RouterDecisivenessConfig {}));
    config.train.full_recursion_warmup_steps = Some(3);
    config.train.loss_free_balancing = Some(0.01);
    config
}

/// The run `whole`, whose rows are `rows`, stopped after three steps and resumed, is the same.
fn assert_resumes(dir: &Path, whole: &UptrainConfig, rows: &[StepRow]) {
    let mut broken = whole.clone();
    broken.run.dir = dir.join("broken");
    stop_after(&broken, 3);
    start(&broken, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(rows));
    let read = |config: &UptrainConfig, name: &str| fs_err::read(config.run.dir.join(MODEL_DIR).join(name)).unwrap();
    for name in ["model.safetensors", "config.json"] {
        assert!(read(&broken, name) == read(whole, name), "{name}");
    }
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit_and_its_model_has_thresholds() {
    let dir = tempfile::tempdir().unwrap();
    let whole = routed(dir.path(), Gating::StraightThrough, [1.0, 0.5]);
    let rows = run(&whole, "cpu");
    for name in ["distill", "router_bce"] {
        let [first, last] = [&rows[0], &rows[5]].map(|row| row.terms[name]);
        assert!(last < first, "{name}: {first} and {last}");
    }
    assert_resumes(dir.path(), &whole, &rows);
    let held = rows[5].heldout_routing.as_ref().unwrap();
    assert!(held.same_recursions.unwrap() > 0.5 && held.inference.taken[0] == 1.0, "{held:?}");
    let trained = rows[5].routing.as_ref().unwrap();
    assert_eq!((trained.mean_recursions, trained.sampling_accuracy.len()), (1.5, 2));
    let model = ModelSource::open(whole.run.dir.join(MODEL_DIR).to_str().unwrap()).unwrap();
    let Some(RouterConfig::ExpertChoice(router)) = model.config.recursion.unwrap().router else { panic!() };
    assert_eq!([router.threshold(0).is_none(), router.threshold(1).is_none()], [true, false]);
    assert!(router.thresholds.is_some());
    // The router has learned: at a gate of 1 its gradient is that of what the block adds.
    let weight = |folder: &str| {
        let source = ModelSource::open(folder).unwrap();
        source.tensors.read_f32("model.routers.1.out_proj.weight").unwrap()
    };
    assert_ne!(weight(&whole.student.model), weight(whole.run.dir.join(MODEL_DIR).to_str().unwrap()));
}

#[test]
fn computing_each_recursion_again_changes_nothing() {
    let gatings = [Gating::StraightThrough, Gating::Delta, Gating::Weighted];
    let networks = gatings.map(|gating| (RouterNetwork::Mlp, gating));
    for (network, gating) in networks.into_iter().chain([(RouterNetwork::Random, Gating::Weighted)]) {
        let dir = tempfile::tempdir().unwrap();
        let whole = with_network(dir.path(), network, gating, [1.0, 0.5]);
        let mut parts = whole.clone();
        parts.run.dir = dir.path().join("parts");
        parts.train.checkpoint_recursions = true;
        let (whole, parts) = (run(&whole, "cpu"), run(&parts, "cpu"));
        for (a, b) in whole.iter().zip(&parts) {
            for (what, a, b) in [("loss", a.loss, b.loss), ("gradient norm", a.grad_norm, b.grad_norm)] {
                // Rounding of f32, carried through six steps.
                assert!((a - b).abs() <= 2e-5 * a.abs(), "{gating} {what} {a} and {b}");
            }
        }
    }
}

#[test]
fn tokens_that_choose_a_depth_are_trained_balanced_and_resumed_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let whole = token_choice(dir.path(), Gating::StraightThrough, IntermediateState::Plain);
    let rows = run(&whole, "cpu");
    assert_resumes(dir.path(), &whole, &rows);
    let mut plain = config(dir.path());
    plain.run.dir = dir.path().join("plain");
    plain.train.steps = Some(1);
    // The router has no preference before it has learned, and of equals the deepest is chosen.
    assert_eq!(rows[0].cross_entropy, run(&plain, "cpu")[0].cross_entropy);
    assert!(rows.iter().all(|row| row.terms["router_balancing"] > 0.0 && row.terms["router_decisiveness"] <= 1.0));
    let choice = rows[0].routing.as_ref().unwrap().token_choice.as_ref().unwrap();
    assert_eq!((choice.load.as_slice(), choice.max_vio), ([0.0, 1.0].as_slice(), 1.0));
    assert!(rows[5].heldout_routing.as_ref().unwrap().same_recursions.is_none());
    let mut one = whole.clone();
    (one.run.dir, one.train.steps) = (dir.path().join("one"), Some(1));
    run(&one, "cpu");
    let model = ModelSource::open(one.run.dir.join(MODEL_DIR).to_str().unwrap()).unwrap();
    let Some(RouterConfig::TokenChoice(router)) = model.config.recursion.unwrap().router else { panic!() };
    // Towards the depth that nobody chose.
    assert_eq!(router.biases, Some(vec![0.01, -0.01]));
}

#[test]
fn recursions_of_chosen_depths_run_again_change_nothing() {
    for (gating, intermediate) in [
        (Gating::StraightThrough, IntermediateState::Plain),
        (Gating::Weighted, IntermediateState::Gated),
        (Gating::Delta, IntermediateState::Gated),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let whole = token_choice(dir.path(), gating, intermediate);
        let mut parts = whole.clone();
        parts.run.dir = dir.path().join("parts");
        parts.train.checkpoint_recursions = true;
        let (whole, parts) = (run(&whole, "cpu"), run(&parts, "cpu"));
        for (a, b) in whole.iter().zip(&parts) {
            for (what, a, b) in [("loss", a.loss, b.loss), ("gradient norm", a.grad_norm, b.grad_norm)] {
                // Rounding of f32, carried through six steps.
                assert!((a - b).abs() <= 2e-5 * a.abs(), "{gating} {what} {a} and {b}");
            }
        }
    }
}

#[test]
fn micro_batches_do_not_change_losses_that_are_means_over_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = routed(dir.path(), Gating::Delta, [1.0, 0.5]);
    parts.losses.push(LossTerm::new(0.05, RouterDecisivenessConfig {}));
    parts.train.capacity_warmup_steps = None;
    parts.train.steps = Some(1);
    let mut one = parts.clone();
    (one.run.dir, one.train.batch_size, one.train.gradient_accumulation) = (dir.path().join("one"), 4, 1);
    let (parts, one) = (run(&parts, "cpu").remove(0), run(&one, "cpu").remove(0));
    let terms = parts.terms.iter().map(|(name, value)| (name.as_str(), *value, one.terms[name]));
    for (what, a, b) in terms.chain([("loss", parts.loss, one.loss), ("norm", parts.grad_norm, one.grad_norm)]) {
        // Sums of f32 in another order.
        assert!((a - b).abs() <= 1e-5 * a.abs(), "{what} {a} and {b}");
    }
    assert_eq!(parts.routing, one.routing);
}

#[test]
fn auxiliary_routers_learn_and_change_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut router = expert_choice(RouterNetwork::Linear, Gating::StraightThrough, [1.0, 0.5]);
    let RouterConfig::ExpertChoice(with) = &mut router else { panic!() };
    with.auxiliary = Some(RouterNetwork::Mlp);
    let mut learning = with_router(dir.path(), &router);
    learning.train.eval_every = 0;
    learning.optimizer.max_grad_norm = 0.01;
    learning.optimizer.groups.auxiliary_routers = GroupConfig { lr: 10.0, ..GroupConfig::default() };
    learning.losses.push(LossTerm::new(1.0, AuxiliaryRouterBceConfig {}));
    let mut frozen = learning.clone();
    frozen.run.dir = dir.path().join("frozen");
    frozen.optimizer.groups.auxiliary_routers.lr = 0.0;
    let (learning, frozen) = (run(&learning, "cpu"), run(&frozen, "cpu"));
    for (a, b) in learning.iter().zip(&frozen) {
        assert_eq!(
            (a.cross_entropy, a.terms["distill"], a.grad_norm),
            (b.cross_entropy, b.terms["distill"], b.grad_norm)
        );
    }
    assert!(learning[5].terms["auxiliary_router_bce"] < frozen[5].terms["auxiliary_router_bce"]);
}

#[test]
fn settings_of_another_kind_of_router_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |config: &UptrainConfig| {
        start(config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap_err().to_string()
    };
    let good = token_choice(dir.path(), Gating::Weighted, IntermediateState::Plain);
    let mut config = good.clone();
    config.train.capacity_warmup_steps = Some(2);
    let error = refused(&config);
    assert!(error.starts_with("`train.capacity_warmup_steps` is of `expert_choice` routers"), "{error}");
    for loss in [LossTerm::new(0.1, RouterBceConfig {}), LossTerm::new(0.1, AuxiliaryRouterBceConfig {})] {
        let mut config = good.clone();
        config.losses.push(loss);
        let error = refused(&config);
        assert!(error.contains("is routed with `token_choice`, expected"), "{error}");
    }
    let other = tempfile::tempdir().unwrap();
    let good = routed(other.path(), Gating::Weighted, [1.0, 0.5]);
    let mut config = good.clone();
    config.train.loss_free_balancing = Some(0.01);
    let error = refused(&config);
    assert!(error.starts_with("`train.loss_free_balancing` is of `token_choice` routers"), "{error}");
    let mut config = good;
    config.losses.push(LossTerm::new(0.1, RouterBalancingConfig {}));
    let error = refused(&config);
    assert!(error.contains("is routed with `expert_choice`, expected `token_choice`"), "{error}");
    assert!(!config.run.dir.exists(), "nothing is written");
}

#[test]
fn at_a_gate_of_one_and_a_capacity_of_one_the_first_step_is_that_of_the_model_without_routers() {
    let dir = tempfile::tempdir().unwrap();
    let routed = routed(dir.path(), Gating::StraightThrough, [1.0, 1.0]);
    let mut plain = config(dir.path());
    plain.run.dir = dir.path().join("plain");
    let (routed, plain) = (run(&routed, "cpu"), run(&plain, "cpu"));
    assert_eq!(
        (routed[0].cross_entropy, routed[0].terms["distill"]),
        (plain[0].cross_entropy, plain[0].terms["distill"])
    );
}

#[test]
fn settings_of_routers_for_a_model_without_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.train.capacity_warmup_steps = Some(4);
    config.losses.push(LossTerm::new(0.1, RouterBceConfig {}));
    let error = start(&config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    let TrainError::NoRouter { keys, .. } = &error else { panic!("{error}") };
    assert_eq!(keys, &["losses: router_bce", "train.capacity_warmup_steps"]);
    // Within a recursion only the tokens that go through have hidden states.
    let mut config = routed(dir.path(), Gating::StraightThrough, [1.0, 0.5]);
    let pair = HiddenPair { student: 4, teacher: 4 };
    config.losses.push(LossTerm::new(1.0, HiddenConfig { map: Some(vec![pair]), ..HiddenConfig::default() }));
    let error = start(&config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("after depth 4 of"), "{error}");
    assert!(!config.run.dir.exists(), "nothing is written");
}
