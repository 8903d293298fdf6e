//! Mechanisms for recursions: `retie insert`, and `retie check identity` of each and of each pair.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use retie_config::{Mechanism, StepConfig};
use serde_json::Value;
use support::{Place, uptrain_yaml};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Mechanisms that start without an effect.
const WITHOUT_EFFECT: &[&str] = &[
    "coefficients",
    "hai",
    "nll:ratio=0.25",
    "dense",
    "silu_dra",
    "sliced:groups=1",
    "gnconv:order=3,kernel=4",
    // `check identity` reads 128 tokens.
    "descriptor:chunk=128,ratio=8,stride=5,sinks=8",
    "rg:stride=4,latents=64",
    "grouped_softmax",
    "resolution:factor=1",
];

fn mechanism(text: &str) -> Mechanism {
    text.parse().unwrap()
}

/// Those that go together: of two attentions the first.
fn row() -> StepConfig {
    let mut row = StepConfig::default();
    for text in WITHOUT_EFFECT {
        if let Some(earlier) = row.insert(mechanism(text)) {
            row.insert(earlier);
        }
    }
    row
}

/// Number of pairs of which neither takes the place of the other.
fn num_pairs() -> usize {
    let goes = |first: &str, second: &str| {
        let mut row = StepConfig::default();
        row.insert(mechanism(first));
        row.insert(mechanism(second)).is_none()
    };
    let later =
        |(at, first): (usize, &&str)| WITHOUT_EFFECT[at + 1..].iter().filter(|second| goes(first, second)).count();
    WITHOUT_EFFECT.iter().enumerate().map(later).sum()
}

fn converted() -> Place {
    let place = Place::new();
    place.retie("convert base --recursions 2 --sharing middle_cycle --init average --lora-rank 4 -o looped").ok();
    place
}

#[test]
fn every_mechanism_and_every_pair_leaves_the_logits_alone() {
    let place = converted();
    let with: Vec<_> = WITHOUT_EFFECT.iter().map(|mechanism| format!("--with {mechanism}")).collect();
    let with = with.join(" ");
    let report = json(&place.retie(&format!("check identity looped {with} --json --device cpu")).ok());
    let comparisons = report["comparisons"].as_array().unwrap();
    assert_eq!(comparisons.len(), WITHOUT_EFFECT.len() + num_pairs());
    for comparison in comparisons {
        assert!(comparison["max_difference"].as_f64().unwrap() <= 1e-5, "{comparison}");
    }
    let snake = place.retie("check identity looped --with snake --with sliced:groups=4 --device cpu");
    assert_eq!((snake.code, snake.stdout.matches("differs").count()), (Some(1), 3), "{snake:?}");
}

#[test]
fn an_inserted_model_is_the_model_until_it_is_trained() {
    let place = converted();
    let row = row();
    let with: String = row.mechanisms().map(|mechanism| format!("--with {mechanism} ")).collect();
    let report = place.retie(&format!("insert looped {with}-o stepped")).ok();
    assert!(report.contains("tensors equal the source's byte for byte"), "{report}");
    let inspected = place.retie("inspect stepped").ok();
    let list: Vec<_> = row.mechanisms().map(ToString::to_string).collect();
    assert!(inspected.contains(&format!("steps                {}", list.join(", "))), "{inspected}");
    let facts = json(&place.retie("inspect stepped --json").ok());
    let added = facts["parameters"]["steps"].as_u64().unwrap();
    let total = |facts: &Value| facts["parameters"]["total"].as_u64().unwrap();
    assert_eq!(total(&facts) - total(&json(&place.retie("inspect looped --json").ok())), added);
    let same = place.retie("check identity stepped --reference looped --device cpu").ok();
    assert_eq!(same.lines().filter(|line| line.ends_with("ok")).count(), 1 + list.len(), "{same}");

    let yaml = uptrain_yaml(3).replace("{model: converted}", "{model: stepped}");
    place.write("run.yaml", yaml);
    place.retie("uptrain run.yaml --set optimizer.groups.extras.lr=10").ok();
    let trained = place.retie("check identity run/model --json --device cpu");
    assert_eq!(trained.code, Some(1), "{trained:?}");
    for comparison in json(&trained.stdout)["comparisons"].as_array().unwrap() {
        let is_whole = ["without sliced", "without resolution"].contains(&comparison["with"].as_str().unwrap());
        assert_eq!(comparison["passed"], is_whole, "{comparison}");
    }
    place.retie("generate run/model -p The --max-new-tokens 4").ok();
    let taken = place.refused("insert run/model --with snake@1 -o more");
    assert!(taken.contains("`activation` of recursion 1 is `silu_dra` already"), "{taken}");
    for format in ["hf", "hf-unrolled", "gguf-unrolled"] {
        let names: Vec<_> = row.mechanisms().map(|mechanism| format!("`{}`", mechanism.name())).collect();
        let reason = format!("its recursions have mechanisms of their own: {}", names.join(", "));
        let refused = place.refused(&format!("export stepped --to {format} -o out"));
        assert!(refused.contains(&reason) && refused.contains("`retie serve`"), "{refused}");
    }
}

