//! Bad input: every case gives a message that says what to do and exit code 2, and writes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use insta::assert_snapshot;
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::Value;
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
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"
    error: `base/model.safetensors.index.json` names shards that are missing: `model-00001-of-00002.safetensors`, `model-00002-of-00002.safetensors`
    hint: download them again
    ");
}

#[test]
fn a_truncated_file_is_refused() {
    let place = Place::new();
    let bytes = fs_err::read(place.path("base/model.safetensors")).unwrap();
    place.write("base/model.safetensors", &bytes[..bytes.len() / 2]);
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"
    error: `base/model.safetensors` is truncated: 1742844 bytes, expected 3485688
    hint: download or copy it again
    ");
    place.write("base/model.safetensors", &bytes[..4]);
    assert_snapshot!(place.refused("inspect base"), @"
    error: `base/model.safetensors` is truncated: 4 bytes, expected 8
    hint: download or copy it again
    ");
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
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"
    error: 2 of the checkpoint's tensors do not fit its configuration:
      tensor `model.layers.3.mlp.up_proj.weight` in `base/model.safetensors` has shape [128, 352], expected [352, 128]
      tensor `model.layers.5.self_attn.k_proj.weight` in `base/model.safetensors` has shape [128, 64], expected [64, 128]
    ");
    assert_snapshot!(place.refused("generate base -p x"), @"
    error: 2 of the checkpoint's tensors do not fit its configuration:
      tensor `model.layers.3.mlp.up_proj.weight` in `base/model.safetensors` has shape [128, 352], expected [352, 128]
      tensor `model.layers.5.self_attn.k_proj.weight` in `base/model.safetensors` has shape [128, 64], expected [64, 128]
    ");
}

#[test]
fn an_unknown_architecture_is_refused_with_the_supported_ones() {
    let place = Place::new();
    let config = place.read("base/config.json").replace("\"model_type\": \"llama\"", "\"model_type\": \"mamba\"");
    place.write("base/config.json", config);
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"
    error: `base/config.json`: `model_type: mamba` is not supported
    hint: supported: `llama` (Llama 1 to 3, SmolLM, SmolLM2, TinyLlama), `mistral` (Mistral 7B, Ministral), `qwen2` (Qwen2, Qwen2.5), `qwen3` (Qwen3 without experts), `smollm3` (SmolLM3), `gemma` (Gemma 1), `gemma2` (Gemma 2), `gemma3_text` (Gemma 3 270M and 1B), `gpt_neox` (GPT-NeoX, Pythia), `olmo2` (OLMo 2), and the folders that `retie convert` writes
    ");
}

#[test]
fn pickles_are_refused_with_the_reason() {
    let place = Place::new();
    fs_err::rename(place.path("base/model.safetensors"), place.path("base/pytorch_model.bin")).unwrap();
    assert_snapshot!(place.refused("inspect base"), @"
    error: `base` has only pickle weights: `pytorch_model.bin`
    hint: a pickle can run code when it is read, so they are refused; use a revision with `model.safetensors`, or save the model with `safe_serialization=True`
    ");
}

#[test]
fn recursions_that_do_not_divide_name_those_that_do() {
    let place = Place::new();
    let line = "convert base --recursions 4 --sharing middle_cycle --init average -o out";
    assert_snapshot!(place.refused(line), @"
    error: `4` recursions do not divide the 6 layers that `middle_cycle` shares (of 8)
    hint: these numbers of recursions do: 1, 2, 3, 6; with `fit` (`drop`, `repeat`, `pad-unshared`) others can be had
    ");
    assert_snapshot!(place.refused(&line.replace('4', "0")), @"
    error: `recursions` is `0`, expected a positive integer
    hint: 1 copies the model
    ");
}

#[test]
fn patterns_that_do_not_fit_say_why() {
    let place = Place::new();
    let convert = |pattern: &str| place.refused(&format!("convert base {pattern} --init average -o out"));
    assert_snapshot!(convert("--recursions 2 --sharing middle_cycle --prelude 2"), @"
    error: sharing `middle_cycle` takes no `prelude` or `coda`: it has one unshared layer at each end
    hint: ask for `cycle` or `sequence` with the `prelude` and `coda` that you want
    ");
    assert_snapshot!(convert("--recursions 2 --sharing cycle --prelude 5 --coda 3"), @"error: `cycle` between 5 and 3 unshared layers needs at least 9 layers, found 8");
    assert_snapshot!(convert("--recursions 2 --sharing cycle --prelude 2 --coda 1"), @"
    error: `2` recursions do not divide the 5 layers that `cycle` between 2 and 1 unshared layers shares (of 8)
    hint: these numbers of recursions do: 1, 5; with `fit` (`drop`, `repeat`, `pad-unshared`) others can be had
    ");
    assert_snapshot!(convert("--map 0,1,2,1,2,3"), @"
    error: a map of 6 depths does not fit 8 layers
    hint: give one number for each layer of the model
    ");
    assert_snapshot!(convert("--map 0,2,1,2,1,3,4,5"), @"
    error: layers of a map are numbered in the order of their first use, and depth 1 has `2` where at most `1` is next
    hint: the same sharing is written [0, 1, 2, 1, 2, 3, 4, 5]
    ");
    assert_snapshot!(convert("--map 0,1,2,1,2,3,4,5 --recursions 3"), @"
    error: the map runs a layer `2` times at most, but `3` recursions are asked for
    hint: leave the number of recursions out, or correct it
    ");
    assert_snapshot!(convert("--map 0,1,2,1,2,3,4,5 --fit drop"), @"
    error: a `map` takes no `fit`: it says of every layer what becomes of it
    hint: leave `fit` out
    ");
}

#[test]
fn a_rank_out_of_range_names_the_range() {
    let place = Place::new();
    assert_snapshot!(place.refused(&format!("convert base {TO} --lora-rank 0")), @"
    error: `lora_rank` is `0`, expected a positive integer
    hint: leave `lora_rank` out for a model without LoRA
    ");
    assert_snapshot!(place.refused(&format!("convert base {TO} --lora-rank 129")), @"
    error: LoRA rank `129` is out of range, expected 1 to 128
    hint: 128 is the full rank of `self_attn.q_proj`
    ");
}

#[test]
fn invalid_lora_options_are_refused_with_the_reason() {
    let place = Place::new();
    let convert = |lora: &str| place.refused(&format!("convert base {TO} {lora}"));
    assert_snapshot!(convert("--lora-rank 4 --lora-budget 1000"), @"
    error: both ranks and a budget of the LoRA are given
    hint: the budget decides about ranks: give one or the other
    ");
    assert_snapshot!(convert("--lora-from 1 --relax dora --max-shard-size 1kB --calibration-tokens 9"), @"
    error: the conversion has 4 problems:
      a number of calibration tokens is given, but no text
      9 calibration tokens are too few, expected at least 64
      relaxation `dora` is asked for, but no rank of it
      LoRA is asked for from recursion 1 on, but there is none
    hint: name the text, or leave the number out
    hint: leave the number out, or ask for some thousands
    hint: give it a rank or a budget, e.g. `lora_rank`, or leave `relax` out
    hint: give it a rank or a budget, or leave `lora_from` out
    ");
    assert_snapshot!(convert("--max-shard-size 5Q"), @"
    error: invalid value '5Q' for '--max-shard-size <SIZE>': `5Q` is no size, expected a size in bytes such as `5GB` or `500MiB`

    For more information, try '--help'.
    ");
    assert_snapshot!(convert("--lora-from 1"), @"
    error: LoRA is asked for from recursion 1 on, but there is none
    hint: give it a rank or a budget, or leave `lora_from` out
    ");
    assert_snapshot!(convert("--relax dora"), @"
    error: relaxation `dora` is asked for, but no rank of it
    hint: give it a rank or a budget, e.g. `lora_rank`, or leave `relax` out
    ");
    assert_snapshot!(convert("--lora-rank 4 --lora-from 2"), @"
    error: LoRA from recursion 2 on is none: they are 0 to 1
    hint: 1 leaves out the first
    ");
    assert_snapshot!(convert("--lora-ranks k_proj=4,qkv=2"), @"
    error: the model has no linear `qkv`
    hint: its linears are `self_attn.q_proj`, `self_attn.k_proj`, `self_attn.v_proj`, `self_attn.o_proj`, `mlp.gate_proj`, `mlp.up_proj`, `mlp.down_proj`
    ");
    assert_snapshot!(convert("--lora-ranks k_proj"), @"
    error: invalid value 'k_proj' for '--lora-ranks <LINEAR=RANK,…>': expected LINEAR=RANK

    For more information, try '--help'.
    ");
    assert_snapshot!(convert("--lora-budget 100"), @"error: 100 parameters of LoRA buy nothing: one rank has at least 192, or nothing is lost by sharing");
}

#[test]
fn an_unknown_choice_lists_the_choices() {
    let place = Place::new();
    assert_snapshot!(place.refused("convert base --recursions 2 --sharing middle --init average -o out"), @"
    error: invalid value 'middle' for '--sharing <SHARING>'
      [possible values: cycle, sequence, middle_cycle, middle_sequence, map]

      tip: a similar value exists: 'middle_cycle'

    For more information, try '--help'.
    ");
}

#[test]
fn all_problems_of_a_yaml_file_are_reported_with_their_lines() {
    let place = Place::new();
    let yaml = uptrain_yaml(10)
        .replace("{model: converted}", "{modle: converted}")
        .replace("sequence_length: 32", "sequence_length: long")
        .replace("batch_size: 2", "batch_size: 0");
    place.write("bad.yaml", yaml);
    let message = place.refused("uptrain bad.yaml");
    assert_snapshot!(message, @"
    error: `bad.yaml` has 3 problems
    bad.yaml:3:11: unknown key `student.modle`
      hint: did you mean `model`?
    bad.yaml:8:20: `data.sequence_length` is `long`, expected an integer
    bad.yaml:15:32: `train.batch_size` is `0`, expected a positive integer
    ");
    assert_eq!(place.refused("config validate bad.yaml"), message);
    assert_snapshot!(place.refused("uptrain absent.yaml"), @"error: failed to open file `absent.yaml`: No such file or directory (os error 2)");
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let place = Place::new();
    let other = "../data/tests/golden/tiny_tokenizer.json";
    fs_err::copy(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(other), place.path("base/tokenizer.json"))
        .unwrap();
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"
    error: tokenizer `base/tokenizer.json` does not match the model: it has 402 tokens with ids up to 401, the model has a vocabulary of 2048
    hint: use the tokenizer.json that came with the model
    ");
    assert_snapshot!(place.refused("generate base -p x"), @"
    error: tokenizer `base/tokenizer.json` does not match the model: it has 402 tokens with ids up to 401, the model has a vocabulary of 2048
    hint: use the tokenizer.json that came with the model
    ");
    fs_err::remove_file(place.path("base/tokenizer.json")).unwrap();
    assert_snapshot!(place.refused("generate base -p x"), @"
    error: `base` has no `tokenizer.json`
    hint: copy the one that belongs to the model into the folder
    ");
}

#[test]
fn empty_and_non_utf8_data_files_are_refused() {
    let place = Place::new();
    place.retie(CONVERT).ok();
    place.write("run.yaml", uptrain_yaml(10));
    place.write("text/train.jsonl", "");
    assert_snapshot!(place.refused("uptrain run.yaml"), @"error: `text/train.jsonl` holds no text");
    place.write("text/train.jsonl", b"{\"text\": \"ab\"}\n{\"text\": \"a\xff\"}\n");
    assert_snapshot!(place.refused("uptrain run.yaml"), @"
    error: line 2 of `text/train.jsonl` is not UTF-8: the byte at offset 26 of the file cannot be decoded
    hint: save the text as UTF-8
    ");
    place.write("text/train.jsonl", "{\"text\": \"ab\"}\n{\"text\": \n");
    assert_snapshot!(place.refused("uptrain run.yaml"), @"
    error: line 2 of `text/train.jsonl` is not valid JSON
      caused by: EOF while parsing a value at line 2 column 0
    ");
    assert_snapshot!(place.refused("uptrain run.yaml --set data.train=[no.jsonl,text]"), @"
    error: 2 data files cannot be used:
      data file `no.jsonl` does not exist
      data file `text` is a folder
    ");
    place.write("text/a.jsonl.gz", "not packed");
    place.write("text/b.jsonl", "{\"text\": \"ab\"}\n");
    assert_snapshot!(place.refused("uptrain run.yaml --set data.train=[text/*.gz]"), @"
    error: `text/a.jsonl.gz` is not compressed with gzip, as its name says
    hint: take `.gz` off its name
    ");
    assert_snapshot!(place.refused("uptrain run.yaml --set data.train=[no/*.gz,text/*.zip]"), @"
    error: 2 data files cannot be used:
      pattern `no/*.gz` matches no data file
      pattern `text/*.zip` matches no data file
    ");
    assert_snapshot!(place.refused("uptrain run.yaml --set data.train=[text/*.jsonl]"), @"
    error: data file `text/heldout.jsonl` is named twice
    hint: a pattern may name it beside its own name; held-out text is not trained on
    ");
    let mixture = "mixture: [{files: [text/b.jsonl], weight: 0}, {files: [text/train.jsonl], weight: -1}]";
    place.write("mixture.yaml", uptrain_yaml(10).replace("train: [text/train.jsonl]", mixture));
    assert_snapshot!(place.refused("uptrain mixture.yaml"), @"
    error: `mixture.yaml` has 2 problems
    mixture.yaml:6:45: `data.mixture.0.weight` is `0`, expected a finite number above 0
    mixture.yaml:6:85: `data.mixture.1.weight` is `-1`, expected a finite number above 0
    ");
    place.write("text/raw.txt", b"ab\xff");
    assert_snapshot!(place.refused("eval base --tasks perplexity --text text/raw.txt"), @"
    error: `text/raw.txt` is not UTF-8: the byte at offset 2 of the file cannot be decoded
    hint: save the text as UTF-8
    ");
}

#[test]
fn a_malformed_line_of_a_task_file_is_named() {
    let place = Place::new();
    fs_err::create_dir(place.path("tasks")).unwrap();
    let row = r#"{"id": 0, "contexts": ["a", "a"], "continuations": [" b", " c"], "gold": 0}"#;
    place.write("tasks/piqa.jsonl", format!("{row}\n{{\"goal\": 1\n{}\n", row.replace("\"gold\": 0", "\"gold\": 2")));
    assert_snapshot!(place.refused("eval base --tasks piqa --data tasks"), @"
    error: `tasks/piqa.jsonl` has 2 bad rows for task `piqa`
    line 2: not valid JSON at column 10, expected an object: EOF while parsing an object
    line 3: `gold` is 2, expected an index below 2
    ");
    assert_snapshot!(place.refused("eval base --tasks arc_easy --data tasks"), @"error: `tasks` has no file for task `arc_easy`, expected `arc_easy.parquet` or `arc_easy.jsonl`");
}

#[test]
fn tasks_that_cannot_be_measured_say_why() {
    let place = Place::new();
    assert_snapshot!(place.refused("eval base --tasks hellaswagg"), @"
    error: unknown task `hellaswagg`, did you mean `hellaswag`?
    hint: the tasks are `lambada_openai`, `hellaswag`, `piqa`, `winogrande`, `arc_easy`, `arc_challenge`, `openbookqa`
    ");
    assert_snapshot!(place.refused("eval base --tasks perplexity"), @"
    error: task `perplexity` has no text
    hint: name a file with `--text FILE`
    ");
    assert_snapshot!(place.refused("eval base --tasks piqa --text text/heldout.jsonl"), @"
    error: `--text` is given, but `perplexity` is not among the tasks
    hint: add it to `--tasks`
    ");
    assert_snapshot!(place.refused("eval base --tasks perplexity --text text/heldout.jsonl --window 512"), @"
    error: a window of 512 tokens is longer than the model's context of 256
    hint: lower `--window`
    ");
    assert_snapshot!(place.refused("eval base --tasks perplexity --text text/heldout.jsonl --json no/a.json"), @"
    error: the folder of `no/a.json` does not exist
    hint: make it first
    ");
}

#[test]
fn a_teacher_of_another_vocabulary_is_refused() {
    let place = Place::new();
    fs_err::create_dir(place.path("other")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs_err::copy(place.path(&format!("base/{file}")), place.path(&format!("other/{file}"))).unwrap();
    }
    let mut tokenizer: Value = serde_json::from_str(&place.read("base/tokenizer.json")).unwrap();
    tokenizer["model"]["merges"].as_array_mut().unwrap().truncate(10);
    place.write("other/tokenizer.json", tokenizer.to_string());
    let eval = "eval base --tasks perplexity --text text/heldout.jsonl --teacher other";
    assert_snapshot!(place.refused(eval), @"
    error: the teacher `other` and the student `base` do not share a vocabulary: their tokenizers split the same text differently
    hint: distillation compares them token by token; use the student's original as the teacher
    ");
}

#[test]
fn a_folder_that_is_not_empty_is_not_written_to() {
    let place = Place::new();
    fs_err::create_dir(place.path("out")).unwrap();
    place.write("out/precious.txt", "x");
    assert_snapshot!(place.refused(&format!("convert base {TO}")), @"
    error: `[DIR]/out` already holds `precious.txt`
    hint: choose another folder with `-o`, or empty this one
    ");
    assert_snapshot!(place.refused("demo --out out"), @"
    error: `out` already holds `precious.txt`
    hint: choose another folder with `-o`, or empty this one
    ");
}

#[test]
fn a_model_that_is_not_there_says_where_it_was_looked_for() {
    let place = Place::new();
    assert_snapshot!(place.refused("inspect bas"), @"
    error: there is no model `bas`: `[DIR]/bas` is neither a folder nor a file; it is not a hub id (`org/name`) either
    hint: did you mean `base`?
    ");
    assert_snapshot!(place.refused("inspect org/name"), @"
    error: there is no model `org/name`: `[DIR]/org/name` is neither a folder nor a file; as a hub id it cannot be had either
      caused by: `org/name` cannot be had from the Hugging Face hub
      caused by: the hub cache lacks `[DIR]/hub/hub/models--org--name/refs/main`
    hint: `HF_HUB_OFFLINE` is set; unset it to download, or point `HF_HOME` or `HF_HUB_CACHE` at another cache
    ");
}

#[test]
fn a_prompt_that_does_not_fit_the_context_is_refused() {
    let place = Place::new();
    assert_snapshot!(place.refused("generate base -p x --max-new-tokens 256"), @"
    error: a prompt of 1 tokens and 256 new ones do not fit the context of 256
    hint: shorten the prompt or ask for fewer new tokens
    ");
    assert_snapshot!(place.refused("bench base --seq 64,0"), @"error: `--seq` is 0, expected at least 1");
    assert_snapshot!(place.refused("bench base --seq 200 --new-tokens 56"), @"
    error: a prompt of 200 tokens and 57 new ones, the first of them with the prompt, do not fit the model's context of 256
    hint: lower `--seq`
    ");
    assert_snapshot!(place.refused("generate base -p x --top-p 0"), @"error: `--top-p` is `0`, expected above 0, up to 1");
    assert_snapshot!(place.refused("generate base -p x --presence-penalty -3"), @"error: `--presence-penalty` is `-3`, expected -2 to 2");
    assert_snapshot!(place.refused("generate base -p x --stop="), @"error: `--stop` is empty, expected a text");
}

#[test]
fn a_device_that_is_not_in_the_binary_names_the_feature() {
    let place = Place::new();
    assert_snapshot!(place.refused("generate base -p x --device tpu"), @"
    error: unknown device `tpu`
    hint: one of auto, cpu, wgpu, wgpu:N, cuda, cuda:N
    ");
    if cfg!(not(feature = "cuda")) {
        assert_snapshot!(place.refused("generate base -p x --device cuda:0"), @"
        error: this binary has no `cuda` backend
        hint: build it with `--features cuda`
        ");
    }
}

#[test]
fn a_report_of_nothing_or_of_other_files_is_refused() {
    let place = Place::new();
    assert_snapshot!(place.refused("report -o r.html"), @"
    error: there is nothing to report
    hint: name a run's folder, or a file of `retie eval --json` with `--eval NAME=FILE`
    ");
    assert_snapshot!(place.refused("plot text -o c.svg"), @"error: `text` has no `metrics.jsonl`, expected the folder of a `retie uptrain` run");
    assert_snapshot!(place.refused("report text -o r.html"), @"error: `text` has no `metrics.jsonl`, expected the folder of a `retie uptrain` run");
    assert_snapshot!(place.refused("report --eval a=base/config.json -o r.html"), @"error: `base/config.json` has no object `results`, expected a file of `retie eval --json`");
}
