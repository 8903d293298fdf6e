//! Routed models, whose tokens have different recursion counts.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use insta::assert_snapshot;
use serde_json::Value;
use support::{Place, uptrain_yaml};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Test folder with a model of three recursions in `looped`.
fn place() -> Place {
    let place = Place::new();
    place.retie("convert base --recursions 3 --sharing middle_cycle --init average --lora-rank 4 -o looped").ok();
    place
}

fn nll(place: &Place, model: &str) -> f64 {
    let eval =
        format!("eval {model} --tasks perplexity --text text/heldout.jsonl --limit 3 --window 64 --json {model}.json");
    place.retie(&eval).ok();
    json(&place.read(&format!("{model}.json")))["results"]["perplexity"]["token_nll"].as_f64().unwrap()
}

#[test]
fn routers_that_select_every_token_change_no_output() {
    let place = place();
    let generate = |model: &str| {
        json(&place.retie(&format!("generate {model} -p The --max-new-tokens 12 --json")).ok())["ids"].clone()
    };
    let (ids, loss) = (generate("looped"), nll(&place, "looped"));
    for (gating, out) in [("straight_through", "straight"), ("delta", "delta")] {
        let convert = format!("route looped --kind expert_choice --capacities 1,1,1 --gating {gating} -o {out} --json");
        let report = json(&place.retie(&convert).ok());
        assert!(report["checks"].as_array().unwrap().iter().all(|check| check["passed"] == true));
        assert_eq!(json(&place.read(&format!("{out}/router.json"))), report);
        assert_eq!((generate(out), nll(&place, out)), (ids.clone(), loss));
    }
    // A token-choice router has no preference before training: every token goes through all
    // recursions.
    for (gating, out) in [("straight_through", "tokens"), ("delta", "tokens-delta")] {
        place.retie(&format!("route looped --kind token_choice --gating {gating} -o {out}")).ok();
        assert_eq!((generate(out), nll(&place, out)), (ids.clone(), loss));
    }
    // With the paper's capacities and gate it is another model, which has to be uptrained.
    place.retie("route looped --kind expert_choice --gating weighted -o weighted").ok();
    assert_eq!(
        json(&place.read("weighted/config.json"))["recursion"]["router"]["expert_choice"]["capacities"],
        json("[1.0, 0.6666666666666666, 0.3333333333333333]")
    );
    assert!(nll(&place, "weighted") > loss);
}

#[test]
fn a_routed_model_is_uptrained_measured_and_shown() {
    let place = place();
    place.retie("route looped --kind expert_choice --capacities 1,0.6,0.3 -o routed").ok();
    let yaml = uptrain_yaml(6)
        .replace("{model: converted}", "{model: routed}")
        .replace("optimizer:", "  - router_bce: {weight: 0.1}\n  - router_z_loss: {weight: 0.001}\noptimizer:")
        .replace("batch_size: 2,", "batch_size: 2, capacity_warmup_steps: 3,");
    place.write("run.yaml", yaml);
    place.retie("uptrain run.yaml").ok();
    let row = place.read("run/metrics.jsonl");
    let row = json(row.lines().last().unwrap());
    assert!(
        row["terms"]["router_bce"].as_f64().unwrap() > 0.0 && row["heldout_cross_entropy"].as_f64().unwrap() > 0.0,
        "{row}"
    );

    let eval = "eval run/model --tasks perplexity --text text/heldout.jsonl --limit 6 --window 33 --router-report --json r.json";
    let table = place.retie(eval).ok();
    assert!(table.contains("routers on 192 tokens, windows of 33") && table.contains("looks ahead"), "{table}");
    let report = json(&place.read("r.json"));
    let router = &report["router"];
    // A threshold selects a token independently of its batch, so batching changes rounding only.
    let [report_nll, task_nll] =
        [&router["token_nll"], &report["results"]["perplexity"]["token_nll"]].map(|x| x.as_f64().unwrap());
    assert!((report_nll - task_nll).abs() < 1e-5, "{report_nll} {task_nll}");
    let recursions = router["recursions"].as_array().unwrap();
    let taken: Vec<f64> = recursions.iter().map(|r| r["taken"].as_f64().unwrap()).collect();
    // The thresholds were calibrated on 64 tokens of the same text.
    assert!(taken[0] == 1.0 && (taken[1] - 0.6).abs() < 0.2 && (taken[2] - 0.3).abs() < 0.2, "{taken:?}");
    let mean = router["mean_recursions"].as_f64().unwrap();
    assert!((mean - taken.iter().sum::<f64>()).abs() < 1e-9, "{mean}");

    let generate = "generate run/model -p The --max-new-tokens 9 --show-recursions";
    let generation = json(&place.retie(&format!("{generate} --json")).ok());
    let counts = generation["recursion_counts"]["new"].as_array().unwrap();
    assert_eq!(counts.len(), generation["ids"].as_array().unwrap().len());
    assert!(counts.iter().all(|count| (1..=3).contains(&count.as_u64().unwrap())), "{counts:?}");
    let run = place.retie(generate);
    // Without a terminal there are no colours.
    assert_eq!(run.stdout, format!("The{}\n", generation["text"].as_str().unwrap()));
    assert!(run.stderr.contains("in the mean\n"), "{}", run.stderr);
}

