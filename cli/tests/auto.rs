//! `convert --init auto` on the bundled model, and the HTML report of a conversion.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use insta::assert_snapshot;
use serde_json::Value;
use support::Place;

const AUTO: &str = "convert base --init auto --budget 75% --calibration text/train.jsonl --calibration-tokens 1024 \
                    --share-norms false --dtype f32";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_search_is_shown_and_its_best_candidate_is_converted() {
    let place = Place::new();
    let narrow = format!("{AUTO} --recursions 3 --sharing middle_cycle -o out");
    let before = place.listing();
    let plan = place.retie(&format!("{narrow} --plan --json")).ok();
    assert_eq!(place.listing(), before, "`--plan` wrote something");
    let plan = json(&plan);
    let best = &plan["candidates"][0];
    assert_ne!(best["lora"], "none", "{plan:#}");

    let run = place.retie(&format!("{narrow} --report page.html"));
    assert!(run.stderr.contains(&format!("chosen: {}", plan["why"].as_str().unwrap())), "{}", run.stderr);
    run.ok();
    let report = json(&place.read("out/convert.json"));
    // `--plan` and the conversion make the same search.
    assert_eq!(report["search"], plan);
    let total: u64 = report["parameters"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    let source: u64 = report["source_parameters"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(total, best["parameters"].as_u64().unwrap());
    assert!(total * 100 <= source * 75, "{total} {source}");
    // With so few calibration tokens candidates are fitted to all of them, so the written model is
    // the scored one; only the place that its weights are read from differs.
    let (written, scored) = (report["scores"]["kl"].as_f64().unwrap(), best["kl"].as_f64().unwrap());
    assert!((written - scored).abs() <= 1e-6 * scored, "{written} {scored}");
    let recursion = &json(&place.retie("inspect out --json").ok())["recursion"];
    assert_eq!((&recursion["init"], &recursion["sharing"]), (&best["init"], &"middle_cycle".into()));

    let page = place.read("page.html");
    for part in [
        "NLL of every candidate",
        "Residual energy of the attention, by depth",
        "Candidates within 75%",
        "ΔNLL",
        "<svg",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let yaml = "schema: 1\nmodel: base\nrecursions: 3\nsharing: middle_cycle\ninit: auto\nbudget: 75%\ncalibration: text/train.jsonl\n\
                calibration_tokens: 1024\nshare_norms: false\ndtype: f32\noutput: file\n";
    place.write("convert.yaml", yaml);
    place.retie("convert --config convert.yaml").ok();
    let read = |name: &str| fs_err::read(place.path(name)).unwrap();
    assert!(read("out/model.safetensors") == read("file/model.safetensors"));
}

#[test]
fn every_init_is_scored_if_a_text_is_given() {
    let place = Place::new();
    let to = "convert base --recursions 2 --sharing sequence --init stepwise --calibration text/train.jsonl --calibration-tokens 1024";
    let table = place.retie(&format!("{to} -o out")).ok();
    assert!(table.contains("scores on 256 tokens of text/train.jsonl"), "{table}");
    let report = json(&place.read("out/convert.json"));
    let score = |key: &str| report["scores"][key].as_f64().unwrap();
    assert!(score("kl") > 0.0 && (score("delta_nll") - (score("nll") - score("source_nll"))).abs() < 1e-9);
}

#[test]
fn an_impossible_search_is_refused_with_the_reason() {
    let place = Place::new();
    let without = |part: &str| place.refused(&format!("{AUTO} -o out").replace(part, ""));
    assert_snapshot!(without("--budget 75%"), @"
    error: init `auto` has no budget
    hint: say what the weights may be, e.g. `75%` of the source, `90M` parameters or `250MiB`
    ");
    assert_snapshot!(without("--calibration text/train.jsonl"), @"
    error: init `auto` has no text to be measured on
    hint: name a text like those the model is for: `calibration: FILE` in a file, `--calibration FILE` as an option
    ");
    assert_snapshot!(place.refused(&format!("{AUTO} -o out --lora-rank 4")), @"
    error: init `auto` decides about the LoRA, but some is asked for
    hint: leave the keys of the LoRA out, or name another init
    ");
    assert_snapshot!(place.refused(&format!("{AUTO} -o out --recursions 2 --sharing cycle").replace("75%", "10%")), @"
    calibration: a text begins without a BOS token, as its tokenizer wants it
    error: nothing can be tried within the budget `10%` (173888 parameters):
      `cycle` with 2 recursions has 1001600 parameters without LoRA, above the 173888 of the budget
    hint: raise the budget, or try other recursions, patterns or a `fit`
    ");
    assert_snapshot!(place.refused("convert base --recursions 2 --sharing cycle --init average --plan -o out"), @"error: `--plan` shows what a search would choose, found a fixed `--init average`");
    assert_snapshot!(place.refused("convert base --recursions 2 --sharing cycle --init average --report no/page.html -o out"), @"
    error: the folder of `no/page.html` does not exist
    hint: make it first
    ");
}
