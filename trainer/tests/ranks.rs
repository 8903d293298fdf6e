//! Ranks that train together make the run of one process that accumulates as many micro-batches.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_checkpoint::{ModelSource, Parent, SafetensorsFile, TensorSource};
use retie_collective::{Collective, Single};
use retie_config::{LossTerm, NonFinite, Packing, RouterBalancingConfig, RouterBceConfig, UptrainConfig, WeightPoint};
use retie_model::WeightDtype;
use retie_trainer::{Job, KeepLogits, MODEL_DIR, Outcome, Resume, StepRow, TrainError, keep_logits, read_metrics};
use serde_json::Value;
use std::{path::Path, sync::atomic::AtomicBool};
use support::{Threads, all_together, assets, config, expert_choice, run, start_on, token_choice, with_router};

/// A run with its own folder, of 6 steps of 6 micro-batches.
fn config_of(dir: &Path, name: &str) -> UptrainConfig {
    divided(config(dir), dir, name)
}

/// `config` with a folder of its own, and its steps of 6 micro-batches.
fn divided(mut config: UptrainConfig, dir: &Path, name: &str) -> UptrainConfig {
    config.run.dir = dir.join(name);
    config.train.batch_size = 1;
    config.train.gradient_accumulation = 6;
    config.train.eval_sequences = 5;
    config
}

/// Runs on `world` ranks and gives the rows.
fn run_on(config: &UptrainConfig, world: usize, resume: Resume) -> Vec<StepRow> {
    for outcome in Threads::run(world, |ranks| start_on(config, resume.clone(), ranks, &AtomicBool::new(false))) {
        assert!(matches!(outcome.unwrap(), Outcome::Finished { .. }));
    }
    read_metrics(&config.run.dir).unwrap()
}

/// Every number of a row with its name, but those of the clock.
fn numbers(row: &StepRow) -> Vec<(String, f64)> {
    fn walk(name: String, value: &Value, numbers: &mut Vec<(String, f64)>) {
        match value {
            Value::Object(entries) => entries.iter().for_each(|(key, x)| walk(format!("{name}.{key}"), x, numbers)),
            Value::Array(items) => items.iter().for_each(|x| walk(name.clone(), x, numbers)),
            other => numbers.extend(other.as_f64().map(|number| (name, number))),
        }
    }
    let mut numbers = Vec::new();
    let row = StepRow { seconds: 0.0, tokens_per_second: 0.0, ..row.clone() };
    walk(String::new(), &serde_json::to_value(row).unwrap(), &mut numbers);
    numbers
}

#[track_caller]
fn assert_same(found: &[StepRow], expected: &[StepRow]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!((found.step, found.tokens, found.lr), (expected.step, expected.tokens, expected.lr));
        let (numbers, expected) = (numbers(found), numbers(expected));
        assert_eq!(numbers.len(), expected.len());
        for ((name, a), (other, b)) in numbers.iter().zip(&expected) {
            assert_eq!(name, other);
            // Sums of f32 in another order; a step of AdamW makes 1e-7 of a gradient some 1e-7 of a
            // loss.
            assert!((a - b).abs() <= 1e-6 * b.abs(), "step {}, {name}: {a} and {b}", found.step);
        }
    }
}

#[test]
fn two_ranks_and_three_make_the_losses_of_one_with_whole_and_with_divided_moments() {
    let dir = tempfile::tempdir().unwrap();
    let alone = run(&config_of(dir.path(), "alone"), "cpu");
    for world in [2, 3] {
        for shard in [false, true] {
            let mut config = config_of(dir.path(), &format!("{world}-{shard}"));
            config.train.shard_optimizer = shard;
            assert_same(&run_on(&config, world, Resume::Never), &alone);
        }
    }
}

