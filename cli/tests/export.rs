//! `retie export`: what it wrote has the logits of `transformers`, and what no format holds is
//! refused.
//!
//! The models of `export/`, one of each family, and their logits are by `export/make.py`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use burn::tensor::Device;
use insta::assert_snapshot;
use retie_checkpoint::{Dtype, ModelSource, widen};
use retie_model::{
    CausalLm, SelectionRule, TokenIds,
    kernels::{Layout, f32_slice},
};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};
use support::{CONVERT, Place, copy, uptrain_yaml};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/export")
}

/// Names of the golden models.
fn families() -> Vec<String> {
    let entries = fs_err::read_dir(goldens()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = entries
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// Largest difference of the logits of the model at `path` from those of `transformers` for the
/// golden model `name`, relative to the largest; with `recursions` of the exit after so many.
fn difference(path: &Path, name: &str, recursions: Option<usize>) -> f32 {
    let bytes = fs_err::read(goldens().join("logits.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let ids = golden.tensor(&format!("{name}.ids")).unwrap();
    let ids: Vec<u32> = ids.data().as_chunks::<8>().0.iter().map(|id| i64::from_le_bytes(*id) as u32).collect();
    let expected = if recursions.is_some() { "exit" } else { "logits" };
    let expected = widen(golden.tensor(&format!("{name}.{expected}")).unwrap().data(), Dtype::F32);
    let source = ModelSource::open(path.to_str().unwrap()).unwrap();
    source.validate().unwrap();
    let device = Device::flex();
    let model = CausalLm::load(&source.config, source.tensors.as_ref(), &device).unwrap();
    let layout = Layout::batch(1, ids.len());
    let forward = model.begin(TokenIds::upload(ids.iter().copied(), &device), layout, SelectionRule::Causal);
    let (hidden, _) = match recursions {
        Some(recursions) => forward.exit_after(recursions),
        None => forward.finish(),
    };
    let logits = model.logits(hidden).into_data();
    let found = f32_slice(&logits);
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// Tolerance of logits in f32 beside those in f64: some hundred roundings of 2⁻²⁴ each.
const F32: f32 = 1e-5;

#[test]
fn plain_folders_of_every_family_have_the_logits_of_transformers() {
    let place = Place::new();
    let families = families();
    assert_eq!(families.len(), 11, "{families:?}");
    for name in families {
        let model = place.path(&name);
        copy(&goldens().join(&name), &model);
        let export = format!("export {name} --to hf-unrolled --dtype f32 -o {name}-unrolled --json");
        let report = json(&place.retie(&export).ok());
        assert!(report["scaled"].as_u64().unwrap() >= 4, "{report}");
        assert!(report["merged"].as_u64().unwrap() >= 12, "{report}");
        let comparison = &report["comparison"];
        let merged = &comparison["merged"];
        assert_eq!((&merged["equal_tokens"], &merged["positions"]), (&Value::from(16), &Value::from(48)));
        for path in [&model, &place.path(&format!("{name}-unrolled"))] {
            let difference = difference(path, &name, None);
            assert!(difference <= F32, "{}: {difference}", path.display());
        }
        // What drafts of `transformers` compute (`scripts/test-exports`).
        let difference = difference(&model, &name, Some(1));
        assert!(difference <= F32, "{name} at its exit: {difference}");
    }
}

#[test]
fn an_adapter_of_peft_has_the_lora_of_every_depth_over_a_plain_base() {
    let place = Place::new();
    for name in families().iter().filter(|name| !name.starts_with("gpt_neox")) {
        copy(&goldens().join(name), &place.path(name));
        for dtype in ["f32", "keep"] {
            let export = format!("export {name} --to peft --dtype {dtype} -o {name}-{dtype} --json");
            let report = json(&place.retie(&export).ok());
            let comparison = &report["comparison"];
            assert_eq!(comparison["weights"]["outside"], json("[]"), "{report}");
            let [difference, largest] =
                ["max_difference", "largest_logit"].map(|key| comparison["reloaded"][key].as_f64().unwrap());
            // With `keep` the scales are rounded into bf16 weights.
            let is_close = difference <= f64::from(F32) * largest && comparison["reloaded"]["equal_tokens"] == 16;
            assert!(dtype == "keep" || is_close, "{report}");
        }
        let config = json(&place.read(&format!("{name}-f32/adapter_config.json")));
        assert_eq!((&config["r"], &config["lora_alpha"]), (&Value::from(2), &Value::from(2)), "{config}");
        let modules = config["target_modules"].as_array().unwrap();
        assert!(modules.contains(&Value::from("model.layers.2.self_attn.v_proj")), "{config}");
        assert!(!modules.contains(&Value::from("model.layers.3.self_attn.v_proj")), "{config}");
        let base = json(&place.read(&format!("{name}-f32/base/config.json")));
        assert_eq!((&base["num_hidden_layers"], base.get("recursion")), (&Value::from(4), None));
    }
    // Ranks that differ are stated by linear.
    place.retie(&format!("{CONVERT} --lora-ranks k_proj=2")).ok();
    place.retie("export converted --to peft -o adapter").ok();
    let config = json(&place.read("adapter/adapter_config.json"));
    let own = &config["rank_pattern"]["model.layers.4.self_attn.k_proj"];
    assert_eq!((own, &config["rank_pattern"], &config["r"]), (&json("2"), &config["alpha_pattern"], &json("4")));
    copy(&goldens().join("gpt_neox"), &place.path("gpt_neox"));
    assert_snapshot!(place.refused("export gpt_neox --to peft -o out"), @"
    error: `peft` cannot hold the model:
      a `GPTNeoXForCausalLM` has one linear for q, k and v, which have a LoRA each
    hint: `--to hf-unrolled` writes a plain model, with every LoRA merged
    ");
    place.retie("convert base --recursions 2 --sharing cycle --init average -o looped").ok();
    assert_snapshot!(place.refused("export looped --to peft -o out"), @"
    error: `peft` cannot hold the model:
      it has no LoRA that an adapter could hold
    hint: `--to hf-unrolled` writes a plain model, with every LoRA merged
    ");
}

#[test]
fn a_converted_model_is_exported_with_its_tokenizer_and_reports_what_it_is() {
    let place = Place::new();
    place.retie(&format!("{CONVERT} --share-norms false --relax dora")).ok();
    let run = place.retie("export converted --to hf-unrolled -o plain");
    assert!(run.stderr.ends_with("wrote plain\n"), "{}", run.stderr);
    let table = run.ok();
    assert!(
        table.contains("merged         42 linears") && table.contains("74 of 74 tensors are the merged ones"),
        "{table}"
    );
    let config = json(&place.read("plain/config.json"));
    assert_eq!((&config["model_type"], config.get("recursion")), (&Value::from("llama"), None));
    assert_eq!(place.read("plain/tokenizer.json"), place.read("base/tokenizer.json"));
    assert_eq!(json(&place.read("plain/retie.json"))["parent"]["model"], "converted");
    // The plain folder is a source like any other.
    place.retie("convert plain --recursions 1 --sharing cycle --init lower -o again").ok();
    place.retie("check identity plain --reference again --tolerance 0 --device cpu").ok();
}

#[test]
fn a_gguf_file_has_weights_tokenizer_and_template_of_the_model() {
    let place = Place::new();
    place.write("base/chat_template.jinja", "{{ messages }}");
    place.retie(&format!("{CONVERT} --share-norms false --extras residual_scale")).ok();
    for dtype in ["keep", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"] {
        let report =
            json(&place.retie(&format!("export converted --to gguf-unrolled --dtype {dtype} -o {dtype} --json")).ok());
        assert_eq!(report["comparison"]["weights"]["outside"], json("[]"), "{report}");
        assert_eq!(report["comparison"]["merged"]["equal_tokens"], 16, "{report}");
    }
    let generate = |model: &str| {
        json(&place.retie(&format!("generate {model} -p Energy --max-new-tokens 8 --dtype f32 --json")).ok())["ids"]
            .clone()
    };
    assert_eq!(generate("f32/model.gguf"), generate("converted"));
    // The tokenizer of the file splits text as that of the model does.
    place.retie("convert f32/model.gguf --recursions 1 --sharing cycle --init lower -o back").ok();
    let [ours, theirs] = ["base", "back"].map(|name| json(&place.read(&format!("{name}/tokenizer.json"))));
    for key in ["model", "pre_tokenizer", "added_tokens", "normalizer", "post_processor"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    assert_eq!(json(&place.read("back/tokenizer_config.json"))["chat_template"], "{{ messages }}");
}

#[test]
fn a_selection_is_folded_with_its_gates_and_removed_layers_leave_a_plain_folder_to_copy() {
    let place = Place::new();
    place.retie("convert base --init select --source-layers 0,1,2,3,2,3,7 --gate 0.25 -o selected").ok();
    place.retie("convert base --method drop --source-layers 0,1,2,3,7 -o dropped").ok();
    for (model, layers, is_scaled) in [("selected", 7, true), ("dropped", 5, false)] {
        for format in ["hf-unrolled", "gguf-unrolled"] {
            let out = format!("{model}-{format}");
            let report = json(&place.retie(&format!("export {model} --to {format} -o {out} --json")).ok());
            assert_eq!(report["scaled"].as_u64().unwrap() > 0, is_scaled, "{report}");
            assert_eq!(report["merged"], 0, "{report}");
            assert_eq!(report["comparison"]["merged"]["equal_tokens"], 16, "{report}");
        }
        let config = json(&place.read(&format!("{model}-hf-unrolled/config.json")));
        assert_eq!((&config["num_hidden_layers"], config.get("recursion")), (&Value::from(layers), None));
    }
    assert_snapshot!(place.refused("export dropped --to hf -o out"), @"
    error: `hf` cannot hold the model:
      it is not recursive
    hint: `--to hf-unrolled` writes a plain model
    ");
}

#[test]
fn a_loop_is_exported_each_layer_once_and_is_a_model_like_any_other() {
    let place = Place::new();
    place.retie("convert base --recursions 2 --sharing cycle --init average -o looped").ok();
    for (to, path) in [("gguf", "gguf/model.gguf"), ("hf-nanbeige", "hf-nanbeige")] {
        let report = json(&place.retie(&format!("export looped --to {to} -o {to} --json")).ok());
        // Norms of a GGUF file are F32.
        let [bytes, of_model] = ["bytes", "model_bytes"].map(|key| report[key].as_u64().unwrap());
        assert_eq!(report["tensors"], report["model_tensors"], "{report}");
        assert!((of_model..=of_model + 4096).contains(&bytes), "{report}");
        let comparison = &report["comparison"];
        assert_eq!((&comparison["weights"]["outside"], comparison.get("merged")), (&json("[]"), None), "{report}");
        let reloaded = &comparison["reloaded"];
        assert_eq!((&reloaded["max_difference"], &reloaded["equal_tokens"]), (&json("0.0"), &json("16")), "{report}");
        // It is converted and measured like any other recursive model.
        let inspected = json(&place.retie(&format!("inspect {path} --json")).ok());
        assert_eq!(inspected["recursion"]["num_recursions"], 2, "{inspected}");
    }
    // Rounding is not an error of a loop either.
    let report = json(&place.retie("export looped --to gguf --dtype q4_k_m -o small --json").ok());
    assert_eq!(report["comparison"]["passed"], true, "{report}");
    let report = json(&place.retie("export looped --to hf --dtype bf16 -o half --json").ok());
    assert_eq!(report["comparison"]["passed"], true, "{report}");
    place.retie(CONVERT).ok();
    let message = place.refused("export converted --to gguf -o out");
    assert!(
        message.contains("`gguf` cannot hold the model:\n  `sharing: middle_cycle`: a loop runs every stored layer"),
        "{message}"
    );
}

#[test]
fn the_recursive_folder_for_transformers_is_read_and_converted_further_by_retie() {
    let place = Place::new();
    place.retie(&format!("{CONVERT} --share-norms false --extras loop_norm,residual_scale --relax dora")).ok();
    place.retie("route converted --kind expert_choice -o routed").ok();
    let report = json(&place.retie("export routed --to hf -o hf --json").ok());
    assert!(report["notes"][0].as_str().unwrap().contains("every token goes through all recursions"), "{report}");
    assert_eq!((&report["bytes"], &report["tensors"]), (&report["model_bytes"], &report["model_tensors"]));
    assert_eq!(report["comparison"]["reloaded"]["max_difference"], 0.0, "{report}");
    let config = json(&place.read("hf/config.json"));
    assert_eq!(config["auto_map"]["AutoModelForCausalLM"], "modeling_retie.RetieForCausalLM");
    assert!(place.read("hf/configuration_retie.py").contains("model_type = \"recursive_llama\""));
    // The Python files stay behind, and so do their keys.
    place.retie("export hf --to hf -o again").ok();
    assert_eq!(json(&place.read("again/config.json")), config);
    place.write("run.yaml", uptrain_yaml(1).replace("{model: converted}", "{model: hf}"));
    place.retie("uptrain run.yaml").ok();
    let trained = json(&place.read("run/model/config.json"));
    assert!(trained.get("auto_map").is_none() && trained.get("stack").is_none(), "{trained}");
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    let place = Place::new();
    place.retie("convert base --recursions 2 --sharing cycle --init average --kv-sharing shared -o shared").ok();
    place.retie("convert base --recursions 2 --sharing cycle --init average -o looped").ok();
    place.retie("route looped --kind token_choice -o routed").ok();
    assert_snapshot!(place.refused("export shared --to hf-unrolled -o out"), @"
    error: `hf-unrolled` cannot hold the model:
      `kv_sharing: shared`: later recursions attend to the keys and values of the first
    hint: `--to hf` can, with routers at full depth
    ");
    assert_snapshot!(place.refused("export routed --to gguf-unrolled -o out"), @"
    error: `gguf-unrolled` cannot hold the model:
      its `token_choice` routers choose the recursions of each token, a plain model runs every layer
    hint: `--to hf` can, with routers at full depth
    ");
    assert_snapshot!(place.refused("export looped --to hf-unrolled --dtype q8_0 -o out"), @"error: `hf-unrolled` does not store `q8_0`, expected one of keep, f32, bf16, f16");
    assert_snapshot!(place.refused("export base --to hf -o out"), @"
    error: `hf` cannot hold the model:
      it is not recursive
    hint: `--to hf-unrolled` writes a plain model
    ");
    assert_snapshot!(place.refused("export looped --to onnx -o out"), @"
    error: invalid value 'onnx' for '--to <FORMAT>'
      [possible values: hf, hf-nanbeige, hf-unrolled, gguf, gguf-unrolled, peft]

    For more information, try '--help'.
    ");
    assert_snapshot!(place.refused("export looped --to hf-unrolled -o base"), @"
    error: `[DIR]/base` already holds `config.json`, `model.safetensors`, `tokenizer.json`
    hint: choose another folder with `-o`, or empty this one
    ");
}

#[test]
fn a_card_tells_the_history_of_a_folder_and_only_a_whole_one_with_a_card_is_pushed() {
    let place = Place::new();
    place.write("base/README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# Base\n");
    place.retie(CONVERT).ok();
    place.write("run.yaml", uptrain_yaml(2));
    place.retie("uptrain run.yaml").ok();
    place.nll("run/model");
    place.nll("base");
    place.retie("export run/model --to hf -o hf").ok();
    place.retie("card hf --base org/base --eval hf=run/model.json --eval base=base.json").ok();
    let card = place.read("hf/README.md");
    let metadata = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap().0;
    for line in [
        "license: apache-2.0",
        "base_model: org/base",
        "base_model_relation: finetune",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "- recursive-transformer",
    ] {
        assert!(metadata.lines().any(|found| found == line), "{line}\n{metadata}");
    }
    let index = metadata.lines().find_map(|line| line.strip_prefix("model-index: ")).unwrap();
    let metric = &json(index)[0]["results"][0]["metrics"][0];
    assert_eq!(metric["type"], "token_nll");
    for part in [
        "A Recursive Transformer, made of `org/base`: a Llama whose 5 stored layers make a stack of 8 by `middle_cycle`",
        "LoRA of rank 4",
        "Uptrained for 2 steps, 128 tokens of `text/train.jsonl`.",
        "retie convert base --recursions 2 --sharing middle_cycle --init average --lora-rank 4 -o converted\nretie uptrain run.yaml\n\
         retie export run/model --to hf -o hf",
        "trust_remote_code=True",
        "| hf |",
        "| base |",
    ] {
        assert!(card.contains(part), "{part}\n{card}");
    }
    let message = place.refused("card hf");
    assert!(message.contains("`hf/README.md` exists\nhint: remove it"), "{message}");
    let message = place.refused("push hf org/name");
    assert!(message.contains("nothing is uploaded: `HF_HUB_OFFLINE` is set"), "{message}");
    let message = place.refused("push converted org/name");
    assert!(
        message
            .contains("`converted` has no `README.md`, which the hub shows\nhint: `retie card converted` writes one"),
        "{message}"
    );
    let message = place.refused("push hf name");
    assert!(message.contains("`name` is no repository, expected `ORG/NAME`"), "{message}");
    fs_err::write(place.path("converted/model.safetensors"), b"cut off").unwrap();
    let message = place.refused("push converted org/name");
    assert!(message.contains("`converted` is not uploaded: it is no whole model"), "{message}");
    fs_err::remove_file(place.path("base/README.md")).unwrap();
    let message = place.refused("card run/model");
    assert!(message.contains("the licence of the base is not known"), "{message}");
    // Quality against cost, of the same evaluations.
    let shown = place.retie("report --pareto --eval hf=run/model.json --eval base=base.json -o pareto.html").ok();
    assert!(shown.contains("By bytes (bytes of weights), from the cheapest on, nothing is better than"), "{shown}");
    assert!(place.read("pareto.html").contains("not beaten"));
}
