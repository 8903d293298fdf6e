//! A run that is stopped and resumed is the unbroken run, bit for bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_config::Relax;
use retie_trainer::{MODEL_DIR, Resume, TrainError, read_metrics};
use std::{path::Path, sync::atomic::AtomicBool};
use support::{bits, config, config_of, run, start, stop_after};

fn weights(run_dir: &Path) -> Vec<u8> {
    fs_err::read(run_dir.join(MODEL_DIR).join("model.safetensors")).unwrap()
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    for relax in Relax::ALL {
        goes_on(relax);
    }
}

fn goes_on(relax: Relax) {
    let dir = tempfile::tempdir().unwrap();
    let whole = config_of(dir.path(), relax);
    let rows = run(&whole, "cpu");
    assert_eq!(rows.len(), 6);
    assert!(rows[5].loss < rows[0].loss, "{} and {}", rows[0].loss, rows[5].loss);

    let mut broken = whole.clone();
    broken.run.dir = dir.path().join("broken");
    stop_after(&broken, 3);

    // A process that dies after step 4 has written its row but no checkpoint.
    let extra = serde_json::to_string(&rows[3]).unwrap();
    let metrics = broken.run.dir.join("metrics.jsonl");
    let text = fs_err::read_to_string(&metrics).unwrap();
    fs_err::write(&metrics, format!("{text}{extra}\n{{\"step\": 5, \"lo")).unwrap();

    start(&broken, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(&rows));
    assert_eq!(weights(&broken.run.dir), weights(&whole.run.dir));
}

#[test]
fn a_stopped_run_on_rows_of_whole_documents_in_bf16_goes_on_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = config(dir.path());
    whole.data.packing = retie_config::Packing::BestFit;
    whole.train.precision = retie_config::Precision::Bf16;
    let rows = run(&whole, "cpu");
    let mut broken = whole.clone();
    broken.run.dir = dir.path().join("broken");
    stop_after(&broken, 3);
    start(&broken, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(&rows));
    assert_eq!(weights(&broken.run.dir), weights(&whole.run.dir));
}

#[test]
fn a_folder_that_holds_a_run_and_changed_settings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.train.steps = Some(2);
    run(&config, "cpu");
    let again = start(&config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {});
    assert!(matches!(again, Err(TrainError::RunExists { .. })));
    config.optimizer.lr = 5e-4;
    config.train.checkpoint_every = 7; // may change
    let error = start(&config, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    let TrainError::ConfigChanged { differences, .. } = &error else { panic!("{error}") };
    assert_eq!(differences, &["  optimizer.lr: 0.001 in the run, 0.0005 now"]);
}

#[test]
fn a_damaged_last_checkpoint_names_the_one_to_go_back_to() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    run(&config, "cpu");
    fs_err::remove_dir_all(config.run.dir.join("model")).unwrap();
    let last = config.run.dir.join("ckpt/step-6");
    let weights = fs_err::OpenOptions::new().write(true).open(last.join("model.safetensors")).unwrap();
    weights.set_len(1000).unwrap();
    let resume = || start(&config, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {});
    let error = resume().unwrap_err();
    let TrainError::DamagedCheckpoint { path, before, .. } = &error else { panic!("{error}") };
    assert!(path.ends_with("step-6") && before.ends_with("step-4"), "{error}");
    fs_err::remove_dir_all(&last).unwrap();
    resume().unwrap();
    assert!(last.join("model.safetensors").is_file());
}

#[test]
fn old_checkpoints_go_and_a_checkpoint_is_a_model_folder() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    run(&config, "cpu");
    let mut names: Vec<_> =
        fs_err::read_dir(config.run.dir.join("ckpt")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["step-4", "step-6"]);
    let folder = config.run.dir.join("ckpt/step-6");
    let source = retie_checkpoint::ModelSource::open(folder.to_str().unwrap()).unwrap();
    source.validate().unwrap();
    assert_eq!(fs_err::read(folder.join("model.safetensors")).unwrap(), weights(&config.run.dir));
}
