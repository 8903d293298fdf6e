//! Where rows go, what stands in them, and what a run goes on from.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_config::{LoggerKind, LossSpike, UptrainConfig, WeightPoint};
use retie_trainer::{Event, Outcome, Resume, StepRow, TrainError, read_metrics};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::AtomicBool,
};
use support::{bits, config, run, start, stop_after};

const EVENTS: &str = "tensorboard/events.out.tfevents.retie";

fn everywhere(dir: &Path, name: &str) -> UptrainConfig {
    let mut config = config(dir);
    config.run.dir = dir.join(name);
    config.run.loggers = vec![LoggerKind::Csv, LoggerKind::Tensorboard];
    config.train.telemetry_every = 2;
    config
}

/// A file of rows without what depends on the clock.
fn csv(run_dir: &Path) -> Vec<Vec<String>> {
    let text = fs_err::read_to_string(run_dir.join("metrics.csv")).unwrap();
    let rows: Vec<Vec<String>> = text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect();
    let timed: Vec<bool> = rows[0].iter().map(|name| name.contains("second")).collect();
    rows.iter()
        .map(|row| row.iter().zip(&timed).filter(|(_, timed)| !**timed).map(|(cell, _)| cell.clone()).collect())
        .collect()
}

fn resume(config: &UptrainConfig, checkpoint: Option<PathBuf>, allow: &[&str]) -> Result<Outcome, TrainError> {
    let allow_change = allow.iter().map(|key| (*key).to_owned()).collect();
    start(config, "cpu", Resume::From { checkpoint, allow_change }, &AtomicBool::new(false), &mut |_| {})
}

#[test]
fn every_log_of_a_resumed_run_is_that_of_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let whole = everywhere(dir.path(), "whole");
    let rows = run(&whole, "cpu");
    let broken = everywhere(dir.path(), "broken");
    stop_after(&broken, 3);
    // A process that dies in step 5 has written rows but no checkpoint.
    for (file, more) in [("metrics.csv", &b"4,1.5\n5,2."[..]), (EVENTS, b"\x18\0\0\0\0\0\0\0cut")] {
        let path = broken.run.dir.join(file);
        let bytes = fs_err::read(&path).unwrap();
        fs_err::write(&path, [&bytes, more].concat()).unwrap();
    }
    resume(&broken, None, &[]).unwrap();
    assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(&rows));
    assert_eq!(csv(&broken.run.dir), csv(&whole.run.dir));
    let size = |run: &UptrainConfig| fs_err::metadata(run.run.dir.join(EVENTS)).unwrap().len();
    assert_eq!(size(&broken), size(&whole));
    let cells = csv(&whole.run.dir);
    assert_eq!(cells.len(), 7);
    assert_eq!(cells[3][1].parse::<f64>().unwrap(), rows[2].loss);
}

#[test]
fn tensorboard_reads_the_file() {
    let Some(python) = std::env::var_os("RETIE_TENSORBOARD_PYTHON") else {
        eprintln!("skipped: needs RETIE_TENSORBOARD_PYTHON, a Python with the package `tensorboard`");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let config = everywhere(dir.path(), "run");
    let rows = run(&config, "cpu");
    let script = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}))
";
    let output = Command::new(python).args(["-c", script]).arg(config.run.dir.join("tensorboard")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let scalars: Value = serde_json::from_slice(&output.stdout).unwrap();
    let values = |tag: &str| -> Vec<(u64, f64)> {
        let points = scalars[tag].as_array().unwrap_or_else(|| panic!("{tag}: {scalars}"));
        points.iter().map(|point| (point[0].as_u64().unwrap(), point[1].as_f64().unwrap())).collect()
    };
    let expected = |value: &dyn Fn(&StepRow) -> Option<f64>| -> Vec<(u64, f64)> {
        rows.iter().filter_map(|row| Some((row.step, f64::from(value(row)? as f32)))).collect()
    };
    assert_eq!(values("train/loss"), expected(&|row| Some(row.loss)));
    assert_eq!(values("terms/distill"), expected(&|row| row.terms.get("distill").copied()));
    assert_eq!(values("telemetry/cosine.1"), expected(&|row| Some(row.telemetry.as_ref()?.cosine[0])));
    let heldout = values("train/heldout_cross_entropy");
    assert_eq!(heldout[0].0, 0, "what was measured before the first step");
    assert_eq!(heldout[1..], expected(&|row| row.heldout_cross_entropy));
}

