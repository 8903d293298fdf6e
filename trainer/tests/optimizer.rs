//! Muon, frozen starts, averaged weights and schedules to zero in runs: each does what it says, and
//! a stopped run goes on bit for bit with any of them and with all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_checkpoint::{ModelSource, SafetensorsFile, TensorSource};
use retie_config::{
    AdjustLr, Average, DecayType, LinearConfig, LossTerm, MuonConfig, OptimizerKind, ParameterGroup, RouterBceConfig,
    ScheduleConfig, UptrainConfig, WarmupStableDecayConfig,
};
use retie_trainer::{MODEL_DIR, Resume, TrainError, estimate, read_metrics};
use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicBool};
use support::{all_together, bits, config, expert_choice, muon, run, start, stop_after, with_router};

type Tensors = BTreeMap<String, Vec<f32>>;
type Change = fn(&mut UptrainConfig);

/// The weights of a model folder.
fn tensors(folder: &Path) -> Tensors {
    let source = ModelSource::open(folder.to_str().unwrap()).unwrap();
    let names = source.tensors.names().into_iter().map(str::to_owned);
    names.map(|name| (name.clone(), source.tensors.read_f32(&name).unwrap())).collect()
}

fn model(config: &UptrainConfig) -> Tensors {
    tensors(&config.run.dir.join(MODEL_DIR))
}

fn checkpoint(config: &UptrainConfig, step: u64) -> Tensors {
    tensors(&config.run.dir.join(format!("ckpt/step-{step}")))
}

/// Names of the tensors of the optimizer in the checkpoint of a step.
fn state_names(config: &UptrainConfig, step: u64) -> Vec<String> {
    let path = config.run.dir.join(format!("ckpt/step-{step}/optimizer.safetensors"));
    SafetensorsFile::open(&path).unwrap().names().into_iter().map(str::to_owned).collect()
}

/// `config` with a folder of its own.
fn named(config: &UptrainConfig, dir: &Path, name: &str) -> UptrainConfig {
    let mut config = config.clone();
    config.run.dir = dir.join(name);
    config
}

/// `config` with a checkpoint of every step.
fn with_every_step(mut config: UptrainConfig) -> UptrainConfig {
    (config.train.checkpoint_every, config.train.keep_last) = (1, 6);
    config
}

fn is_matrix_of_a_layer(name: &str) -> bool {
    name.starts_with("model.layers.") && name.ends_with("_proj.weight")
}

#[test]
fn muon_moves_the_matrices_of_layers_and_adamw_everything_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut adamw = config(dir.path());
    adamw.train.steps = Some(2);
    adamw.train.checkpoint_every = 1;
    let mut with_muon = named(&adamw, dir.path(), "muon");
    with_muon.optimizer.kind = muon(false);
    let rows = [&adamw, &with_muon].map(|config| run(config, "cpu"));
    let start = tensors(&dir.path().join("student"));
    let [plain, moved] = [&adamw, &with_muon].map(|config| checkpoint(config, 1));
    let lr = rows[0][0].lr;
    let mut num_matrices = 0;
    for (name, before) in &start {
        if !is_matrix_of_a_layer(name) {
            // The first step has the same gradients and the same norm that clips them.
            assert_eq!(plain[name], moved[name], "{name}");
            continue;
        }
        num_matrices += 1;
        let source = ModelSource::open(dir.path().join("student").to_str().unwrap()).unwrap();
        let shape = &source.tensors.info(name).unwrap().shape;
        let (rows, columns) = (shape[0] as f64, shape[1] as f64);
        let keep = 1.0 - lr * with_muon.optimizer.weight_decay;
        let squares: f64 =
            before.iter().zip(&moved[name]).map(|(x, y)| (f64::from(*y) - f64::from(*x) * keep).powi(2)).sum();
        // An orthogonal matrix has the norm √min(rows, columns); the iteration leaves singular
        // values of about 0.7 to 1.2, and fewer where the gradient has a smaller rank.
        let size = squares.sqrt() / (lr * 0.2 * rows.max(columns).sqrt() * rows.min(columns).sqrt());
        assert!((0.5..1.25).contains(&size), "{name}: {size}");
    }
    assert!(num_matrices > 0 && rows[1][1].loss < rows[1][0].loss, "{num_matrices} matrices, {:?}", rows[1]);
    for name in state_names(&with_muon, 2) {
        let (buffer, name) = name.split_once('.').unwrap();
        assert_eq!(buffer == "momentum", is_matrix_of_a_layer(name), "{buffer}.{name}");
    }
}

