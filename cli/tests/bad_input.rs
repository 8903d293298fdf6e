//! What a user can get wrong: each gives a message that says what to do, exit code 2, and nothing is written.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use insta::assert_snapshot;
use safetensors::{SafeTensors, tensor::TensorView};
use support::{CONVERT, Place, uptrain_yaml};

const TO: &str = "--recursions 2 --sharing middle_cycle --init average -o out";

#[test]
fn a_missing_shard_is_named() {
    let place = Place::new();
    fs_err::remove_file(place.path("base/model.safetensors")).unwrap();
    place.write(
        "base/model.safetensors.index.json",
        r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#,
    );
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"");
}

#[test]
fn a_truncated_file_is_told_from_a_whole_one() {
    let place = Place::new();
    let bytes = fs_err::read(place.path("base/model.safetensors")).unwrap();
    place.write("base/model.safetensors", &bytes[..bytes.len() / 2]);
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"");
    place.write("base/model.safetensors", &bytes[..4]);
    assert_snapshot!(place.refused("inspect base"), @"");
}

#[test]
fn all_tensors_of_a_wrong_shape_are_listed() {
    let place = Place::new();
    let bytes = fs_err::read(place.path("base/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let changed = tensors.tensors().into_iter().map(|(name, view)| {
        let mut shape = view.shape().to_vec();
        if name.ends_with("layers.3.mlp.up_proj.weight") || name.ends_with("layers.5.self_attn.k_proj.weight") {
            shape.reverse();
        }
        let data = view.data();
        (name, TensorView::new(view.dtype(), shape, data).unwrap())
    });
    let changed = safetensors::serialize(changed, None).unwrap();
    place.write("base/model.safetensors", changed);
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"");
    assert_snapshot!(place.refused("generate base -p x"), @"");
}

#[test]
fn an_unknown_architecture_is_refused_with_what_is_known() {
    let place = Place::new();
    let config = place.read("base/config.json").replace("\"model_type\": \"llama\"", "\"model_type\": \"gpt_neox\"");
    place.write("base/config.json", config);
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"");
}

#[test]
fn pickles_are_refused_with_the_reason() {
    let place = Place::new();
    fs_err::rename(place.path("base/model.safetensors"), place.path("base/pytorch_model.bin")).unwrap();
    assert_snapshot!(place.refused("inspect base"), @"");
}

#[test]
fn recursions_that_do_not_divide_name_those_that_do() {
    let place = Place::new();
    let line = "convert base --recursions 4 --sharing middle_cycle --init average -o out";
    assert_snapshot!(place.refused(line), @"");
    assert_snapshot!(place.refused(&line.replace('4', "0")), @"");
}

#[test]
fn a_rank_out_of_range_names_the_range() {
    let place = Place::new();
    assert_snapshot!(place.refused(&format!("convert base {TO} --lora-rank 0")), @"");
    assert_snapshot!(place.refused(&format!("convert base {TO} --lora-rank 129")), @"");
}

#[test]
fn an_unknown_choice_lists_the_choices() {
    let place = Place::new();
    assert_snapshot!(place.refused("convert base --recursions 2 --sharing middle --init average -o out"), @"");
}

#[test]
fn all_problems_of_a_yaml_file_are_reported_with_their_lines() {
    let place = Place::new();
    let yaml = uptrain_yaml(10)
        .replace("{model: converted}", "{modle: converted}")
        .replace("sequence_length: 32", "sequence_length: long")
        .replace("batch_size: 2", "batch_size: 0");
    place.write("bad.yaml", yaml);
    assert_snapshot!(place.refused("uptrain bad.yaml"), @"");
    assert_snapshot!(place.refused("config validate bad.yaml"), @"");
    assert_snapshot!(place.refused("uptrain absent.yaml"), @"");
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let place = Place::new();
    let other = "../data/tests/golden/tiny_tokenizer.json";
    fs_err::copy(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(other), place.path("base/tokenizer.json"))
        .unwrap();
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"");
    assert_snapshot!(place.refused("generate base -p x"), @"");
    fs_err::remove_file(place.path("base/tokenizer.json")).unwrap();
    assert_snapshot!(place.refused("generate base -p x"), @"");
}

