//! Keys and values across recursions, and what routing saves, as the commands show it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use insta::assert_snapshot;
use serde_json::Value;
use support::Place;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// A place with a model of three recursions in `looped`.
fn place() -> Place {
    let place = Place::new();
    place.retie("convert base --recursions 3 --sharing middle_cycle --init average --lora-rank 4 -o looped").ok();
    place
}

#[test]
fn a_report_has_what_a_strategy_costs_and_depths_by_class() {
    let place = place();
    for kv in ["recursion_wise", "shared", "hybrid"] {
        let convert = format!(
            "convert looped --router expert_choice --router-network random --capacities 1,0.6,0.3 --kv {kv} -o {kv} --json"
        );
        let report = json(&place.retie(&convert).ok());
        assert_eq!(report["recursion"]["router"]["expert_choice"]["kv"], kv);
        let notes = report["notes"].to_string();
        assert_eq!(notes.contains("only the first recursion makes keys and values"), kv == "shared", "{notes}");
        let eval = "--tasks perplexity --text text/heldout.jsonl --limit 6 --window 129 --router-report --json r.json";
        let table = place.retie(&format!("eval {kv} {eval}")).ok();
        assert!(table.contains(&format!("6 windows of 128 tokens in a cache, kv {kv}\n")), "{table}");
        let router = &json(&place.read("r.json"))["router"];
        let number = |what: &str, key: &str| router["cost"][what][key].as_f64().unwrap();
        for what in ["cache_bytes", "operations"] {
            let off = number(what, "measured") / number(what, "formula") - 1.0;
            assert!(off.abs() < 0.01, "{kv} {what}: {off}");
        }
        assert!(number("operations", "measured") < 0.95 * number("operations", "full_depth"));
        let saves = number("cache_bytes", "measured") < 0.9 * number("cache_bytes", "full_depth");
        assert_eq!(saves, kv != "hybrid");
        let classes = router["classes"].as_array().unwrap();
        let tokens: u64 = classes.iter().map(|class| class["tokens"].as_u64().unwrap()).sum();
        assert_eq!(tokens, router["tokens"].as_u64().unwrap());
        let mean: f64 = classes
            .iter()
            .map(|class| class["tokens"].as_f64().unwrap() * class["mean_depth"].as_f64().unwrap_or(0.0))
            .sum();
        assert!((mean / tokens as f64 - router["mean_depth"].as_f64().unwrap()).abs() < 1e-9);
    }
}

#[test]
fn depths_are_written_as_a_page_and_decoding_is_measured_on_a_text() {
    let place = place();
    place.retie("convert looped --router token_choice --router-network random --kv shared -o routed").ok();
    let generate = "generate routed -p The --max-new-tokens 9 --show-depth-html page.html";
    let run = place.retie(generate);
    let generation = json(&place.retie(&format!("{generate} --json")).ok());
    assert_eq!(run.stdout, format!("{}\n", generation["text"].as_str().unwrap()), "no prompt, no colours");
    let page = place.read("page.html");
    let tokens = ["prompt", "new"].map(|part| generation["depths"][part].as_array().unwrap().len());
    assert_eq!(page.matches(" recursions\">").count(), tokens[0] + tokens[1], "{page}");
    assert!(!page.contains("http") && page.contains("Recursion depths of routed"));

    let bench =
        "bench routed --text text/heldout.jsonl --seq 12 --new-tokens 5 --batch 1 --decode-batch 1,3 --rounds 1 --json";
    let figures = json(&place.retie(bench).ok());
    let routed = figures["routed"].as_array().unwrap();
    assert_eq!(routed.iter().map(|row| row["batch"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
    for row in routed {
        let number = |key: &str| row[key].as_f64().unwrap();
        assert!(number("mean_depth") > 1.0 && number("mean_depth") < 3.0, "{row}");
        assert!(number("allowed_speedup") > 1.0 && number("tokens_per_second") > 0.0, "{row}");
        // What later recursions would keep, nobody keeps at full depth either.
        assert_eq!(number("cache_bytes"), number("full_depth_cache_bytes"));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let place = place();
    assert_snapshot!(place.refused("convert looped --router expert_choice --capacities 0.9,0.6,0.3 --kv shared -o out"), @"
    error: `looped` does not get a router
      caused by: the router cannot be used:
          the capacity of recursion 0 is `0.9`, expected 1: with kv `shared` later recursions read the keys and values that the first makes of every token
    ");
    assert_snapshot!(place.refused("generate looped -p The --show-depth-html page.html"), @"
    error: every token of `looped` goes through all recursions: it has no router
    hint: leave `--show-depth-html` out
    ");
    assert_snapshot!(place.refused("generate looped -p The --show-depth-html nowhere/page.html"), @"
    error: the folder of `nowhere/page.html` does not exist
    hint: make it first
    ");
    assert_snapshot!(place.refused("bench looped --seq 4 --new-tokens 2 --text text/heldout.jsonl"), @"
    error: `looped` has no router whose decoding could be measured on a text
    hint: leave `--text` out
    ");
    for (command, needed) in
        [("convert looped --kv shared -o out", "--router <KIND>"), ("bench looped --decode-batch 4", "--text <FILE>")]
    {
        let error = place.refused(command);
        assert!(
            error.contains("the following required arguments were not provided") && error.contains(needed),
            "{error}"
        );
    }
}