#[test]
fn tables_and_mechanisms_that_do_not_fit_are_refused() {
    let place = converted();
    place.write(
        "steps.yaml",
        "steps:\n  - {}\n  - transition: [hai, {nll: {ratio: 0.5}}]\n    attention: {sliced: {groups: 2}}\n",
    );
    let report = place.retie("insert looped --steps steps.yaml -o stepped").ok();
    assert!(report.contains("recursion 1  sliced:groups=2,order=stride, hai, nll:ratio=0.5"), "{report}");
    assert!(report.contains("note: `sliced:groups=2,order=stride` changes the logits at once"), "{report}");
    place.write("three.yaml", "steps: [{}, {}, {transition: [hai]}]");
    place.write("wrong.yaml", "steps:\n  - transition: [hay]\n  - attentoin: full\n");
    for (line, expected) in [
        ("insert looped --steps three.yaml", &["there are 3 rows for 2 recursions, expected 2, or one"][..]),
        (
            "insert looped --steps wrong.yaml",
            &["unknown mechanism `hay`", "wrong.yaml:3:5", "did you mean `attention`?"],
        ),
        ("insert base --with hai", &["the model is not recursive", "hint: `retie convert` makes one of it"]),
        ("insert looped --with nll:ratio=0", &["`nll`: `ratio` is 0, expected 0.0078125 to 16"]),
        ("insert looped --with hay", &["unknown mechanism `hay`, expected one of resolution, sliced"]),
        ("insert looped --with gnconv:order=9", &["`order` is 9, expected 1 to 5 for hidden states of 128"]),
        (
            "insert looped --with descriptor:chunk=30,ratio=8,sinks=4",
            &[
                "`chunk` is 30, expected a multiple of `ratio` 8, e.g. 24",
                "`sinks` is 4, expected a multiple of `ratio` 8 up to `chunk` 30",
            ],
        ),
        (
            "insert looped --with grouped_softmax:groups=6",
            &["`grouped_softmax`: `groups` is 6, expected a divisor of the hidden size 128, e.g. 4"],
        ),
        ("insert looped --with grouped_softmax@0", &["it is in the first recursion only, before which there is none"]),
        (
            "insert looped --with rg:stride=4,latents=30,key_ratio=1.5",
            &[
                "`latents` is 30, expected a multiple of `stride` 4, e.g. 28",
                "`key_ratio` is 1.5, expected more than 0, up to 1",
            ],
        ),
        ("insert looped --with resolution:factor=300", &["`resolution`: `factor` is 300, expected 1 to 256"]),
        ("insert looped --with none@1", &["`none`: there is no `branch` in the place of attention"]),
        ("insert looped --with none --with gnconv", &["`none`: no recursion would have attention"]),
        ("insert looped", &["--with <MECHANISM>"]),
    ] {
        let refused = place.refused(&format!("{line} -o out"));
        assert!(expected.iter().all(|part| refused.contains(part)), "{line}: {refused}");
    }
    place.retie("route looped --kind expert_choice -o routed").ok();
    for mechanism in ["dense", "gnconv", "descriptor:chunk=8,ratio=2", "rg", "grouped_softmax", "resolution:factor=2"] {
        let refused = place.refused(&format!("insert routed --with {mechanism} -o out"));
        assert!(refused.contains("the model has `expert_choice` routers, expected none"), "{refused}");
    }
    place.retie("insert routed --with hai --with nll --with sliced:groups=2 -o routed-steps").ok();
}