#[test]
fn muon_moves_the_factors_of_lora_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.train.steps = Some(2);
    config.optimizer.kind = muon(true);
    run(&config, "cpu");
    let names = state_names(&config, 2);
    let buffers: Vec<&str> =
        names.iter().filter(|name| name.contains(".lora_")).map(|name| name.split_once('.').unwrap().0).collect();
    assert!(!buffers.is_empty() && buffers.iter().all(|buffer| *buffer == "momentum"), "{names:?}");
}

#[test]
fn a_group_with_a_frozen_start_stays_as_it_is_and_then_begins_with_whole_steps() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = with_every_step(config(dir.path()));
    config.optimizer.groups.norms.freeze_until = 2;
    config.optimizer.groups.shared.freeze_until = 4;
    let rows = run(&config, "cpu");
    let student = tensors(&dir.path().join("student"));
    let steps: Vec<Tensors> = (1..=6).map(|step| checkpoint(&config, step)).collect();
    let before = |step: usize| step.checked_sub(1).map_or(&student, |step| &steps[step]);
    let mut counts = [0; 2];
    for name in student.keys() {
        let frozen = match name {
            name if name.contains("norm") => 2,
            name if is_matrix_of_a_layer(name) => 4,
            _ => 0,
        };
        for (index, after) in steps.iter().enumerate() {
            let (x, y) = (&before(index)[name], &after[name]);
            assert_eq!(x == y, index < frozen, "{name} in step {}", index + 1);
            if frozen > 0 && index == frozen {
                counts[usize::from(frozen == 4)] += 1;
                // The first step of AdamW is as large as the rate for every element with a gradient
                // far above `eps`, since the moments' bias is corrected by their own age; by the
                // age of the run it would be 0.45 of that. Weight decay adds 1 % of a weight.
                let largest = x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0f32, f32::max);
                let size = f64::from(largest) / rows[index].lr;
                assert!((0.9..1.1).contains(&size), "{name}: {size}");
            }
        }
    }
    assert!(counts.iter().all(|count| *count > 0));
    for row in &rows {
        let norms = &row.telemetry.as_ref().unwrap().grad_norm;
        assert_eq!(norms.contains_key("norms"), row.step > 2, "step {}", row.step);
        assert_eq!(norms.contains_key("shared"), row.step > 4, "step {}", row.step);
    }
}

/// Largest difference of a tensor from the mean of those in `parts` with the given weights.
fn distance_from_mean(found: &Tensors, parts: &[(f64, Tensors)]) -> f64 {
    let total: f64 = parts.iter().map(|(weight, _)| weight).sum();
    let mut largest = 0.0f64;
    for (name, values) in found {
        for (at, value) in values.iter().enumerate() {
            let mean: f64 = parts.iter().map(|(weight, part)| weight * f64::from(part[name][at])).sum::<f64>() / total;
            largest = largest.max((f64::from(*value) - mean).abs());
        }
    }
    largest
}

