//! Runs with several terms: accumulation, exits of weight 0, models that a term does not fit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_config::{
    CrossEntropyConfig, EarlyExitConfig, ExitDistillConfig, ExitReference, ExitWeights, HiddenConfig, HiddenPair,
    LossTerm, UptrainConfig,
};
use retie_trainer::{Resume, StepRow, TrainError, read_metrics};
use std::{path::Path, sync::atomic::AtomicBool};
use support::{Threads, bits, config, run, start, start_on, stop_after};

fn exits(weights: ExitWeights, from: Vec<ExitReference>) -> LossTerm {
    let distill = ExitDistillConfig {
        from,
        cross_entropy: retie_config::ExitCrossEntropy::Keep,
        divergence: retie_config::Divergence::ForwardKl,
        temperature: 1.0,
    };
    let distill = Some(distill).filter(|distill| !distill.from.is_empty());
    LossTerm::new(1.0, EarlyExitConfig { weights, distill, sample: false })
}

fn hidden(map: Option<Vec<HiddenPair>>) -> LossTerm {
    LossTerm::new(0.5, HiddenConfig { map, ..HiddenConfig::default() })
}

fn with(dir: &Path, name: &str, losses: Vec<LossTerm>) -> UptrainConfig {
    let mut config = config(dir);
    config.run.dir = dir.join(name);
    config.losses.extend(losses);
    config.train.steps = Some(4);
    config
}

fn assert_same(a: &[StepRow], b: &[StepRow]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!(a.terms.keys().all(|name| b.terms.contains_key(name)), "{:?} {:?}", a.terms, b.terms);
        let terms = a.terms.iter().map(|(name, value)| (name.as_str(), *value, b.terms[name]));
        // The same sums in another order: rounding of f32, carried through four steps of AdamW.
        for (what, a, b) in terms.chain([("loss", a.loss, b.loss), ("gradient norm", a.grad_norm, b.grad_norm)]) {
            assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-3), "{what}: {a} and {b}");
        }
    }
}

#[test]
fn accumulated_and_recomputed_steps_are_those_of_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let losses = || {
        let inner = HiddenPair { student: 1, teacher: 4 };
        vec![
            exits(ExitWeights::Weighted, vec![ExitReference::Final, ExitReference::Teacher]),
            hidden(Some(vec![inner])),
        ]
    };
    let mut whole = with(dir.path(), "whole", losses());
    whole.train.batch_size = 4;
    whole.train.gradient_accumulation = 1;
    let mut parts = with(dir.path(), "parts", losses());
    parts.train.batch_size = 1;
    parts.train.gradient_accumulation = 4;
    let mut again = whole.clone();
    again.run.dir = dir.path().join("again");
    again.train.checkpoint_recursions = true;
    let whole = run(&whole, "cpu");
    let names: Vec<&str> = whole[0].terms.keys().map(String::as_str).collect();
    let exits = ["exit_1_cross_entropy", "exit_1_final", "exit_1_teacher"];
    assert_eq!(names, [&["cross_entropy", "distill"][..], &exits, &["hidden"]].concat());
    assert_same(&whole, &run(&parts, "cpu"));
    assert_same(&whole, &run(&again, "cpu"));
    assert_eq!(whole[2].heldout_exits.len(), 1);
    assert!(whole[2].heldout_exits[0] > whole[2].heldout_cross_entropy.unwrap());
}

#[test]
fn rows_that_are_not_full_count_by_their_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let losses = || vec![exits(ExitWeights::Weighted, vec![ExitReference::Final]), hidden(None)];
    let best_fit = |name: &str, batch_size, gradient_accumulation| {
        let mut config = with(dir.path(), name, losses());
        // Documents of a few words, of which a row has one.
        config.data.train = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/rows.jsonl.gz")];
        config.data.packing = retie_config::Packing::BestFit;
        config.data.sequence_length = 8;
        (config.train.batch_size, config.train.gradient_accumulation) = (batch_size, gradient_accumulation);
        run(&config, "cpu")
    };
    let (whole, parts) = (best_fit("whole", 4, 1), best_fit("parts", 1, 4));
    assert!(whole.last().unwrap().tokens < 4 * 4 * 8, "all rows are full: {:?}", whole.last());
    assert_eq!(whole.last().unwrap().tokens, parts.last().unwrap().tokens);
    assert_same(&whole, &parts);
    assert!(whole.iter().any(|row| row.heldout_cross_entropy.is_some()));
}

