//! Uptraining runs with several stages.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use serde_json::Value;
use support::{CONVERT, Place, STAGES, uptrain_yaml};

fn place() -> Place {
    let place = Place::new();
    place.retie(CONVERT).ok();
    place.write("run.yaml", format!("{}{STAGES}", uptrain_yaml(5)));
    place
}

fn rows(place: &Place, stage: &str) -> Vec<Value> {
    place.read(&format!("run/{stage}/metrics.jsonl")).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_stage_is_a_run_on_the_model_of_the_one_before() {
    let place = place();
    let json: Value = serde_json::from_str(&place.retie("uptrain run.yaml --json").ok()).unwrap();
    let names: Vec<&str> = json["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["warm", "whole"]);
    let (warm, whole) = (rows(&place, "warm"), rows(&place, "whole"));
    assert_eq!((warm.len(), whole.len()), (6, 5));
    // Blockwise training has a loss term of its own and no training logits; the held-out loss is
    // measured as usual.
    assert!(warm.iter().all(|row| row["cross_entropy"].is_null() && row["terms"]["distill"].is_null()));
    let blockwise = |row: &Value| row["terms"]["blockwise"].as_f64().unwrap();
    assert!(blockwise(&warm[5]) < blockwise(&warm[0]), "{} {}", warm[5], warm[0]);
    let heldout = |stage: &str, step: u64| -> f64 {
        let row: Value = serde_json::from_str(&place.read(&format!("run/{stage}/eval/step-{step}.json"))).unwrap();
        row["heldout_cross_entropy"].as_f64().unwrap()
    };
    assert!(heldout("warm", 6) < heldout("warm", 0));
    assert_eq!(heldout("whole", 0), heldout("warm", 6), "it begins where the other ended");
    assert!(whole[0]["terms"]["blockwise"].is_null() && whole[0]["terms"]["distill"].is_number());
    // Keys of a stage override the common ones; the others stay.
    let config = place.read("run/warm/config.resolved.yaml");
    assert!(config.contains("batch_size: 2") && config.contains("cosine"), "{config}");
    assert!(place.read("run/whole/config.resolved.yaml").contains("warmup_stable_decay"));

    // A finished stage is skipped on resuming.
    fs_err::remove_dir_all(place.path("run/whole")).unwrap();
    let run = place.retie("uptrain run.yaml --resume");
    assert!(run.stderr.contains("stage warm is done: run/warm/model"), "{run:?}");
    run.ok();
    let again = rows(&place, "whole");
    assert_eq!(again[4]["loss"], whole[4]["loss"]);
}

#[test]
fn a_file_of_stages_is_checked_whole_before_anything_is_written() {
    let place = place();
    let listing = place.listing();
    let validated = place.retie("config validate run.yaml").ok();
    assert!(validated.contains("# stage warm\n") && validated.contains("model: run/warm/model"), "{validated}");
    let plan = place.retie("uptrain run.yaml --dry-run").ok();
    assert!(plan.contains("# stage whole\n"), "{plan}");
    for (set, expected) in [
        ("stages.1.name=warm", "`stages.1` is called `warm`, as one before it"),
        ("stages.0.name=a/b", "`stages.0` has no `name`, expected one of letters, digits, `-` and `_`"),
        ("stages.0.run=1", "unknown key `stages.0.run`\n  hint: a stage may say `name`, `teacher`, `losses`"),
        ("stages.1.train.step=4", "unknown key `train.step`\n  hint: did you mean `steps`?"),
        ("stages.1.train={batch_size: 0}", "`train.batch_size` is `0`, expected a positive integer"),
        ("stages=[]", "`stages` is empty, expected at least one"),
        ("stages=3", "`stages` is `3`, expected a list"),
        (
            "stages.0.optimizer.groups={shared: {lr: 0}, unshared: {lr: 0}, lora: {lr: 0}, extras: {lr: 0}, norms: {lr: 0}}",
            "loss `blockwise` trains the layers, and all of their groups are frozen",
        ),
    ] {
        let run = place.retie_with(&["uptrain", "run.yaml", "--set", set]);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!(run.stderr.contains(expected), "{set}: {run:?}");
    }
    let error = place.refused("uptrain run.yaml --set stages.1.data={train:[text/none.jsonl]}");
    assert!(error.contains("none.jsonl"), "{error}");
    let error = place.refused("uptrain run.yaml --resume=run/warm");
    assert!(error.contains("`run.yaml` has stages"), "{error}");
    let text = uptrain_yaml(4).replace("teacher: {model: base}", "teacher: {logits: kept}");
    place.write("kept.yaml", format!("{text}{STAGES}"));
    let error = place.refused("uptrain kept.yaml");
    assert!(error.contains("loss `blockwise` needs the teacher's hidden states, `teacher.logits` has none"), "{error}");
    fs_err::remove_file(place.path("kept.yaml")).unwrap();
    assert_eq!(place.listing(), listing);
}
