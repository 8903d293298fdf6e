//! `convert --init calibrated` on the bundled model.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use insta::assert_snapshot;
use safetensors::SafeTensors;
use serde_json::Value;
use support::Place;

const TO: &str = "--recursions 2 --sharing middle_cycle --share-norms false --dtype f32";
const FITTED: &str = "--init calibrated --calibration text/train.jsonl --calibration-tokens 2048";

#[test]
fn the_calibrated_init_is_better_than_average_and_deterministic() {
    let place = Place::new();
    for rank in ["", "--lora-rank 8"] {
        let name = |init: &str| format!("{init}{}", rank.len());
        let (average, first, second) = (name("average"), name("first"), name("second"));
        place.retie(&format!("convert base {TO} --init average {rank} -o {average}")).ok();
        let table = place.retie(&format!("convert base {TO} {FITTED} {rank} -o {first}")).ok();
        assert!(table.contains("fitted to 2,048 tokens of text/train.jsonl; scores on 512 others"), "{table}");
        place.retie(&format!("convert base {TO} {FITTED} {rank} -o {second}")).ok();
        for file in ["model.safetensors", "config.json", "convert.json"] {
            let read = |folder: &str| fs_err::read(place.path(&format!("{folder}/{file}"))).unwrap();
            assert!(read(&first) == read(&second), "{file}");
        }
        let (base, average, calibrated) = (place.nll("base"), place.nll(&average), place.nll(&first));
        // Better by more than a tenth of the NLL that `average` adds to the base model's.
        assert!(calibrated < average - 0.1 * (average - base), "{base} {average} {calibrated}");
        let report: Value = serde_json::from_str(&place.read(&format!("{first}/convert.json"))).unwrap();
        let scores = &report["calibration"];
        let score = |init: &str| scores[init]["nll"].as_f64().unwrap();
        assert!(scores["source_nll"].as_f64().unwrap() < score("calibrated") && score("calibrated") < score("average"));
    }
}

#[test]
fn full_rank_is_the_source_and_unshared_layers_stay_as_they_are() {
    let place = Place::new();
    place.retie(&format!("convert base {TO} {FITTED} --lora-rank 128 -o full")).ok();
    let (base, full) = (place.nll("base"), place.nll("full"));
    // LoRA factors are f32, and the damped metric has a condition number of about 1e4: at most 1e-3
    // nats.
    assert!((base - full).abs() < 1e-3, "{base} {full}");
    let read = |name: &str| fs_err::read(place.path(name)).unwrap();
    let (base, full) = (read("base/model.safetensors"), read("full/model.safetensors"));
    let (base, full) = (SafeTensors::deserialize(&base).unwrap(), SafeTensors::deserialize(&full).unwrap());
    for part in ["self_attn.q_proj", "mlp.down_proj"] {
        let source = base.tensor(&format!("model.layers.7.{part}.weight")).unwrap();
        let stored = full.tensor(&format!("model.layers.4.{part}.weight")).unwrap();
        assert_eq!(source.dtype() == stored.dtype(), source.data() == stored.data(), "{part}");
    }
}

#[test]
fn flags_and_yaml_give_the_same_calibrated_model() {
    let place = Place::new();
    place.retie("convert base --recursions 3 --sharing middle_sequence --init calibrated --calibration text/train.jsonl --calibration-tokens 512 --lora-rank 4 -o flags").ok();
    let yaml = "schema: 1\nmodel: base\nrecursions: 3\nsharing: middle_sequence\ninit: calibrated\ncalibration: text/train.jsonl\n\
                calibration_tokens: 512\nlora_rank: 4\noutput: file\n";
    place.write("convert.yaml", yaml);
    place.retie("convert --config convert.yaml").ok();
    let read = |name: &str| fs_err::read(place.path(name)).unwrap();
    assert!(read("flags/model.safetensors") == read("file/model.safetensors"));
}

#[test]
fn an_impossible_calibration_is_refused() {
    let place = Place::new();
    let to = "convert base --recursions 2 --sharing cycle -o out";
    assert_snapshot!(place.refused(&format!("{to} --init calibrated")), @"
    error: init `calibrated` has no text to be fitted to
    hint: name a text like those the model is for: `calibration: FILE` in a file, `--calibration FILE` as an option
    ");
    assert_snapshot!(place.refused(&format!("{to} --init average --calibration-tokens 100")), @"
    error: a number of calibration tokens is given, but no text
    hint: name the text, or leave the number out
    ");
    assert_snapshot!(place.refused(&format!("{to} {FITTED} --calibration-tokens 10").replace("--calibration-tokens 2048", "")), @"
    error: 10 calibration tokens are too few, expected at least 64
    hint: leave the number out, or ask for some thousands
    ");
    assert_snapshot!(place.refused(&format!("{to} {FITTED}").replace("--recursions 2", "--recursions 1")), @"
    error: init `calibrated` needs at least 2 recursions: with 1 no layer is shared
    hint: with 1 recursion every other init copies the model
    ");
    assert_snapshot!(place.refused(&format!("{to} --init calibrated --calibration no.jsonl")), @"error: data file `no.jsonl` does not exist");
    assert_snapshot!(place.refused(&format!("{to} --init calibrated --calibration text/heldout.jsonl --calibration-tokens 100000")), @"
    error: `text/heldout.jsonl` has 16471 tokens, expected at least 101888: 398 sequences of 256, part of them held out
    hint: name a longer text, or ask for fewer tokens
    ");
    place.write("empty.jsonl", "");
    assert_snapshot!(place.refused(&format!("{to} --init calibrated --calibration empty.jsonl")), @"error: `empty.jsonl` holds no text");
}
