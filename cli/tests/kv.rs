//! KV sharing across recursions and the savings of routing, as the commands report them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use insta::assert_snapshot;
use serde_json::Value;
use support::Place;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Test folder with a model of three recursions in `looped`.
fn place() -> Place {
    let place = Place::new();
    place.retie("convert base --recursions 3 --sharing middle_cycle --init average --lora-rank 4 -o looped").ok();
    place
}

#[test]
fn a_router_report_has_the_cost_of_kv_sharing_and_recursion_counts_by_class() {
    let place = place();
    for kv in ["recursion_wise", "shared", "hybrid"] {
        let convert = format!(
            "route looped --kind expert_choice --network random --capacities 1,0.6,0.3 --kv-sharing {kv} -o {kv} --json"
        );
        let report = json(&place.retie(&convert).ok());
        let written = report["recursion"].get("kv_sharing").map_or("recursion_wise", |kv| kv.as_str().unwrap());
        assert_eq!(written, kv);
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
        assert!(number("operations", "measured") < 0.95 * number("operations", "full_recursion"));
        let saves = number("cache_bytes", "measured") < 0.9 * number("cache_bytes", "full_recursion");
        assert_eq!(saves, kv != "hybrid");
        // `inspect` asks the same cost model.
        let facts = json(&place.retie(&format!("inspect {kv} --cost 128 --json")).ok());
        let cost = |model: &str, key: &str| facts["cost"][model][key].as_f64().unwrap();
        let full = 6.0 * (cost("full_recursion", "linear") + cost("full_recursion", "attention"));
        assert!((full / number("operations", "full_recursion") - 1.0).abs() < 1e-12, "{kv}");
        assert_eq!(6.0 * cost("full_recursion", "cache_bytes"), number("cache_bytes", "full_recursion"));
        assert_eq!(facts["cost"]["shares"], json("[1.0, 0.6, 0.3]"));
        let per_token = facts["kv_cache_bytes_per_token"]["f32"].as_f64().unwrap();
        assert!((per_token - cost("expected", "cache_bytes") / 128.0).abs() <= 0.5, "{per_token}");
        assert!(place.retie(&format!("inspect {kv} --cost 128")).ok().contains("cost of 128 tokens"));
        let classes = router["classes"].as_array().unwrap();
        let tokens: u64 = classes.iter().map(|class| class["tokens"].as_u64().unwrap()).sum();
        assert_eq!(tokens, router["tokens"].as_u64().unwrap());
        let mean: f64 = classes
            .iter()
            .map(|class| class["tokens"].as_f64().unwrap() * class["mean_recursions"].as_f64().unwrap_or(0.0))
            .sum();
        assert!((mean / tokens as f64 - router["mean_recursions"].as_f64().unwrap()).abs() < 1e-9);
    }
}

/// Without a router it is the model whose router lets every token through every recursion.
#[test]
fn a_plain_recursive_model_shares_keys_and_values_as_a_routed_one_does() {
    let place = place();
    let nll = |model: &str| {
        let eval =
            format!("eval {model} --tasks perplexity --text text/heldout.jsonl --limit 3 --window 64 --json r.json");
        place.retie(&eval).ok();
        json(&place.read("r.json"))["results"]["perplexity"]["token_nll"].as_f64().unwrap()
    };
    let ids = |model: &str| {
        json(&place.retie(&format!("generate {model} -p The --max-new-tokens 9 --json")).ok())["ids"].clone()
    };
    let own = nll("looped");
    for kv in ["shared", "hybrid"] {
        let (plain, routed) = (format!("plain-{kv}"), format!("routed-{kv}"));
        let convert = "convert base --recursions 3 --sharing middle_cycle --init average --lora-rank 4";
        let table = place.retie(&format!("{convert} --kv-sharing {kv} -o {plain}")).ok();
        assert_eq!(table.contains("only the first recursion makes keys and values"), kv == "shared", "{table}");
        let all = "--kind expert_choice --network random --capacities 1,1,1";
        // The router takes the sharing of its model.
        place.retie(&format!("route {plain} {all} -o {routed}")).ok();
        assert_eq!((nll(&plain), ids(&plain)), (nll(&routed), ids(&routed)), "{kv}");
        // A token that goes through every recursion has keys and values of its own in a hybrid.
        assert_eq!(nll(&plain) == own, kv == "hybrid");
    }
}

#[test]
fn recursion_counts_are_written_as_a_page_and_decoding_is_measured_on_a_text() {
    let place = place();
    place.retie("route looped --kind token_choice --network random --kv-sharing shared -o routed").ok();
    let generate = "generate routed -p The --max-new-tokens 9 --show-recursions-html page.html";
    let run = place.retie(generate);
    let generation = json(&place.retie(&format!("{generate} --json")).ok());
    assert_eq!(run.stdout, format!("{}\n", generation["text"].as_str().unwrap()), "no prompt, no colours");
    let page = place.read("page.html");
    let tokens = ["prompt", "new"].map(|part| generation["recursion_counts"][part].as_array().unwrap().len());
    assert_eq!(
        page.matches("<mark style").count() - page.matches("<li><mark").count(),
        tokens[0] + tokens[1],
        "{page}"
    );
    assert!(!page.contains("http") && page.contains("Recursion counts of routed"));

    let bench =
        "bench routed --text text/heldout.jsonl --seq 12 --new-tokens 5 --batch 1 --decode-batch 1,3 --rounds 1 --json";
    let figures = json(&place.retie(bench).ok());
    let routed = figures["routed"].as_array().unwrap();
    assert_eq!(routed.iter().map(|row| row["batch"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
    for row in routed {
        let number = |key: &str| row[key].as_f64().unwrap();
        assert!(number("mean_recursions") > 1.0 && number("mean_recursions") < 3.0, "{row}");
        assert!(number("allowed_speedup") > 1.0 && number("tokens_per_second") > 0.0, "{row}");
        // With `shared` later recursions cache nothing, not even at the full recursion count.
        assert_eq!(number("cache_bytes"), number("full_recursion_cache_bytes"));
    }
}

#[test]
fn options_that_do_not_fit_the_model_are_refused() {
    let place = place();
    assert_snapshot!(place.refused("route looped --kind expert_choice --capacities 0.9,0.6,0.3 --kv-sharing shared -o out"), @"
    error: `looped` does not get a router
      caused by: the router cannot be used:
          the capacity of recursion 0 is `0.9`, expected 1: with kv_sharing `shared` later recursions read the keys and values that the first computes of every token
    ");
    assert_snapshot!(place.refused("generate looped -p The --show-recursions-html page.html"), @"
    error: every token of `looped` goes through all recursions: it has no router
    hint: leave `--show-recursions-html` out, or let tokens leave early with `--exit-risk`
    ");
    assert_snapshot!(place.refused("generate looped -p The --show-recursions-html nowhere/page.html"), @"
    error: the folder of `nowhere/page.html` does not exist
    hint: make it first
    ");
    assert_snapshot!(place.refused("bench looped --seq 4 --new-tokens 2 --text text/heldout.jsonl"), @"
    error: `looped` has no router whose decoding could be measured on a text
    hint: leave `--text` out
    ");
    for (command, needed) in [
        ("route looped --kv-sharing shared -o out", "--kind <KIND>"),
        ("bench looped --decode-batch 4", "--text <FILE>"),
    ] {
        let error = place.refused(command);
        assert!(
            error.contains("the following required arguments were not provided") && error.contains(needed),
            "{error}"
        );
    }
}