#[test]
fn exits_of_weight_zero_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let plain = run(&with(dir.path(), "plain", Vec::new()), "cpu");
    let exits = exits(ExitWeights::Aggressive { c: 0.0 }, vec![ExitReference::Final]);
    assert_same(&plain, &run(&with(dir.path(), "exits", vec![exits]), "cpu"));
}

#[test]
fn a_trained_exit_gets_better() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = with(dir.path(), "run", vec![exits(ExitWeights::Aggressive { c: 1.0 }, Vec::new())]);
    config.losses.retain(|loss| loss.name() != "distill");
    config.teacher = None;
    config.train.steps = Some(20);
    let rows = run(&config, "cpu");
    let losses: Vec<f64> = rows.iter().flat_map(|row| row.heldout_exits.clone()).collect();
    assert!(losses.len() >= 6 && losses[losses.len() - 1] < losses[0] - 0.2, "{losses:?}");
}

#[test]
fn drawn_exits_are_the_same_after_a_resume_on_two_ranks_and_in_any_micro_batch() {
    let dir = tempfile::tempdir().unwrap();
    let drawn = |name: &str| {
        let exits = EarlyExitConfig { weights: ExitWeights::Weighted, distill: None, sample: true };
        let mut config = with(dir.path(), name, vec![LossTerm::new(1.0, exits)]);
        (config.train.batch_size, config.train.gradient_accumulation, config.train.steps) = (1, 2, Some(6));
        (config.train.checkpoint_every, config.train.seed) = (3, 0);
        config
    };
    let rows = run(&drawn("whole"), "cpu");
    // Of the two sequences of a step with two recursions both, one or none draw the exit.
    let column = |row: &StepRow| row.terms.get("exit_1_cross_entropy").copied();
    let with_exit = rows.iter().filter(|row| column(row).is_some()).count();
    assert!((1..6).contains(&with_exit), "{:?}", rows.iter().map(column).collect::<Vec<_>>());
    // A column is a plain mean over what was drawn: near the loss of the untrained exit, not twice
    // it.
    let first = rows.iter().find_map(column).unwrap();
    assert!((rows[0].cross_entropy.unwrap()..12.0).contains(&first), "{first}");

    let broken = drawn("broken");
    stop_after(&broken, 3);
    start(&broken, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(&rows));

    let ranks = drawn("ranks");
    Threads::run(2, |of_job| start_on(&ranks, Resume::Never, of_job, &AtomicBool::new(false)).unwrap());
    assert_same(&read_metrics(&ranks.run.dir).unwrap(), &rows);

    // A sequence draws for itself: one micro-batch of two is two of one.
    let mut together = drawn("together");
    (together.train.batch_size, together.train.gradient_accumulation) = (2, 1);
    assert_same(&run(&together, "cpu"), &rows);
}

#[test]
fn what_a_term_needs_of_the_models_is_checked_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |losses| {
        let config = with(dir.path(), "run", losses);
        let result = start(&config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {});
        assert!(!config.run.dir.exists());
        match result {
            Err(error @ TrainError::Loss { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        refusal(vec![exits(ExitWeights::Each(vec![0.1, 0.2]), Vec::new())]),
        "loss `early_exit` does not fit the models: `weights.each` has 2 factors, expected 1\n\
         hint: one for each recursion but the last"
    );
    assert_eq!(
        refusal(vec![hidden(Some(vec![HiddenPair { student: 8, teacher: 0 }]))]),
        "loss `hidden` does not fit the models: `map` compares depth 8 of 8 with depth 0 of 8\nhint: depths are counted from 0"
    );
    let mut config = with(dir.path(), "run", vec![exits(ExitWeights::Weighted, Vec::new())]);
    config.student.model = support::assets().join("demo-model").display().to_string();
    config.losses.push(LossTerm::new(1.0, CrossEntropyConfig::default()));
    let result = start(&config, "cpu", Resume::Never, &AtomicBool::new(false), &mut |_| {});
    assert!(matches!(result, Err(TrainError::Loss { loss: "early_exit", .. })), "{result:?}");
}