#[test]
fn a_token_choice_model_is_uptrained_measured_and_shown() {
    let place = place();
    place.retie("route looped --kind token_choice --network mlp -o routed").ok();
    let yaml = uptrain_yaml(6)
        .replace("{model: converted}", "{model: routed}")
        .replace("optimizer:", "  - router_balancing: {weight: 0.1}\noptimizer:")
        .replace("batch_size: 2,", "batch_size: 2, full_recursion_warmup_steps: 3, loss_free_balancing: 0.05,");
    place.write("run.yaml", yaml);
    place.retie("uptrain run.yaml").ok();
    let rows = place.read("run/metrics.jsonl");
    let row = json(rows.lines().last().unwrap());
    let load = row["routing"]["token_choice"]["load"].as_array().unwrap();
    assert!((load.iter().map(|x| x.as_f64().unwrap()).sum::<f64>() - 1.0).abs() < 1e-9, "{row}");
    assert!(row["heldout_routing"]["inference"]["mean_recursions"].as_f64().unwrap() < 3.0, "{row}");
    let config = json(&place.read("run/model/config.json"));
    let biases = &config["recursion"]["router"]["token_choice"]["biases"];
    assert_eq!(biases.as_array().unwrap().len(), 3, "{biases}");

    let eval = "eval run/model --tasks perplexity --text text/heldout.jsonl --limit 6 --window 33 --router-report --json r.json";
    let table = place.retie(eval).ok();
    assert!(table.contains("MaxVio") && !table.contains("looks ahead"), "{table}");
    let report = json(&place.read("r.json"));
    let router = &report["router"];
    let [report_nll, task_nll] =
        [&router["token_nll"], &report["results"]["perplexity"]["token_nll"]].map(|x| x.as_f64().unwrap());
    // Batching changes rounding only.
    assert!((report_nll - task_nll).abs() < 1e-5, "{report_nll} {task_nll}");
    let generation = json(&place.retie("generate run/model -p The --max-new-tokens 9 --show-recursions --json").ok());
    let counts = generation["recursion_counts"]["new"].as_array().unwrap();
    assert!(counts.iter().all(|count| (1..=3).contains(&count.as_u64().unwrap())), "{counts:?}");
}

#[test]
fn options_of_another_kind_of_router_are_refused() {
    let place = place();
    let refused = |options: &str| place.refused(&format!("route looped --kind {options} -o out"));
    assert_snapshot!(refused("token_choice --capacities 1,0.5,0.2"), @"
    error: `token_choice` has no setting `capacities`
    hint: leave it out, or name another kind
    ");
    assert_snapshot!(refused("token_choice --auxiliary mlp --capacities 1,1,1"), @"
    error: `token_choice` has no setting `capacities`, `auxiliary`
    hint: leave it out, or name another kind
    ");
    assert_snapshot!(refused("token_choice --score tanh"), @"error: `token_choice`: unknown score of recursion counts `tanh`, expected one of softmax, sigmoid");
    assert_snapshot!(refused("expert_choice --score softmax"), @"error: `expert_choice`: unknown router score `softmax`, expected one of sigmoid, tanh, none");
    assert_snapshot!(refused("expert_choice --intermediate gated"), @"
    error: `expert_choice` has no setting `intermediate`
    hint: leave it out, or name another kind
    ");
    assert_snapshot!(refused("token_choice --gating additive --intermediate gated"), @"
    error: `looped` does not get a router
      caused by: the router cannot be used:
          gating `additive` has no gate that `intermediate: gated` could be
    ");
}

#[test]
fn a_router_that_does_not_fit_is_refused() {
    let place = place();
    assert_snapshot!(place.refused("route base --kind expert_choice -o out"), @"
    error: `base` does not get a router
      caused by: the model is not recursive, expected one whose layers run in a loop
    hint: convert it first (`--recursions`, `--sharing cycle` or `middle_cycle`, `--init`), then add the router to what was written
    ");
    assert_snapshot!(place.refused("route looped --kind expert_choice --capacities 0.5,0.7 -o out"), @"
    error: `looped` does not get a router
      caused by: the router cannot be used:
          2 capacities for 3 recursions, expected one for each
          the capacity rises from `0.5` to `0.7` at recursion 1: a recursion chooses among the tokens of the one before
    ");
    assert_snapshot!(place.refused("route looped --kind expert_choice --recursions 2 -o out"), @"
    error: unexpected argument '--recursions' found

      tip: to pass '--recursions' as a value, use '-- --recursions'

    Usage: retie route --kind <KIND> --output <DIR> <MODEL>

    For more information, try '--help'.
    ");
    assert_snapshot!(place.refused("route looped --gating delta -o out"), @"
    error: the following required arguments were not provided:
      --kind <KIND>

    Usage: retie route --kind <KIND> --output <DIR> --gating <GATING> <MODEL>

    For more information, try '--help'.
    ");
    assert_snapshot!(place.refused("convert looped --router expert_choice --router-network mlp --kv shared -o out"), @"
    error: `retie convert --router` is a command of its own, `retie route`
    hint: retie route looped --kind expert_choice --network mlp --kv-sharing shared -o out
    ");
    assert_snapshot!(place.refused("generate looped -p The --show-recursions"), @"
    error: every token of `looped` goes through all recursions: it has no router
    hint: leave `--show-recursions` out, or let tokens leave early with `--exit-risk`
    ");
    assert_snapshot!(place.refused("eval looped --tasks perplexity --text text/heldout.jsonl --router-report"), @"
    error: `looped` has no router to report on
    hint: leave `--router-report` out
    ");
    let yaml = uptrain_yaml(1).replace("{model: converted}", "{model: looped}");
    place.write("run.yaml", yaml.replace("optimizer:", "  - router_bce: {weight: 0.1}\noptimizer:"));
    assert_snapshot!(place.refused("uptrain run.yaml --set train.capacity_warmup_steps=2"), @"
    error: `looped` has no router that could be trained, but there are `losses: router_bce` and `train.capacity_warmup_steps`
    hint: give it one with `retie route`, or leave that out
    ");
}