#[test]
fn ranks_make_the_run_of_one_with_muon_averages_and_a_frozen_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut alone = config_of(dir.path(), "alone");
    all_together(&mut alone);
    let rows = run(&alone, "cpu");
    assert!(rows[5].averaged_heldout_cross_entropy.is_some());
    let weights = |config: &UptrainConfig| {
        let source = ModelSource::open(config.run.dir.join(MODEL_DIR).to_str().unwrap()).unwrap();
        let names: Vec<String> = source.tensors.names().into_iter().map(str::to_owned).collect();
        names.into_iter().map(|name| (name.clone(), source.tensors.read_f32(&name).unwrap())).collect::<Vec<_>>()
    };
    let expected = weights(&alone);
    for world in [2, 3] {
        for shard in [false, true] {
            let mut config = alone.clone();
            config.run.dir = dir.path().join(format!("{world}-{shard}"));
            config.train.shard_optimizer = shard;
            assert_same(&run_on(&config, world, Resume::Never), &rows);
            for ((name, a), (_, b)) in weights(&config).iter().zip(&expected) {
                // The finished model is the average on every rank. Gradients summed in another
                // order, whose roundings the iteration of Muon makes larger.
                let distance = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
                assert!(distance < 1e-4, "{world} ranks, divided {shard}, {name}: {distance}");
            }
        }
    }
}

/// That two ranks and three make the rows of `alone` and the same `config.json`, which has
/// thresholds and biases.
fn assert_routed(alone: &UptrainConfig) {
    let shape = |config: &UptrainConfig| -> Value {
        serde_json::from_slice(&fs_err::read(config.run.dir.join(MODEL_DIR).join("config.json")).unwrap()).unwrap()
    };
    let rows = run(alone, "cpu");
    assert!(rows[5].routing.is_some() && rows[5].heldout_routing.is_some());
    for world in [2, 3] {
        let mut config = alone.clone();
        config.run.dir.set_extension(world.to_string());
        config.train.shard_optimizer = world == 3;
        assert_same(&run_on(&config, world, Resume::Never), &rows);
        let [found, expected] = [&config, alone].map(|config| shape(config)["recursion"]["router"].clone());
        assert_router(&found, &expected);
    }
}

/// Numbers of routers' entries within the rounding of the logits that thresholds lie between.
fn assert_router(found: &Value, expected: &Value) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            assert!(found.keys().eq(expected.keys()), "{found:?}");
            found.values().zip(expected.values()).for_each(|(found, expected)| assert_router(found, expected));
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len());
            found.iter().zip(expected).for_each(|(found, expected)| assert_router(found, expected));
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} and {b}");
        }
        _ => assert_eq!(found, expected),
    }
}

#[test]
fn depths_are_balanced_by_what_the_tokens_of_all_ranks_choose() {
    let dir = tempfile::tempdir().unwrap();
    let router = token_choice();
    let mut alone = divided(with_router(dir.path(), &router), dir.path(), "alone");
    alone.losses.push(LossTerm::new(0.1, RouterBalancingConfig {}));
    alone.train.full_recursion_warmup_steps = Some(3);
    alone.train.loss_free_balancing = Some(0.01);
    // Pieces of documents: each rank sees others, and positions of its own.
    alone.data.packing = Packing::Documents;
    assert_routed(&alone);
}

#[test]
fn thresholds_and_the_counts_of_held_out_rows_do_not_depend_on_the_number_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let router = expert_choice();
    let mut alone = divided(with_router(dir.path(), &router), dir.path(), "alone");
    alone.losses.push(LossTerm::new(0.1, RouterBceConfig {}));
    // One of three ranks has no batch to measure on.
    alone.train.eval_sequences = 2;
    assert_routed(&alone);
}