#[test]
fn telemetry_changes_nothing_and_its_gradients_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let with = everywhere(dir.path(), "with");
    let mut without = everywhere(dir.path(), "without");
    without.train.telemetry_every = 0;
    let (with, without) = (run(&with, "cpu"), run(&without, "cpu"));
    let plain: Vec<StepRow> = with.iter().map(|row| StepRow { telemetry: None, ..row.clone() }).collect();
    assert_eq!(bits(&plain), bits(&without));
    let seen: Vec<u64> = with.iter().filter(|row| row.telemetry.is_some()).map(|row| row.step).collect();
    assert_eq!(seen, [2, 4, 6]);
    for row in &with {
        let Some(telemetry) = &row.telemetry else { continue };
        assert_eq!((telemetry.hidden_norm.len(), telemetry.cosine.len()), (2, 1));
        assert!(telemetry.hidden_norm.iter().all(|norm| *norm > 0.0));
        assert!(telemetry.cosine[0] > 0.0 && telemetry.cosine[0] < 1.0, "{telemetry:?}");
        let groups: Vec<&str> = telemetry.grad_norm.keys().map(String::as_str).collect();
        assert_eq!(groups, ["embeddings", "lora", "norms", "shared"]);
        // Sums of squares in f64 in another order.
        let all = telemetry.grad_norm.values().map(|norm| norm * norm).sum::<f64>().sqrt();
        assert!((all - row.grad_norm).abs() < 1e-12 * all, "{all} and {}", row.grad_norm);
    }
}

#[test]
fn a_loss_that_stands_out_is_reported_and_counted_across_a_resume() {
    let dir = tempfile::tempdir().unwrap();
    let with_spike = |name: &str| {
        let mut config = everywhere(dir.path(), name);
        config.train.steps = Some(10);
        config.train.loss_spike = LossSpike::Report { window: 5, deviations: 6.0 };
        let term = &mut config.losses[0];
        // Ten times the loss in step 8 alone.
        let points = [(7, 1.0), (8, 10.0), (9, 1.0)];
        term.weight_schedule = points.map(|(step, factor)| WeightPoint { step, factor }).to_vec();
        config
    };
    let whole = with_spike("whole");
    let mut seen = Vec::new();
    start(&whole, "cpu", Resume::Never, &AtomicBool::new(false), &mut |event| {
        if let Event::Spike { step, spike, .. } = event {
            seen.push((step, spike.path.clone()));
        }
    })
    .unwrap();
    assert_eq!(seen, [(8, whole.run.dir.join("loss-spikes/step-8.json"))]);
    let rows = read_metrics(&whole.run.dir).unwrap();
    assert_eq!(rows.iter().map(|row| row.loss_spikes).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
    let kept: Value = serde_json::from_slice(&fs_err::read(&seen[0].1).unwrap()).unwrap();
    assert_eq!(kept["loss"].as_f64(), Some(rows[7].loss));
    let ids = kept["token_ids"].as_array().unwrap();
    assert_eq!((ids.len(), ids[0].as_array().unwrap().len(), kept["rows"].as_array().unwrap().len()), (4, 32, 4));
    // The window of a resumed run is that of the unbroken one.
    let broken = with_spike("broken");
    stop_after(&broken, 6);
    resume(&broken, None, &[]).unwrap();
    assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(&rows));
    let same = |file: &str| {
        fs_err::read(broken.run.dir.join(file)).unwrap() == fs_err::read(whole.run.dir.join(file)).unwrap()
    };
    assert!(same("loss-spikes/step-8.json"));
}

