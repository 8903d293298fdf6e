//! `retie calibrate`, and generation whose tokens leave the loop early or are drafted.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use serde_json::Value;
use support::Place;

fn looped() -> Place {
    let place = Place::new();
    place.retie("convert base --recursions 3 --sharing middle_cycle --init average --lora-rank 4 -o looped").ok();
    place
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn thresholds_are_found_kept_and_served() {
    let place = looped();
    let text = "--text text/train.jsonl --window 32 --level 0.01,0.6,0.97 --confidence 0.5";
    place.write("other.txt", "The sun is a star. ".repeat(120));
    let line = format!("calibrate looped {text} --kv-policy propagate --other-text other.txt --json");
    let report = json(&place.retie(&line).ok());
    assert_eq!((report["rule"].as_str(), report["kv_policy"].as_str()), (Some("probe"), Some("propagate")));
    assert_eq!(report["rules"].as_array().unwrap().len(), 6);
    let level = |i: usize| report["levels"][i].clone();
    assert!(level(0)["threshold"].is_null() && level(0)["nearest_level"].as_f64().unwrap() > 0.01, "{report}");
    let [mean, risk] = ["mean_recursions", "risk"].map(|name| level(2)[name].as_f64().unwrap());
    assert!(mean < 3.0 && risk <= 0.97, "{report}");
    let realised = level(2)["realised"].as_array().unwrap().clone();
    let texts: Vec<&Value> = realised.iter().map(|realised| &realised["text"]).collect();
    assert_eq!(texts, ["held out", "other.txt", "its own"], "{report}");
    assert_eq!(level(0)["realised"].as_array().unwrap().len(), 2, "never exit: {report}");
    assert!(realised[2]["mean_recursions"].as_f64().unwrap() < 3.0, "{report}");
    assert!(realised[0]["mean_recursions"].as_f64().unwrap() < 3.0, "{report}");
    let policies = level(2)["policies"].as_array().unwrap().clone();
    let names: Vec<&str> = policies.iter().map(|policy| policy["kv_policy"].as_str().unwrap()).collect();
    assert_eq!(names, ["skip", "latest", "propagate", "recompute"], "{report}");
    for name in ["risk", "nll", "mean_recursions"] {
        assert_eq!(policies[2][name], realised[0][name], "the policy that is served: {report}");
        assert_eq!(level(0)["policies"], Value::Array(Vec::new()), "never exit: {report}");
    }
    assert!(policies.windows(2).all(|pair| pair[0]["nll"] != pair[1]["nll"]), "{report}");

    // The same exits in an evaluation: none at the lowest level.
    let eval = "eval looped --tasks perplexity --text text/heldout.jsonl --window 32 --limit 4 --teacher looped";
    let shown = place.retie(&format!("{eval} --exit-risk 0.01,0.97 --depths all --json eval.json")).ok();
    assert!(shown.contains("exits of risk 0.97, ") && shown.contains("recursion 3 of 3, 8 depths"), "{shown}");
    let found = json(&place.read("eval.json"));
    let (never, some) = (&found["exit_risks"][0], &found["exit_risks"][1]);
    assert_eq!((found["exits"].as_array().unwrap().len(), &never["mean_recursions"]), (2, &json("3.0")), "{found}");
    assert_eq!(never["results"], found["results"], "{found}");
    let [mean, whole] = [some, &found["exits"][0]].map(|exit| exit["mean_recursions"].as_f64());
    assert!(mean.unwrap() < 3.0 && whole.is_none() && some["results"] != found["results"], "{found}");
    assert!(place.refused(&format!("{eval} --exit-risk 0.005")).contains("expected one of the calibrated levels"));

    let kept = json(&place.read("looped/exits.json"));
    assert_eq!(kept["probes"].as_array().unwrap().len(), 2);
    assert_eq!(kept["thresholds"][2]["threshold"], level(2)["threshold"]);

    let generate = |options: &str| {
        let line = format!("generate looped --prompt Rome --max-new-tokens 12 --json {options}");
        json(&place.retie(&line).ok())
    };
    let counts = |options: &str| {
        let found = generate(options);
        let of = |part: &str| found["recursion_counts"][part].as_array().unwrap().clone();
        let counts: Vec<u64> = of("prompt").into_iter().chain(of("new")).map(|count| count.as_u64().unwrap()).collect();
        (counts, found["ids"].clone())
    };
    let plain = generate("");
    assert!(plain["recursion_counts"].is_null());
    // At the lowest level no token leaves.
    let (all, same) = counts("--exit-risk 0.3");
    assert!(all.iter().all(|count| *count == 3) && same == plain["ids"], "{all:?}");
    let (some, _) = counts("--exit-risk 0.99");
    assert!(some.iter().any(|count| *count < 3), "{some:?}");
    let (most_two, _) = counts("--exit-risk 0.99 --max-recursions 2");
    assert!(most_two.iter().zip(&some).all(|(two, any)| *two <= 2 && two <= any), "{most_two:?} {some:?}");
    let (one, first) = counts("--max-recursions 1 --kv-policy skip");
    assert!(one.iter().all(|count| *count == 1), "{one:?}");
    assert_ne!(first, plain["ids"]);

    // Drafts change no token.
    for options in ["--speculate", "--speculate=4", "--speculate=2 --draft-text text/heldout.jsonl"] {
        let drafted = generate(options);
        assert_eq!(drafted["ids"], plain["ids"], "{options}");
        let found = &drafted["speculation"];
        let number = |name: &str| found[name].as_u64().unwrap();
        assert_eq!(number("accepted") + number("verifications") + number("plain"), 11, "{options}: {found}");
    }

    // Served under load, with parts of a text.
    let line = "bench serve looped --scheduler full,depthwise --requests 3 --clients 2 --prompt-tokens 6 \
        --new-tokens 5 --rounds 1 --text text/heldout.jsonl --device cpu --json";
    let load = json(&place.retie(&format!("{line} --exit-risk 0.99")).ok());
    let served = load["targets"].as_array().unwrap().clone();
    assert_eq!(served.len(), 2);
    for figures in &served {
        let chosen = figures["chosen_recursions"].as_f64().unwrap();
        assert!(figures["failed"] == 0 && (1.0..3.0).contains(&chosen), "{load}");
    }
    // Each target as it says.
    let line = "--requests 3 --clients 2 --prompt-tokens 6 --new-tokens 5 --rounds 1 --device cpu --json";
    let targets = "looped looped,speculate=2 looped,exit_risk=0.99,scheduler=depthwise";
    let load = json(&place.retie(&format!("bench serve {targets} {line}")).ok());
    let names: Vec<&str> = load["targets"].as_array().unwrap().iter().map(|t| t["target"].as_str().unwrap()).collect();
    assert_eq!(names, ["looped full", "looped,speculate=2 full", "looped,exit_risk=0.99,scheduler=depthwise"]);
    assert!(load["targets"][2]["chosen_recursions"].as_f64().unwrap() < 3.0, "{load}");
    let policies = "looped,kv_policy=skip looped,kv_policy=recompute --scheduler lockstep --exit-trace 1,3";
    let load = json(&place.retie(&format!("bench serve {policies} {line}")).ok());
    assert!(load["targets"].as_array().unwrap().iter().all(|target| target["mean_recursions"] == 2.0), "{load}");
    assert!(place.refused("bench serve looped,kv_policy=shared").contains("needs `kv_sharing: shared`"));
    assert!(place.refused("bench serve looped,risk=1").contains("unknown setting `risk`"));
    assert!(place.refused("bench serve looped,exit_risk=0.99 --exit-trace 1").contains("has calibrated exits"));
    let line = "bench serve looped --scheduler full,depthwise --requests 3 --clients 2 --prompt-tokens 6 \
        --new-tokens 5 --rounds 1 --text text/heldout.jsonl --device cpu --json";
    assert!(place.refused(&format!("{line} --exit-risk 0.005")).contains("expected one of the calibrated levels"));
    assert!(
        place
            .refused("bench serve looped --requests 1 --prompt-tokens 60000 --new-tokens 1 --text text/heldout.jsonl")
            .contains("is served with a context of")
    );

    let refused = |options: &str| place.refused(&format!("generate looped --prompt Rome {options}"));
    assert!(
        refused("--exit-risk 0.005")
            .contains("`--exit-risk` is `0.005`, expected one of the calibrated levels or more: 0.01, 0.6, 0.97")
    );
    assert!(refused("--exit-risk 0.6 --kv-policy latest").contains("under the policy `propagate`, not `latest`"));
    assert!(refused("--max-recursions 4").contains("`looped` has 3 recursions"));
    assert!(refused("--kv-policy skip").contains("no token leaves early"));
    assert!(refused("--exit-risk 0.6 --speculate").contains("verifies every token by the whole stack"));
    assert!(refused("--max-recursions 2 --kv-policy shared").contains("needs `kv_sharing: shared`"));
    // Another checkpoint in the same folder.
    place.retie("convert base --recursions 3 --sharing middle_cycle --init lower --lora-rank 4 -o other").ok();
    fs_err::copy(place.path("other/model.safetensors"), place.path("looped/model.safetensors")).unwrap();
    let other = refused("--exit-risk 0.6");
    assert!(other.contains("made for another checkpoint") && other.contains("model.safetensors"), "{other}");
    assert!(other.contains("hint: retie calibrate looped --text FILE"), "{other}");
}

#[test]
fn what_cannot_be_calibrated_is_refused() {
    let place = looped();
    let refused = |line: &str| place.refused(line);
    let none = refused("generate looped --prompt Rome --exit-risk 0.05");
    assert!(none.contains("`looped` has no calibrated exits") && none.contains("retie calibrate looped"), "{none}");
    assert!(refused("calibrate base --text text/train.jsonl").contains("it has one recursion"));
    let text = "--text text/train.jsonl";
    assert!(refused(&format!("calibrate looped {text} --level 1.5")).contains("`--level` is `1.5`"));
    assert!(refused(&format!("calibrate looped {text} --confidence 0")).contains("`--confidence` is `0`"));
    assert!(refused(&format!("calibrate looped {text} --kv-policy shared")).contains("needs `kv_sharing: shared`"));
    assert!(refused("calibrate looped --text text/heldout.jsonl").contains("has 3 documents"));
    assert!(
        refused(&format!("calibrate looped {text} --rule luck")).contains("invalid value 'luck' for '--rule <RULE>'")
    );
    place.retie("convert base --recursions 2 --sharing sequence --init average -o sequence").ok();
    assert!(refused(&format!("calibrate sequence {text}")).contains("`sequence` has no early exits"));
    assert!(
        refused("eval sequence --tasks perplexity --text text/heldout.jsonl --depths all")
            .contains("its recursions do not run one after the other")
    );
    assert!(refused("generate base --prompt Rome --speculate").contains("it has one recursion"));
}
