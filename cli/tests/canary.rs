//! Recorded figures, computed again: a page of docs/results says what a command gave, and the
//! command has to give it to the last digit that is written there. A change of these numbers is a
//! change of the computation, and has to be meant.
//!
//! The second test needs the real model and its text (`RETIE_SMOLLM2_GGUF`, `RETIE_ASSETS`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

mod support;

use serde_json::Value;
use std::path::Path;
use support::Place;

/// The row of docs/results/smollm2.md that begins with `start`, after the line with `section`.
fn row(section: &str, start: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results/smollm2.md");
    let page = fs_err::read_to_string(page).unwrap();
    let after = page.split_once(section).unwrap().1;
    let line = after.lines().find(|line| line.starts_with(&format!("| {start}"))).unwrap();
    line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// NLL in nats per token, with the digits of the page.
fn nll(place: &Place, line: &str) -> String {
    place.retie(&format!("{line} --tasks perplexity --json nll.json")).ok();
    let results: Value = serde_json::from_str(&place.read("nll.json")).unwrap();
    format!("{:.3}", results["results"]["perplexity"]["token_nll"].as_f64().unwrap())
}

#[test]
fn the_models_of_the_demo_have_the_recorded_nll() {
    let place = Place::new();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/recipes/convert-demo.yaml");
    let convert = format!("convert --config {} --set model=base --set output=converted", recipe.display());
    place.retie(&convert).ok();
    let recorded = row("## Further figures", "`retie demo`").remove(1);
    let eval =
        |model: &str| nll(&place, &format!("eval {model} --text text/heldout.jsonl --window 256 --batch-size 8"));
    let found = [eval("base"), eval("converted")];
    assert_eq!(recorded.split(", ").take(2).collect::<Vec<_>>(), found);
}

#[test]
fn smollm2_has_the_recorded_nll() {
    let (Ok(model), Ok(assets)) = (std::env::var("RETIE_SMOLLM2_GGUF"), std::env::var("RETIE_ASSETS")) else {
        eprintln!("skipped: set RETIE_SMOLLM2_GGUF and RETIE_ASSETS");
        return;
    };
    let place = Place::new();
    let recorded = row("## Further figures", "base, full size, on 4 windows").remove(1);
    let text = Path::new(&assets).join("text/openstax_heldout.jsonl");
    let line = format!("eval {model} --text {} --window 512 --stride 512 --limit 4", text.display());
    assert_eq!(nll(&place, &line), recorded);
}