#[test]
fn empty_and_non_utf8_data_files_are_refused() {
    let place = Place::new();
    place.retie(CONVERT).ok();
    place.write("run.yaml", uptrain_yaml(10));
    place.write("text/train.jsonl", "");
    assert_snapshot!(place.refused("uptrain run.yaml"), @"");
    place.write("text/train.jsonl", b"{\"text\": \"ab\"}\n{\"text\": \"a\xff\"}\n");
    assert_snapshot!(place.refused("uptrain run.yaml"), @"");
    place.write("text/train.jsonl", "{\"text\": \"ab\"}\n{\"text\": \n");
    assert_snapshot!(place.refused("uptrain run.yaml"), @"");
    assert_snapshot!(place.refused("uptrain run.yaml --set data.train=[no.jsonl,text]"), @"");
    place.write("text/raw.txt", b"ab\xff");
    assert_snapshot!(place.refused("eval base --tasks perplexity --text text/raw.txt"), @"");
}

#[test]
fn a_malformed_line_of_a_task_file_is_named() {
    let place = Place::new();
    fs_err::create_dir(place.path("tasks")).unwrap();
    let row = r#"{"id": 0, "contexts": ["a", "a"], "continuations": [" b", " c"], "gold": 0}"#;
    place.write("tasks/piqa.jsonl", format!("{row}\n{{\"goal\": 1\n{}\n", row.replace("\"gold\": 0", "\"gold\": 2")));
    assert_snapshot!(place.refused("eval base --tasks piqa --data tasks"), @"");
    assert_snapshot!(place.refused("eval base --tasks arc_easy --data tasks"), @"");
}

#[test]
fn tasks_that_cannot_be_measured_say_why() {
    let place = Place::new();
    assert_snapshot!(place.refused("eval base --tasks hellaswagg"), @"");
    assert_snapshot!(place.refused("eval base --tasks perplexity"), @"");
    assert_snapshot!(place.refused("eval base --tasks piqa --text text/heldout.jsonl"), @"");
    assert_snapshot!(place.refused("eval base --tasks perplexity --text text/heldout.jsonl --window 512"), @"");
    assert_snapshot!(place.refused("eval base --tasks perplexity --text text/heldout.jsonl --json no/a.json"), @"");
}

#[test]
fn a_folder_that_holds_something_is_not_written_to() {
    let place = Place::new();
    fs_err::create_dir(place.path("out")).unwrap();
    place.write("out/precious.txt", "x");
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"");
    assert_snapshot!(place.refused("demo --out out"), @"");
}

#[test]
fn a_model_that_is_not_there_says_where_it_was_looked_for() {
    let place = Place::new();
    assert_snapshot!(place.refused("inspect bas"), @"");
    assert_snapshot!(place.refused("inspect org/name"), @"");
}

#[test]
fn a_prompt_that_does_not_fit_the_context_is_refused() {
    let place = Place::new();
    assert_snapshot!(place.refused("generate base -p x --max-new-tokens 256"), @"");
    assert_snapshot!(place.refused("generate base -p x --top-p 0"), @"");
}

#[test]
fn a_device_that_is_not_in_the_binary_names_the_feature() {
    let place = Place::new();
    assert_snapshot!(place.refused("generate base -p x --device tpu"), @"");
    if cfg!(not(feature = "cuda")) {
        assert_snapshot!(place.refused("generate base -p x --device cuda:0"), @"");
    }
}

#[test]
fn a_report_of_nothing_or_of_other_files_is_refused() {
    let place = Place::new();
    assert_snapshot!(place.refused("report -o r.html"), @"");
    assert_snapshot!(place.refused("report text -o r.html"), @"");
    assert_snapshot!(place.refused("report --eval a=base/config.json -o r.html"), @"");
}
