//! Training of models with mechanisms in their steps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_config::{Anneal, Doubling, LossTerm};
use retie_trainer::{MODEL_DIR, Resume, TrainError, read_metrics};
use std::{path::Path, sync::atomic::AtomicBool};
use support::{bits, config, run, start, stop_after, with_mechanisms};

/// All but slices and coarse tokens start without an effect on sequences of 32 tokens.
const MECHANISMS: [&str; 10] = [
    "descriptor:chunk=32,ratio=4@0",
    "sliced:groups=4@1",
    "gnconv:order=2,kernel=4",
    "coefficients",
    "hai",
    "nll:ratio=0.25",
    "dense",
    "silu_dra",
    "grouped_softmax",
    "resolution:factor=4@1",
];

fn annealed_by(by: u64) -> Option<Anneal> {
    let doubling = Some(Doubling { from: 1, by });
    Some(Anneal { sliced: doubling, resolution: doubling })
}

fn weights(run_dir: &Path) -> Vec<u8> {
    fs_err::read(run_dir.join(MODEL_DIR).join("model.safetensors")).unwrap()
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit_and_recomputed_recursions_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut mechanisms = MECHANISMS;
    mechanisms[0] = "descriptor:chunk=8,ratio=4,sinks=4@0";
    let mut whole = with_mechanisms(dir.path(), &mechanisms);
    whole.train.anneal = annealed_by(5);
    whole.optimizer.groups.extras.lr = 20.0;
    // A loss of the state that dense feedback reads.
    let exit: LossTerm = serde_json::from_str(r#"{"early_exit": {"weight": 0.3}}"#).unwrap();
    whole.losses.push(exit);
    let rows = run(&whole, "cpu");
    assert!(rows[5].loss < rows[0].loss, "{} and {}", rows[0].loss, rows[5].loss);

    let mut broken = whole.clone();
    broken.run.dir = dir.path().join("broken");
    stop_after(&broken, 3);
    start(&broken, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(&rows));
    assert_eq!(weights(&broken.run.dir), weights(&whole.run.dir));

    let mut parts = whole.clone();
    parts.run.dir = dir.path().join("parts");
    parts.train.checkpoint_recursions = true;
    for (a, b) in rows.iter().zip(&run(&parts, "cpu")) {
        // The uses of a shared weight are summed in another order: rounding of f32, carried through
        // six steps.
        for (what, a, b) in [("loss", a.loss, b.loss), ("gradient norm", a.grad_norm, b.grad_norm)] {
            assert!((a - b).abs() <= 1e-5 * a.abs(), "step {}: {what} {a} and {b}", rows[0].step);
        }
    }
}

#[test]
fn a_run_begins_with_the_loss_of_the_model_without_mechanisms() {
    let dir = tempfile::tempdir().unwrap();
    let mut stepped = with_mechanisms(dir.path(), &MECHANISMS);
    stepped.run.dir = dir.path().join("stepped-run");
    stepped.train.steps = Some(1);
    stepped.train.anneal = annealed_by(1);
    stepped.schedule = serde_json::from_str(r#"{"cosine": {"warmup_steps": 0, "min_lr_ratio": 0.1}}"#).unwrap();
    let sliced_at_once = run(&stepped, "cpu")[0].loss;
    stepped.run.dir = dir.path().join("annealed-run");
    stepped.train.steps = Some(2);
    stepped.train.anneal = annealed_by(2);
    let annealed = run(&stepped, "cpu")[0].loss;
    let mut plain = config(dir.path());
    plain.train.steps = Some(2);
    plain.schedule = stepped.schedule;
    let expected = run(&plain, "cpu")[0].loss;
    assert!((annealed - expected).abs() < 1e-6, "{annealed} and {expected}");
    assert!((sliced_at_once - expected).abs() > 1e-3, "{sliced_at_once} and {expected}");
}

#[test]
fn schedules_are_refused_without_their_mechanism() {
    let dir = tempfile::tempdir().unwrap();
    for (has, missing) in [("hai", "sliced"), ("sliced:groups=2", "resolution")] {
        let place = dir.path().join(missing);
        fs_err::create_dir(&place).unwrap();
        let mut config = with_mechanisms(&place, &[has]);
        config.train.anneal = annealed_by(3);
        let error = start(&config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
        assert!(matches!(error, TrainError::NothingAnnealed { mechanism, .. } if mechanism == missing), "{error}");
    }
}