#[test]
fn rows_that_are_not_full_count_by_their_tokens_on_all_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let best_fit = |name: &str| {
        let mut config = config_of(dir.path(), name);
        // Documents of a few words, of which a row has one.
        config.data.train = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/rows.jsonl.gz")];
        config.data.packing = Packing::BestFit;
        config.data.sequence_length = 8;
        config
    };
    let alone = run(&best_fit("alone"), "cpu");
    assert!(alone[5].tokens < 6 * 6 * 8, "all rows are full: {:?}", alone[5]);
    assert_same(&run_on(&best_fit("ranks"), 3, Resume::Never), &alone);
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks_and_the_same_text() {
    let dir = tempfile::tempdir().unwrap();
    let alone = run(&config_of(dir.path(), "alone"), "cpu");
    let mut config = config_of(dir.path(), "broken");
    config.train.shard_optimizer = true;
    let go_on = |world: usize, resume: Resume, until: u64| {
        // Set on the last rank alone.
        let train = |ranks: &Threads| {
            let stop = AtomicBool::new(ranks.rank() + 1 == world);
            start_on(&config, resume.clone(), ranks, &stop)
        };
        for outcome in Threads::run(world, train) {
            assert!(matches!(outcome.unwrap(), Outcome::Interrupted { step, .. } if step == until));
        }
    };
    go_on(2, Resume::Never, 1);
    go_on(3, Resume::Latest, 2);
    go_on(1, Resume::Latest, 3);
    config.train.shard_optimizer = false;
    assert_same(&run_on(&config, 2, Resume::Latest), &alone);
}

#[test]
fn a_run_with_all_of_them_goes_on_with_another_number_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let mut alone = config_of(dir.path(), "alone");
    all_together(&mut alone);
    let rows = run(&alone, "cpu");
    let mut config = alone.clone();
    config.run.dir = dir.path().join("broken");
    config.train.shard_optimizer = true;
    for outcome in Threads::run(2, |ranks| start_on(&config, Resume::Never, ranks, &AtomicBool::new(true))) {
        assert!(matches!(outcome.unwrap(), Outcome::Interrupted { step: 1, .. }));
    }
    for outcome in Threads::run(3, |ranks| start_on(&config, Resume::Latest, ranks, &AtomicBool::new(true))) {
        assert!(matches!(outcome.unwrap(), Outcome::Interrupted { step: 2, .. }));
    }
    config.train.shard_optimizer = false;
    assert_same(&run_on(&config, 2, Resume::Latest), &rows);
}

#[test]
fn checkpoints_are_the_same_files_with_whole_and_with_divided_moments() {
    same_checkpoints(|_| {});
}

#[test]
fn checkpoints_are_the_same_files_with_whole_and_with_divided_momentum_and_averages() {
    same_checkpoints(|config| {
        all_together(config);
        config.optimizer.groups.shared.freeze_until = 0;
    });
}

fn same_checkpoints(change: impl Fn(&mut UptrainConfig)) {
    let dir = tempfile::tempdir().unwrap();
    let files = |shard: bool| {
        let mut config = config_of(dir.path(), &format!("{shard}"));
        change(&mut config);
        config.train.shard_optimizer = shard;
        config.train.steps = Some(2);
        run_on(&config, 2, Resume::Never);
        let folder = config.run.dir.join("ckpt/step-2");
        let names = fs_err::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        (SafetensorsFile::open(&folder.join("optimizer.safetensors")).unwrap(), names)
    };
    let ((whole, names), (divided, names_divided)) = (files(false), files(true));
    assert_eq!(names, names_divided);
    assert_eq!(whole.names(), divided.names());
    for name in whole.names() {
        let (a, b) = (whole.read_f32(name).unwrap(), divided.read_f32(name).unwrap());
        // The norm that clips is summed in another order: f64, so that at most the last bit of an
        // f32 differs.
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs() + 1e-12), "{name}");
    }
}

#[test]
fn ranks_that_do_not_divide_the_micro_batches_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_of(dir.path(), "run");
    for result in Threads::run(4, |ranks| start_on(&config, Resume::Never, ranks, &AtomicBool::new(false))) {
        let error = result.unwrap_err();
        assert!(matches!(error, TrainError::UnevenRanks { accumulation: 6, world: 4 }), "{error}");
        assert!(error.to_string().contains("expected a multiple of the 4 ranks\nhint: "), "{error}");
    }
    assert!(!config.run.dir.exists());
}

