//! Pipelines of commands on the bundled model.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use safetensors::SafeTensors;
use serde_json::Value;
use support::{CONVERT, Place};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_converted_model_is_inspected_measured_and_generates() {
    let place = Place::new();
    let report = json(&place.retie(&format!("{CONVERT} --json")).ok());
    assert_eq!(report["num_layers"], 5);
    assert!(report["checks"].as_array().unwrap().iter().all(|check| check["passed"] == true));
    assert_eq!(json(&place.read("converted/convert.json")), report);
    let provenance = json(&place.read("converted/retie.json"));
    assert_eq!(provenance["command"][1], "convert");
    let files: Vec<&str> =
        provenance["parent"]["files"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert_eq!(files, ["config.json", "model.safetensors"]);

    let facts = json(&place.retie("inspect converted --json").ok());
    assert_eq!(
        facts["parameters"]["total"],
        report["parameters"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum::<u64>()
    );
    assert_eq!(facts["recursion"]["num_recursions"], 2);
    assert_eq!(facts["recursion"]["aliases"], report["aliases"]);
    let page = place.retie("inspect converted").ok();
    assert!(page.contains("LoRA                 rank 4"), "{page}");
    // Tied groups are read from the weights: without `convert.json` only the source layers are
    // missing.
    fs_err::remove_file(place.path("converted/convert.json")).unwrap();
    let layers = facts["recursion"]["layers"].as_array().unwrap();
    assert_eq!(
        layers.iter().map(|layer| layer["depths"].to_string()).collect::<Vec<_>>(),
        ["[0]", "[1,4]", "[2,5]", "[3,6]", "[7]"]
    );
    assert_eq!(
        &json(&place.retie("inspect converted --json").ok())["recursion"]["layers"],
        &facts["recursion"]["layers"]
    );
    assert!(page.contains(&format!("{}…", &layers[1]["sha256"].as_str().unwrap()[..12])), "{page}");

    let eval = "eval converted --tasks perplexity --text text/heldout.jsonl --limit 2 --window 64 --json eval.json";
    let table = place.retie(eval).ok();
    let nll = json(&place.read("eval.json"))["results"]["perplexity"]["token_nll"].as_f64().unwrap();
    assert!(table.contains(&format!("{nll:.4}")), "{table}");
    // A uniform prediction has ln 2048 = 7.62 nats.
    assert!(nll > 2.0 && nll < 7.6, "{nll}");

    let generate = "generate converted -p The --max-new-tokens 8 --temperature 0.8 --seed 3 --json";
    let generation = json(&place.retie(generate).ok());
    assert_eq!(json(&place.retie(generate).ok())["ids"], generation["ids"], "the same seed draws the same tokens");
    let run = place.retie("generate converted -p The --max-new-tokens 8 --temperature 0.8 --seed 3");
    assert_eq!(run.stdout, format!("{}\n", generation["text"].as_str().unwrap()));
    assert!(run.stderr.contains("prefill 1 tokens at") && run.stderr.contains("decode"), "{}", run.stderr);

    place.retie("report --eval converted=eval.json -o report.html").ok();
    assert!(place.read("report.html").contains(&format!("{nll:.4}")));
}

#[test]
fn a_model_is_compared_with_its_teacher() {
    let place = Place::new();
    place.retie(CONVERT).ok();
    let measure = |model: &str, options: &str| {
        let eval = "--tasks perplexity --text text/heldout.jsonl --limit 3 --window 64 --json eval.json";
        let table = place.retie(&format!("eval {model} {eval} {options}")).ok();
        (json(&place.read("eval.json"))["results"]["perplexity"].clone(), table)
    };
    let (alone, _) = measure("converted", "");
    let (mut beside, table) = measure("converted", "--teacher base");
    let teacher = beside.as_object_mut().unwrap().remove("teacher").unwrap();
    assert_eq!(beside, alone, "the other numbers stay what they are");
    let [kl, same] = ["forward_kl", "same_top"].map(|metric| teacher[metric].as_f64().unwrap());
    assert!(table.contains(&format!("{kl:.4}")), "{table}");
    // The conversion damages the model, but it still resembles its teacher.
    assert!(kl > 0.05 && kl < 5.0 && same > 0.1 && same < 1.0, "{teacher}");
    let (itself, _) = measure("base", "--teacher base");
    assert_eq!(itself["teacher"], serde_json::json!({ "forward_kl": 0.0, "same_top": 1.0 }));
}

#[test]
fn every_exit_is_measured_and_the_last_is_the_model() {
    let place = Place::new();
    place.retie(CONVERT).ok();
    let eval = "eval converted --tasks perplexity --text text/heldout.jsonl --limit 2 --window 64";
    place.retie(&format!("{eval} --json last.json")).ok();
    let text = place.retie(&format!("{eval} --depths all --json all.json")).ok();
    assert!(text.contains("recursion 1 of 2, 5 depths\n") && text.contains("recursion 2 of 2, 8 depths\n"), "{text}");
    let (last, mut all) = (json(&place.read("last.json")), json(&place.read("all.json")));
    let exits = all.as_object_mut().unwrap().remove("exits").unwrap();
    assert_eq!(all, last);
    assert_eq!((&exits[0]["recursion"], &exits[0]["depths"]), (&1.into(), &5.into()));
    let nll = |results: &Value| results["perplexity"]["token_nll"].as_f64().unwrap();
    // An untrained early exit is worse than the whole stack, but bounded.
    assert!(nll(&exits[0]["results"]) > nll(&last["results"]) && nll(&exits[0]["results"]) < 20.0, "{exits}");
    assert_eq!(exits.as_array().unwrap().len(), 1);
    let run = place.retie("eval base --tasks perplexity --text text/heldout.jsonl --limit 1 --window 64 --depths all");
    assert!(!run.ok().contains("recursion"), "a model of one recursion has no exits");
}

#[test]
fn a_conversion_with_one_recursion_is_the_model_byte_for_byte() {
    let place = Place::new();
    place.retie("convert base --recursions 1 --sharing cycle --init stepwise -o copy").ok();
    let read = |name: &str| fs_err::read(place.path(name)).unwrap();
    let (base, copy) = (read("base/model.safetensors"), read("copy/model.safetensors"));
    let (base, copy) = (SafeTensors::deserialize(&base).unwrap(), SafeTensors::deserialize(&copy).unwrap());
    assert_eq!(base.len(), copy.len());
    for (name, view) in base.tensors() {
        let other = copy.tensor(&name).unwrap();
        assert_eq!((view.dtype(), view.shape(), view.data()), (other.dtype(), other.shape(), other.data()), "{name}");
    }
    assert_eq!(read("base/tokenizer.json"), read("copy/tokenizer.json"));
}

#[test]
fn a_full_rank_conversion_scores_as_its_source() {
    let place = Place::new();
    let to = "--recursions 2 --sharing middle_cycle --init stepwise --lora-rank 128 --share-norms false --dtype f32";
    place.retie(&format!("convert base {to} -o full")).ok();
    let nll = |model: &str| {
        let line =
            format!("eval {model} --tasks perplexity --text text/heldout.jsonl --limit 2 --window 64 -o {model}.json");
        place.retie(&line).ok();
        json(&place.read(&format!("{model}.json")))["results"]["perplexity"]["token_nll"].as_f64().unwrap()
    };
    let (base, full) = (nll("base"), nll("full"));
    // The f32 SVD reproduces the residual with a relative error of about 1e-6; after eight layers
    // and a softmax the NLL differs by less than 1e-4.
    assert!((base - full).abs() < 1e-4, "{base} {full}");
}

#[test]
fn flags_and_yaml_give_the_same_model() {
    let place = Place::new();
    place.retie(CONVERT).ok();
    let yaml =
        "schema: 1\nmodel: base\nrecursions: 3\nsharing: middle_cycle\ninit: average\nlora_rank: 4\noutput: other\n";
    place.write("convert.yaml", yaml);
    place.retie("convert --config convert.yaml --set recursions=2").ok();
    let read = |name: &str| fs_err::read(place.path(name)).unwrap();
    assert_eq!(read("converted/model.safetensors"), read("other/model.safetensors"));
    assert!(place.retie("config validate convert.yaml").ok().contains("share_norms: true"));
}

/// DoRA by flags and by YAML: every command that reads the folder shows it, and full rank
/// reproduces the source.
#[test]
fn dora_starts_with_the_loss_of_lora_and_every_command_shows_it() {
    let place = Place::new();
    place.retie(CONVERT).ok();
    let dora = CONVERT.replace("-o converted", "--relax dora --report page.html -o dora");
    let table = place.retie(&dora).ok();
    assert!(table.contains("\nDoRA  ") && table.contains("  ok     dora     42 vectors of magnitudes"), "{table}");
    assert!(place.read("page.html").contains("Residual energy of the attention after DoRA, by depth"));
    let page = place.retie("inspect dora").ok();
    assert!(page.contains("DoRA                 rank 4") && page.contains("    DoRA"), "{page}");
    let checked = place.retie("check identity dora").ok();
    assert!(checked.contains("without magnitudes") && !checked.contains("differs"), "{checked}");
    let facts = json(&place.retie("inspect dora --json").ok());
    assert_eq!(facts["recursion"]["lora"], serde_json::json!({ "rank": 4, "relax": "dora" }));
    let yaml = "schema: 1\nmodel: base\nrecursions: 2\nsharing: middle_cycle\ninit: average\nrelax: dora\nlora_rank: 4\noutput: yaml\n";
    place.write("convert.yaml", yaml);
    place.retie("convert --config convert.yaml").ok();
    let read = |name: &str| fs_err::read(place.path(name)).unwrap();
    assert!(read("dora/model.safetensors") == read("yaml/model.safetensors"));
    let nll = |model: &str| {
        let line =
            format!("eval {model} --tasks perplexity --text text/heldout.jsonl --limit 2 --window 64 -o {model}.json");
        place.retie(&line).ok();
        json(&place.read(&format!("{model}.json")))["results"]["perplexity"]["token_nll"].as_f64().unwrap()
    };
    // Magnitudes divided by the norms are 1 up to f32 rounding.
    let (lora, dora) = (nll("converted"), nll("dora"));
    assert!((lora - dora).abs() < 1e-5, "{lora} {dora}");
    let to = "--recursions 3 --sharing middle_sequence --init average --relax dora --lora-rank 128 --share-norms false --dtype f32";
    place.retie(&format!("convert base {to} -o full")).ok();
    let (base, full) = (nll("base"), nll("full"));
    // Rounding of the f32 SVD, as for full-rank LoRA.
    assert!((base - full).abs() < 1e-4, "{base} {full}");
    // Decoding token by token divides by the same norms.
    let generate =
        |model: &str| place.retie(&format!("generate {model} -p The --max-new-tokens 12 --temperature 0")).ok();
    assert_eq!(generate("dora"), generate("converted"));
}

#[test]
fn scores_of_examples_do_not_depend_on_the_batch_size() {
    let place = Place::new();
    fs_err::create_dir(place.path("tasks")).unwrap();
    let rows: String = (0..6)
        .map(|i| {
            let context = "The war began in ".repeat(i + 1);
            format!("{{\"id\": {i}, \"contexts\": [\"{context}\", \"{context}\"], \"continuations\": [\" 17\", \" the long winter\"], \"gold\": 1}}\n")
        })
        .collect();
    place.write("tasks/piqa.jsonl", rows);
    let samples = |batch_size: usize| {
        let log = format!("{batch_size}.jsonl");
        place.retie(&format!("eval base --tasks piqa --data tasks --batch-size {batch_size} --log-samples {log}")).ok();
        let values = |line: &str| -> Vec<f64> {
            json(line)["loglikelihoods"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        place.read(&log).lines().flat_map(values).collect::<Vec<_>>()
    };
    let (one, many) = (samples(1), samples(5));
    assert_eq!(one.len(), 12);
    for (a, b) in one.iter().zip(&many) {
        // Matrix products of other shapes sum in another order: f32 rounding over sums of a few
        // hundred terms.
        assert!((a - b).abs() <= 1e-4 * a.abs(), "{one:?} {many:?}");
    }
}

#[test]
fn lists_and_checks_of_the_machine_are_json_and_text() {
    let place = Place::new();
    assert_eq!(json(&place.retie("tasks --json").ok()).as_array().unwrap().len(), 18);
    assert!(place.retie("tasks").ok().contains("lambada_openai"));
    let findings = json(&place.retie("doctor --json").ok());
    assert!(findings.as_array().unwrap().iter().any(|f| f["name"] == "cpu" && f["state"] == "ok"));
}
