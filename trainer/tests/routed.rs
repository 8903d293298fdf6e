//! Uptraining a model with routers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_checkpoint::ModelSource;
use retie_config::{
    ExpertChoiceConfig, Gating, HiddenConfig, HiddenDistance, HiddenPair, KvStrategy, LossConfig, RouterBceConfig,
    RouterConfig, RouterInput, RouterNetwork, RouterScore, RouterZLossConfig, UptrainConfig,
};
use retie_convert::{Extras, add_router};
use retie_trainer::{Event, MODEL_DIR, Resume, StepRow, TrainError, read_metrics};
use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};
use support::{config, run, start};

/// The run of [`config`] on its student with routers.
fn routed(dir: &Path, gating: Gating, capacities: [f64; 2]) -> UptrainConfig {
    with_network(dir, RouterNetwork::Mlp, gating, capacities)
}

fn with_network(dir: &Path, network: RouterNetwork, gating: Gating, capacities: [f64; 2]) -> UptrainConfig {
    let mut config = config(dir);
    let source = ModelSource::open(&config.student.model).unwrap();
    let router = RouterConfig::ExpertChoice(ExpertChoiceConfig {
        network,
        input: RouterInput::Normalized,
        score: RouterScore::Sigmoid,
        alpha: gating.default_alpha(),
        gating,
        capacities: capacities.to_vec(),
        kv: KvStrategy::RecursionWise,
        auxiliary: None,
        thresholds: None,
    });
    let student = dir.join("routed");
    let extras = Extras { files: source.companions.clone(), ..Extras::default() };
    add_router(source.tensors.as_ref(), &source.config, &router, 0, &extras, &student, &mut |_| {}).unwrap();
    config.student.model = student.display().to_string();
    config.train.capacity_warmup_steps = Some(4);
    if network.has_weights() {
        config.losses.push(LossConfig::RouterBce(RouterBceConfig { weight: 0.1, weight_schedule: Vec::new() }));
        config.losses.push(LossConfig::RouterZLoss(RouterZLossConfig { weight: 0.01, weight_schedule: Vec::new() }));
    }
    config
}

fn bits(rows: &[StepRow]) -> Vec<String> {
    let row = |row: &StepRow| StepRow { seconds: 0.0, tokens_per_second: 0.0, ..row.clone() };
    rows.iter().map(|r| serde_json::to_string(&row(r)).unwrap()).collect()
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
    let mut broken = whole.clone();
    broken.run.dir = dir.path().join("broken");
    let stop = AtomicBool::new(false);
    start(&broken, "cpu", Resume::Never, &stop, &mut |event| {
        if matches!(event, Event::Step { row, .. } if row.step == 3) {
            stop.store(true, Ordering::Relaxed);
        }
    })
    .unwrap();
    start(&broken, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(&rows));
    let read = |config: &UptrainConfig, name: &str| fs_err::read(config.run.dir.join(MODEL_DIR).join(name)).unwrap();
    for name in ["model.safetensors", "config.json"] {
        assert!(read(&broken, name) == read(&whole, name), "{name}");
    }
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
    config.losses.push(LossConfig::RouterBce(RouterBceConfig { weight: 0.1, weight_schedule: Vec::new() }));
    let error = start(&config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    let TrainError::NoRouter { keys, .. } = &error else { panic!("{error}") };
    assert_eq!(keys, &["losses: router_bce", "train.capacity_warmup_steps"]);
    // Within a recursion only the tokens that go through have hidden states.
    let mut config = routed(dir.path(), Gating::StraightThrough, [1.0, 0.5]);
    let pair = HiddenPair { student: 4, teacher: 4 };
    config.losses.push(LossConfig::Hidden(HiddenConfig {
        weight: 1.0,
        weight_schedule: Vec::new(),
        distance: HiddenDistance::Mse,
        map: Some(vec![pair]),
    }));
    let error = start(&config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("after depth 4 of"), "{error}");
    assert!(!config.run.dir.exists(), "nothing is written");
}
