//! Steps that are left out, checkpoints that are kept, groups that are frozen, weights that change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_checkpoint::ModelSource;
use retie_config::{NonFinite, UptrainConfig, WeightPoint};
use retie_trainer::{Event, Outcome, Resume, StepRow, TrainError, read_metrics};
use std::{
    collections::BTreeSet,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};
use support::{bits, config, run, start};

/// The weight of cross-entropy is beyond f32 in some steps: their gradients are no numbers.
fn broken_in(config: &mut UptrainConfig, steps: std::ops::RangeInclusive<u64>) {
    let cross_entropy = &mut config.losses[0];
    let points = [(steps.start() - 1, 1.0), (*steps.start(), 1e39), (*steps.end(), 1e39), (steps.end() + 1, 1.0)];
    let mut points: Vec<_> = points.into_iter().map(|(step, factor)| WeightPoint { step, factor }).collect();
    points.dedup_by_key(|point| point.step);
    cross_entropy.weight_schedule = points;
}

#[test]
fn a_skipped_step_changes_nothing_and_its_text_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = config(dir.path());
    whole.train.non_finite = NonFinite::Skip { in_a_row: 1 };
    broken_in(&mut whole, 3..=3);
    let rows = run(&whole, "cpu");
    assert_eq!(rows.iter().map(|row| row.step).collect::<Vec<_>>(), [1, 2, 4, 5, 6]);
    let kept = fs_err::read(whole.run.dir.join("non-finite/step-3.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    assert_eq!((&kept["step"], &kept["grad_norm"]), (&3.into(), &"NaN".into()));
    let ids = kept["token_ids"].as_array().unwrap();
    assert_eq!((ids.len(), ids[0].as_array().unwrap().len()), (4, 32));

    // Stopped after the skipped step, the run goes on as the unbroken one.
    let mut broken = whole.clone();
    broken.run.dir = dir.path().join("broken");
    let stop = AtomicBool::new(false);
    let outcome = start(&broken, "cpu", Resume::Never, &stop, &mut |event| {
        if matches!(event, Event::Skipped { step: 3, .. }) {
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert!(matches!(outcome.unwrap(), Outcome::Interrupted { step: 3, .. }));
    start(&broken, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(&rows));
}

#[test]
fn a_run_ends_at_once_or_after_too_many_skipped_steps() {
    let dir = tempfile::tempdir().unwrap();
    for (name, policy, expected) in
        [("stop", NonFinite::Stop, (3, 0)), ("skip", NonFinite::Skip { in_a_row: 2 }, (5, 2))]
    {
        let mut config = config(dir.path());
        config.run.dir = dir.path().join(name);
        config.train.non_finite = policy;
        broken_in(&mut config, 3..=6);
        let error = start(&config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
        let TrainError::NotFinite { step, skipped, path, .. } = &error else { panic!("{error}") };
        assert_eq!((*step, *skipped), expected);
        assert!(path.is_file() && config.run.dir.join("ckpt/step-2").is_dir());
    }
}

#[test]
fn the_best_checkpoints_are_kept_beside_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.optimizer.lr = 0.3; // far too high: the losses go up and down
    (config.train.checkpoint_every, config.train.eval_every) = (1, 1);
    (config.train.keep_last, config.train.keep_best) = (1, 2);
    let mut rows = run(&config, "cpu");
    let loss = |row: &StepRow| row.heldout_cross_entropy.unwrap();
    rows.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
    let expected: BTreeSet<String> =
        rows[..2].iter().map(|row| row.step).chain([6]).map(|n| format!("step-{n}")).collect();
    let names = fs_err::read_dir(config.run.dir.join("ckpt")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.map(|name| name.into_string().unwrap()).collect::<BTreeSet<_>>(), expected);
}

#[test]
fn frozen_groups_stay_as_they_are_and_the_others_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.optimizer.groups.shared.lr = 0.0;
    config.optimizer.groups.embeddings.lr = 0.0;
    run(&config, "cpu");
    let open = |path: &Path| ModelSource::open(path.to_str().unwrap()).unwrap();
    let (before, after) = (open(&dir.path().join("student")), open(&config.run.dir.join("model")));
    let same = |name: &str| before.tensors.read_f32(name).unwrap() == after.tensors.read_f32(name).unwrap();
    let changed: Vec<&str> = after.tensors.names().into_iter().filter(|name| !same(name)).collect();
    // The norms are each depth's own.
    assert!(changed.iter().all(|name| name.contains(".lora_") || name.contains("norm")), "{changed:?}");
    let free =
        after.tensors.names().into_iter().filter(|name| name.contains(".lora_") || name.contains("norm")).count();
    assert_eq!(changed.len(), free);
}

#[test]
fn a_run_whose_first_step_would_train_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    // The student has these groups; it has no extras, routers or unshared layers.
    config.optimizer.groups.shared.freeze_until = 2;
    config.optimizer.groups.lora.lr = 0.0;
    config.optimizer.groups.norms.freeze_until = 1;
    config.optimizer.groups.embeddings.lr = 0.0;
    let error = start(&config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    assert!(matches!(&error, TrainError::NothingTrained { .. }), "{error}");
    assert!(error.to_string().contains("frozen then, `shared`, `lora`, `norms`, `embeddings`\nhint: "), "{error}");
    assert!(!config.run.dir.exists());
}

#[test]
fn a_weight_follows_its_schedule() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    let distill = &mut config.losses[1];
    distill.weight_schedule = vec![WeightPoint { step: 2, factor: 0.0 }, WeightPoint { step: 4, factor: 1.0 }];
    for (row, factor) in run(&config, "cpu").iter().zip([0.0, 0.0, 0.5, 1.0, 1.0, 1.0]) {
        let expected = 0.3 * row.terms["cross_entropy"] + factor * 0.7 * 4.0 * row.terms["distill"];
        assert!((row.loss - expected).abs() < 1e-12 * expected, "step {}: {} and {expected}", row.step, row.loss);
    }
}