#[test]
fn a_step_without_a_finite_loss_is_left_out_on_every_rank_and_its_whole_text_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut alone = config_of(dir.path(), "alone");
    alone.train.non_finite = NonFinite::Skip { in_a_row: 1 };
    let cross_entropy = &mut alone.losses[0];
    let point = |(step, factor)| WeightPoint { step, factor };
    cross_entropy.weight_schedule = [(2, 1.0), (3, 1e39), (4, 1.0)].map(point).into();
    let rows = run(&alone, "cpu");
    assert_eq!(rows.len(), 5);
    let mut config = alone.clone();
    config.run.dir = dir.path().join("ranks");
    config.train.shard_optimizer = true;
    assert_same(&run_on(&config, 3, Resume::Never), &rows);
    let kept = |config: &UptrainConfig| -> serde_json::Value {
        serde_json::from_slice(&fs_err::read(config.run.dir.join("non-finite/step-3.json")).unwrap()).unwrap()
    };
    assert_eq!(kept(&config)["token_ids"], kept(&alone)["token_ids"]);
    assert_eq!(kept(&config)["token_ids"].as_array().unwrap().len(), 6);
}

#[test]
fn ranks_that_have_come_apart_do_not_save() {
    let dir = tempfile::tempdir().unwrap();
    let mut configs = [config_of(dir.path(), "run"), config_of(dir.path(), "run")];
    configs[1].optimizer.lr *= 1.5;
    let results =
        Threads::run(2, |ranks| start_on(&configs[ranks.rank()], Resume::Never, ranks, &AtomicBool::new(false)));
    for result in results {
        assert!(matches!(result.unwrap_err(), TrainError::RanksDiffer { step: 2 }));
    }
    assert!(!configs[0].run.dir.join("ckpt").exists());
}

#[test]
fn the_logits_of_a_teacher_are_kept_by_all_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    // 8 KB a token: two shards of 64 MB take more than 8,000.
    let text = fs_err::read_to_string(assets().join("demo-text/train.jsonl")).unwrap();
    let some: Vec<&str> = text.lines().take(2).collect();
    config.data.train = vec![dir.path().join("some.jsonl")];
    fs_err::write(&config.data.train[0], some.join("\n")).unwrap();
    let base = assets().join("demo-model");
    let teacher = ModelSource::open(base.to_str().unwrap()).unwrap();
    let options = |output: &str| KeepLogits {
        teacher: Parent { model: "base".into(), files: Vec::new() },
        data: config.data.clone(),
        top_k: 2048,
        top_p: None,
        temperature: 1.0,
        batch_size: 4,
        output: dir.path().join(output),
    };
    let keep = |output: &str, ranks: &dyn Collective, stop: bool| {
        let (device, stop) = (retie_model::device("cpu").unwrap(), AtomicBool::new(stop));
        let job = Job { device: &device, ranks, stop: &stop };
        let kept = keep_logits(&options(output), &teacher, WeightDtype::F32, job, &mut |_| {});
        kept.unwrap()
    };
    let alone = keep("alone", &Single, false);
    assert!(alone.finished && alone.meta.num_shards() == 2, "{:?}", alone.meta);
    // Stopped on one rank: nobody calls it finished.
    let part = Threads::run(2, |ranks| keep("ranks", ranks, ranks.rank() == 1).finished);
    assert_eq!(part, [false, false]);
    assert_eq!(Threads::run(3, |ranks| keep("ranks", ranks, false).finished), [true; 3]);
    for entry in fs_err::read_dir(dir.path().join("alone")).unwrap() {
        let path = entry.unwrap().path();
        let other = dir.path().join("ranks").join(path.file_name().unwrap());
        assert!(fs_err::read(&path).unwrap() == fs_err::read(&other).unwrap(), "{}", path.display());
    }
}