#[test]
fn the_finished_model_is_the_average_of_the_steps_and_the_raw_one_stays_in_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let plain = with_every_step(config(dir.path()));
    let plain_rows = run(&plain, "cpu");
    assert!(plain_rows.iter().all(|row| row.averaged_heldout_cross_entropy.is_none()));
    assert!(state_names(&plain, 6).iter().all(|name| !name.starts_with("average.")));
    let decay: f64 = 0.8;
    let ema: Vec<(u64, f64)> = (1..=6).map(|step| (step, decay.powi(6 - step as i32))).collect();
    let cases = [
        ("ema", Average::Ema { decay }, ema, [true, true]),
        // Of six steps the first three are left out; after step 3 nothing is averaged yet.
        ("tail", Average::Tail { from: 0.5 }, vec![(4, 1.0), (5, 1.0), (6, 1.0)], [false, true]),
    ];
    for (name, average, weights, measured) in cases {
        let mut config = named(&plain, dir.path(), name);
        config.train.average = Some(average);
        let rows = run(&config, "cpu");
        let parts: Vec<_> = weights.iter().map(|(step, weight)| (*weight, checkpoint(&config, *step))).collect();
        let found = model(&config);
        // A few roundings of f32 on weights of up to about 3; the steps are 1e-3 apart.
        let distance = distance_from_mean(&found, &parts);
        assert!(distance < 2e-6, "{name}: {distance}");
        assert_ne!(found, checkpoint(&config, 6));
        // The run itself is that without an average.
        assert_eq!(checkpoint(&config, 6), checkpoint(&plain, 6));
        for (row, plain) in rows.iter().zip(&plain_rows) {
            assert_eq!((row.loss, row.heldout_cross_entropy), (plain.loss, plain.heldout_cross_entropy));
        }
        assert_eq!([&rows[2], &rows[5]].map(|row| row.averaged_heldout_cross_entropy.is_some()), measured);
        let (raw, averaged) = (rows[5].heldout_cross_entropy, rows[5].averaged_heldout_cross_entropy);
        assert!(raw != averaged && (raw.unwrap() - averaged.unwrap()).abs() < 0.5, "{raw:?} and {averaged:?}");
        let file = fs_err::read(config.run.dir.join("eval/step-6.json")).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        assert_eq!(file["averaged_heldout_cross_entropy"].as_f64(), averaged);
        // The finished model is the one that was measured last: a run of it has that loss at its
        // start.
        let mut next = named(&plain, dir.path(), &format!("{name}-next"));
        next.student.model = config.run.dir.join(MODEL_DIR).display().to_string();
        next.train.steps = Some(2);
        run(&next, "cpu");
        let file = fs_err::read(next.run.dir.join("eval/step-0.json")).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        assert_eq!(file["heldout_cross_entropy"].as_f64(), averaged);
    }
}

#[test]
fn an_averaged_model_with_routers_has_thresholds_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = with_router(dir.path(), &expert_choice());
    config.losses.push(LossTerm::new(0.1, RouterBceConfig {}));
    config.train.average = Some(Average::Tail { from: 0.3 });
    run(&config, "cpu");
    let router = |folder: &str| {
        let file = fs_err::read(config.run.dir.join(folder).join("config.json")).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        file["recursion"]["router"].clone()
    };
    let (averaged, raw) = (router(MODEL_DIR), router("ckpt/step-6"));
    assert!(averaged.is_object() && averaged != raw, "{averaged} and {raw}");
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit_with_each_of_them_and_with_all() {
    let dir = tempfile::tempdir().unwrap();
    let plain = config(dir.path());
    let cases: [(&str, Change); 6] = [
        ("muon", |config| config.optimizer.kind = muon(false)),
        ("frozen", |config| config.optimizer.groups.embeddings.freeze_until = 4),
        ("frozen-until-the-stop", |config| config.optimizer.groups.shared.freeze_until = 3),
        ("ema", |config| config.train.average = Some(Average::Ema { decay: 0.9 })),
        ("tail", |config| config.train.average = Some(Average::Tail { from: 0.3 })),
        ("all", all_together),
    ];
    for (name, change) in cases {
        let mut whole = named(&plain, dir.path(), name);
        change(&mut whole);
        let rows = run(&whole, "cpu");
        assert!(rows[5].loss < rows[0].loss, "{name}: {} and {}", rows[0].loss, rows[5].loss);
        let broken = named(&whole, dir.path(), &format!("{name}-broken"));
        stop_after(&broken, 3);
        start(&broken, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {}).unwrap();
        assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(&rows), "{name}");
        assert!(model(&broken) == model(&whole), "{name}");
    }
}

