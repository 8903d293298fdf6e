//! Induced trees: a training, a probe of each recursion, their page, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use serde_json::Value;
use support::Place;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Options that make a training short.
const SHORT: &str = "--sentences 48 --held-out 12 --steps 3 --batch-size 12 --hidden-size 16 --tokens 5..12";

#[test]
fn trees_are_induced_from_masked_words_and_drawn() {
    let place = Place::new();
    let line = format!("lab trees --grammar listops?length=2..5,json?length=1..2 --seeds 2 {SHORT} -o ./trees.json");
    let table = place.retie(&line).ok();
    assert!(table.contains("Trees of listops?length=2..5") && table.contains("Trees of json?length=1..2"), "{table}");
    assert!(table.contains("right-branching") && table.contains("induced"), "{table}");
    let result = &json(&place.read("trees.json"))["trees"][0];
    assert_eq!(result["groups"][0]["seeds"].as_array().unwrap().len(), 2);
    assert!(result["rules"]["right_branching"]["ceiling"].as_f64().unwrap() > 0.1, "{result}");
    place.retie("lab report . -o page.html").ok();
    let page = place.read("page.html");
    for part in ["<h2>trees: trees of listops?length=2..5</h2>", "induced, seed 1", "<svg width=", "var(--series1)"] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn states_before_the_loop_and_after_each_recursion_are_probed() {
    let place = Place::new();
    place.retie("convert base --recursions 2 --sharing middle_cycle --init average -o looped").ok();
    let spans = r#"{"tokens": ["the", "old", "man", "sat", "down"], "spans": [[0, 3], [3, 5]]}"#;
    place.write("spans.jsonl", [spans; 20].join("\n"));
    let line = format!("probe trees looped --tasks dyck?length=4..8 --data spans.jsonl {SHORT} --json");
    let result = json(&place.retie(&line).ok());
    for source in result["trees"].as_array().unwrap() {
        let names: Vec<_> = source["groups"].as_array().unwrap().iter().map(|group| &group["name"]).collect();
        assert_eq!(names, ["before recursion 1", "recursion 1", "recursion 2"]);
    }
    assert_eq!(result["trees"][1]["source"], "spans.jsonl");
    assert_eq!(result["trees"][1]["held_out_sentences"], 4);
}

#[test]
fn what_has_no_trees_is_refused() {
    let place = Place::new();
    place.write("cross.jsonl", r#"{"tokens": ["a", "b", "c"], "spans": [[0, 2], [1, 3]]}"#);
    place.write("outside.jsonl", r#"{"tokens": ["a", "b", "c"], "spans": [[0, 4]]}"#);
    place.write("one.jsonl", r#"{"tokens": ["a"], "spans": []}"#);
    for (line, expected) in [
        ("lab trees --grammar copy", "the problems of task `copy` have no tree here, expected one of arithmetic, dyck"),
        ("lab trees --window 0", "the window is 0, expected 1 or more splits of a cell"),
        ("lab trees --hidden-size 30", "`num_attention_heads` is 4, expected a divisor of the hidden size 30"),
        ("lab trees --tokens 1..5", "expected a number of tokens from 2 on"),
        ("lab trees --data cross.jsonl", "line 1 of `cross.jsonl` has the spans 0..2 and 1..3, which cross"),
        ("lab trees --data outside.jsonl", "has the span 0..4 of 3 tokens"),
        ("lab trees --data one.jsonl", "has 1 tokens, expected 2 or more"),
        ("lab trees --grammar listops?length=2 --tokens 9..12", "has no sentences of 9 to 12 tokens"),
        ("probe trees base --tasks succ", "the problems of task `succ` have no tree here"),
    ] {
        let message = place.refused(line);
        assert!(message.contains(expected), "{line}: {message}");
    }
}
