//! `retie bench step` on the CPU, and what it refuses. Launches are counted on devices that have
//! kernels: `trainer/tests/launches.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use serde_json::Value;
use support::{CONVERT, Place, uptrain_yaml};

fn place() -> Place {
    let place = Place::new();
    place.retie(CONVERT).ok();
    place.write("run.yaml", uptrain_yaml(3));
    place
}

#[test]
fn a_step_is_measured_on_tokens_that_are_drawn() {
    let place = place();
    // The text is not read.
    let command = "bench step run.yaml --set data.train=[none.jsonl] --batch 3 --seq 16 --steps 1 --device cpu";
    let figures: Value = serde_json::from_str(&place.retie(&format!("{command} --json")).ok()).unwrap();
    assert_eq!((&figures["batch"], &figures["seq"]), (&3.into(), &16.into()));
    let number = |path: &str| figures.pointer(path).and_then(Value::as_f64).unwrap();
    let seconds = number("/seconds/micro_batch") + number("/seconds/update");
    assert!((number("/tokens_per_second") * seconds - 48.0).abs() < 1e-6, "{figures}");
    // Functions are called on the CPU, not kernels launched, and its memory is the host's.
    assert_eq!((figures["reads"].as_u64(), figures.get("on_device")), (Some(0), None));
    let text = place.retie(command).ok();
    assert!(text.starts_with("step      3 × 16 tokens in f32 on cpu: "), "{text}");
}

#[test]
fn what_cannot_be_counted_is_refused() {
    let place = place();
    let message = place.refused("bench step run.yaml --dry-run --device cpu");
    assert!(message.contains("`--dry-run` counts the kernels of a GPU, and `cpu` is the CPU"), "{message}");
    let cached = uptrain_yaml(3).replace("teacher: {model: base}", "teacher: {logits: cached}");
    place.write("cached.yaml", cached);
    let message = place.refused("bench step cached.yaml --device cpu");
    assert!(message.contains("`teacher.logits`"), "{message}");
    let message = place.refused("bench step run.yaml --batch 0 --device cpu");
    assert!(message.contains("--batch"), "{message}");
}