#[test]
fn a_run_of_adamw_goes_on_with_muon_and_an_average_where_that_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = with_every_step(config(dir.path()));
    stop_after(&config, 3);
    config.optimizer.kind = muon(false);
    config.train.average = Some(Average::Tail { from: 0.5 });
    let refused = start(&config, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {});
    assert!(matches!(refused, Err(TrainError::ConfigChanged { .. })));
    let allow_change = vec!["optimizer.kind".to_owned(), "train.average".to_owned()];
    let resume = Resume::From { checkpoint: None, allow_change };
    start(&config, "cpu", resume, &AtomicBool::new(false), &mut |_| {}).unwrap();
    let names = state_names(&config, 6);
    assert!(names.iter().any(|name| name.starts_with("momentum.")), "{names:?}");
    let parts: Vec<_> = (4..=6).map(|step| (1.0, checkpoint(&config, step))).collect();
    // As above.
    assert!(distance_from_mean(&model(&config), &parts) < 2e-6);

    // The other way round: the average is dropped, and the moments of the matrices begin anew.
    let mut back = named(&config, dir.path(), "back");
    stop_after(&back, 5);
    back.optimizer.kind = OptimizerKind::AdamW;
    back.train.average = None;
    let allow_change = vec!["optimizer.kind".to_owned(), "train.average".to_owned()];
    let resume = Resume::From { checkpoint: None, allow_change };
    start(&back, "cpu", resume, &AtomicBool::new(false), &mut |_| {}).unwrap();
    let names = state_names(&back, 6);
    assert!(names.iter().all(|name| name.starts_with("mean.") || name.starts_with("square.")), "{names:?}");
    assert!(model(&back) == checkpoint(&back, 6));
}

#[test]
fn rates_fall_to_zero_in_a_line_and_by_a_root() {
    let dir = tempfile::tempdir().unwrap();
    let plain = with_every_step(config(dir.path()));
    let linear = ScheduleConfig::Linear(LinearConfig { warmup_steps: 2, min_lr_ratio: 0.0 });
    let root = ScheduleConfig::WarmupStableDecay(WarmupStableDecayConfig {
        warmup_steps: 1,
        decay_steps: 4,
        decay_type: DecayType::OneMinusSqrt,
        min_lr_ratio: 0.0,
    });
    let of_root = |x: f64| 1.0 - x.sqrt();
    let expected = [
        ("linear", linear, [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("root", root, [1.0, 1.0, of_root(0.25), of_root(0.5), of_root(0.75), 0.0]),
    ];
    for (name, schedule, rates) in expected {
        let mut config = named(&plain, dir.path(), name);
        config.schedule = schedule;
        for (row, rate) in run(&config, "cpu").iter().zip(rates) {
            // A rounding or two of f64.
            assert!((row.lr - 1e-3 * rate).abs() < 1e-17, "{name}, step {}: {}", row.step, row.lr);
        }
        assert!(checkpoint(&config, 5) == checkpoint(&config, 6) && checkpoint(&config, 4) != checkpoint(&config, 5));
    }
}

#[test]
fn an_estimate_has_the_rules_frozen_starts_and_the_bytes_of_their_state() {
    let dir = tempfile::tempdir().unwrap();
    let plain = config(dir.path());
    let device = retie_model::device("cpu").unwrap();
    let of = |config: &UptrainConfig| estimate(config, &device, 1).unwrap();
    let mut with_muon = plain.clone();
    with_muon.optimizer.kind =
        OptimizerKind::Muon(MuonConfig { adjust_lr: AdjustLr::Original, ..MuonConfig::default() });
    with_muon.optimizer.groups.shared.freeze_until = 3;
    let (before, after) = (of(&plain), of(&with_muon));
    let shared = after.groups.iter().find(|group| group.name == ParameterGroup::Shared.name()).unwrap();
    assert_eq!((shared.rule, shared.freeze_until), ("Muon", 3));
    assert!(after.groups.iter().filter(|group| group.name != "shared").all(|group| group.rule == "AdamW"));
    assert!(after.to_string().contains("Muon, rate × 1, decay 0.01, frozen for 3 updates"), "{after}");
    // One buffer of the matrices instead of two.
    assert_eq!(before.student_bytes - after.student_bytes, 4 * shared.parameters);
    with_muon.train.average = Some(Average::Ema { decay: 0.9 });
    let parameters: usize = after.groups.iter().map(|group| group.parameters).sum();
    assert_eq!(of(&with_muon).student_bytes - after.student_bytes, 4 * parameters);
}