#[test]
fn a_change_is_refused_by_its_key_and_made_where_it_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let mut changed = everywhere(dir.path(), "run");
    stop_after(&changed, 3);
    changed.optimizer.lr = 5e-4;
    changed.train.steps = Some(8);
    changed.run.loggers.clear();
    changed.train.keep_last = 7;
    let error = resume(&changed, None, &["optimizer"]).unwrap_err();
    let TrainError::ConfigChanged { differences, .. } = &error else { panic!("{error}") };
    assert_eq!(differences, &["  train.steps: 6 in the run, 8 now"]);
    let error = resume(&changed, None, &["train.step"]).unwrap_err();
    assert!(matches!(&error, TrainError::NoSuchKey { key } if key == "train.step"), "{error}");

    let mut told = Vec::new();
    let allow_change = vec!["optimizer.lr".to_owned(), "train".to_owned()];
    let from = Resume::From { checkpoint: None, allow_change };
    start(&changed, "cpu", from, &AtomicBool::new(false), &mut |event| {
        if let Event::Resumed { changes, .. } = event {
            told = changes.to_vec();
        }
    })
    .unwrap();
    assert_eq!(told, ["optimizer.lr: 0.001 in the run, 0.0005 now", "train.steps: 6 in the run, 8 now"]);
    assert_eq!(read_metrics(&changed.run.dir).unwrap().len(), 8);
    // The folder has the new configuration, and the one before under another name.
    let read = |file: &str| fs_err::read_to_string(changed.run.dir.join(file)).unwrap();
    assert!(read("config.resolved.yaml").contains("steps: 8") && read("config.until-step-3.yaml").contains("steps: 6"));
    resume(&changed, None, &[]).unwrap();
    // Other text than the cursors are of cannot be allowed.
    changed.data.sequence_length = 16;
    changed.train.steps = Some(9);
    let error = resume(&changed, None, &["data", "train.steps"]).unwrap_err();
    assert!(matches!(error, TrainError::Data(retie_data::DataError::DataChanged { .. })), "{error}");
}

#[test]
fn a_run_goes_on_from_a_checkpoint_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let whole = everywhere(dir.path(), "whole");
    let rows = run(&whole, "cpu");
    // The same steps in another folder, from the fourth on.
    let branch = everywhere(dir.path(), "branch");
    resume(&branch, Some(whole.run.dir.join("ckpt/step-4")), &[]).unwrap();
    assert_eq!(bits(&read_metrics(&branch.run.dir).unwrap()), bits(&rows[4..]));
    let model = |run: &UptrainConfig| fs_err::read(run.run.dir.join("model/model.safetensors")).unwrap();
    assert!(model(&branch) == model(&whole));

    let error = |config: &UptrainConfig, path: PathBuf| resume(config, Some(path), &[]).unwrap_err();
    assert!(matches!(error(&branch, whole.run.dir.clone()), TrainError::RunExists { .. }));
    let later = error(&whole, whole.run.dir.join("ckpt/step-4"));
    assert!(matches!(&later, TrainError::LaterCheckpoints { later, .. } if later.ends_with("step-6")), "{later}");
    let nothing = error(&everywhere(dir.path(), "new"), dir.path().join("student"));
    assert!(matches!(nothing, TrainError::NotACheckpoint { .. }), "{nothing}");
    let mut other = everywhere(dir.path(), "other");
    other.train.seed = 1;
    let message = error(&other, whole.run.dir.clone()).to_string();
    assert!(message.contains("  train.seed: 42 in the run, 1 now\nhint: `--allow-change train.seed`"), "{message}");
    assert!(!other.run.dir.exists());
    // A run's own last one, by its folder.
    resume(&whole, Some(whole.run.dir.clone()), &[]).unwrap();
}
