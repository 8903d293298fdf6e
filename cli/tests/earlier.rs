//! Folders and recipes of an earlier version: a routed model, a run after two of four steps, and
//! its recipe, made by `earlier/make.sh` before keys were renamed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use serde_json::Value;
use std::path::Path;
use support::Place;

/// Losses are means of 32 tokens in f32, about 2 nats; other processors sum in other orders.
const TOLERANCE: f64 = 1e-4;

fn place() -> Place {
    let place = Place::new();
    copy_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/earlier"), place.root());
    place
}

fn copy_all(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_all(&path, &target);
        } else {
            fs_err::copy(&path, &target).unwrap();
        }
    }
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_model_has_its_kv_sharing_and_generates() {
    let place = place();
    let facts: Value = serde_json::from_str(&place.retie("inspect routed --json").ok()).unwrap();
    let config: Value = serde_json::from_str(&place.read("routed/config.json")).unwrap();
    assert_eq!(config["recursion"]["router"]["token_choice"]["kv"], "shared");
    assert_eq!(facts["recursion"]["kv_sharing"], "shared", "{facts}");
    let generation = place.retie("generate routed -p ba --max-new-tokens 3 --json").ok();
    let generation: Value = serde_json::from_str(&generation).unwrap();
    assert!((1..=3).contains(&generation["ids"].as_array().unwrap().len()), "{generation}");
}

#[test]
fn a_run_is_resumed_and_has_the_losses_that_it_would_have_had() {
    let place = place();
    place.retie("uptrain recipe.yaml --resume").ok();
    let (found, expected) = (rows(&place.read("run/metrics.jsonl")), rows(&place.read("expected.jsonl")));
    assert_eq!((found.len(), expected.len()), (4, 4));
    for (found, expected) in found.iter().zip(&expected) {
        for key in ["loss", "cross_entropy", "grad_norm"] {
            let [a, b] = [found, expected].map(|row| row[key].as_f64().unwrap());
            assert!((a - b).abs() < TOLERANCE * b.abs().max(1.0), "step {}, {key}: {a} and {b}", expected["step"]);
        }
    }
    assert!(found[3]["routing"]["mean_recursions"].is_number(), "{}", found[3]);
    place.retie("report run -o report.html").ok();
}

#[test]
fn a_recipe_of_an_earlier_version_is_valid() {
    place().retie("config validate recipe.yaml").ok();
}
