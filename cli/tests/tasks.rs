//! Generated tasks: training text, evaluation by exact match, shortcuts, and pages of results.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use serde_json::Value;
use support::{Place, uptrain_yaml};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn an_oracle_that_follows_a_shortcut_is_explained_whole_and_shown() {
    let place = Place::new();
    place.retie("eval oracle:3 --tasks succ?length=8&longer=10 --explain shortcut --limit 300 --json lab.json --matrix m.csv").ok();
    let result = json(&place.read("lab.json"));
    let score = &result["generated"][0];
    let found = &score["explanations"][0][1];
    assert_eq!((found["cap"].as_u64(), found["predicted"].as_u64()), (Some(3), found["wrong"].as_u64()), "{found}");
    assert_eq!(found["agreeing"], found["answers"], "{found}");
    let numbers = &result["results"]["succ?length=8&longer=10"];
    assert!(numbers["exact_match"].as_f64().unwrap() > 0.9 && numbers["exact_match_edge"] == 0.0, "{numbers}");
    let csv = place.read("m.csv");
    assert!(
        csv.starts_with("task,group,depth,recursions,examples,right\n\"succ?length=8&longer=10\",in distribution,0,1,")
    );

    place.write(
        "points.jsonl",
        (0..40)
            .map(|i| {
                format!("{{\"group\": {}, \"value\": {}, \"prediction\": 0, \"calibration\": {}}}\n", i % 2, i, i < 20)
            })
            .collect::<String>(),
    );
    let table = place.retie("lab conformal points.jsonl --window 1 -o ./coverage.json").ok();
    assert!(table.contains("coverage") && table.lines().count() == 3, "{table}");
    place.retie("lab report . -o lab.html").ok();
    let page = place.read("lab.html");
    for part in [
        "<h2>lab: succ?length=8&amp;longer=10</h2>",
        "the shortcut 3 predicts",
        "wrong answers of succ",
        "coverage of 90 % intervals",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let right = place.retie("eval oracle --tasks tree:postorder,query:3in,json --limit 50 --explain shortcut").ok();
    assert_eq!(right.matches("no answer is wrong").count(), 3, "{right}");
}

#[test]
fn a_model_trains_on_a_task_and_is_asked_with_other_numbers_of_recursions() {
    let place = Place::new();
    place
        .retie("convert base --recursions 2 --sharing middle_cycle --init average --share-norms true -o converted")
        .ok();
    let yaml = uptrain_yaml(4)
        .replace("[text/train.jsonl]", "['task://succ?length=1..4&count=400']")
        .replace("[text/heldout.jsonl]", "['task://succ?length=1..4&count=60&seed=1']");
    assert!(yaml.contains("task://succ?length=1..4&count=400") && yaml.contains("count=60&seed=1"), "{yaml}");
    place.write("run.yaml", yaml);
    place.retie("uptrain run.yaml").ok();
    let eval = "eval run/model --tasks dyck?length=1..4,recall --limit 6 --recursions 1..3 --json a.json";
    let table = place.retie(eval).ok();
    assert!(table.contains("R = 1    R = 2    R = 3"), "{table}");
    let result = json(&place.read("a.json"));
    let cells = result["generated"][0]["cells"].as_array().unwrap();
    let examples = |recursions: u64| {
        let of = cells.iter().filter(|cell| cell["recursions"] == recursions);
        of.map(|cell| cell["examples"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!([1, 2, 3].map(examples), [12; 3]);
    // An answer does not depend on the batch that it is computed in.
    let alone = format!("{} --batch-size 1", eval.replace("a.json", "b.json"));
    place.retie(&alone).ok();
    assert_eq!(json(&place.read("b.json"))["generated"], result["generated"]);
    let shots = place.retie("eval run/model --tasks succ?length=1..2 --limit 2 --format icl --shots 2").ok();
    assert!(shots.contains("2 solved examples in the prompt"), "{shots}");
}

#[test]
fn a_routed_model_has_the_correlation_of_recursion_count_and_depth() {
    let place = Place::new();
    place.retie("convert base --recursions 3 --sharing middle_cycle --init average -o looped").ok();
    place.retie("route looped --kind expert_choice --capacities 1,0.6,0.3 -o routed").ok();
    place.retie("eval routed --tasks tree?length=1..6 --limit 12 --json r.json").ok();
    let found = &json(&place.read("r.json"))["generated"][0]["correlation"];
    assert!(found["tokens"].as_u64().unwrap() > 200 && found["examples"] == 24, "{found}");
    let refused = place.refused("eval routed --tasks tree --recursions 2");
    assert!(refused.contains("cannot run with 2 recursions in place of 3: its routers decide"), "{refused}");
}

#[test]
fn tasks_are_listed_shown_and_written_as_text() {
    let place = Place::new();
    assert!(place.retie("tasks").ok().contains("listops          exact_match              generated: nested"));
    let shown = place.retie("tasks tree:inorder?length=3").ok();
    assert!(
        shown.contains("tree := . | ( letter tree tree )") && shown.contains("\nexamples with height\n"),
        "{shown}"
    );
    let text = place.retie("tasks succ?count=7&length=2 --text").ok();
    assert!(text.lines().count() == 7 && text.lines().all(|line| line.contains(" 01 = X")), "{text}");
    let psi = place.retie("lab numbers psi --genus 2 --points 1").ok();
    assert_eq!(json(psi.lines().last().unwrap())["value"], "1/1152");
}

#[test]
fn networks_are_fitted_to_recursive_numbers() {
    let place = Place::new();
    let line = "lab fit psi --genus 4 --points 3 --known 3 --activations snake,tanh --seeds 2 --epochs 300 -o points";
    let table = place.retie(line).ok();
    assert!(table.starts_with("activation  median beyond "), "{table}");
    // The points of a network are what intervals are calibrated on.
    let coverage = place.retie("lab conformal points/psi-snake-1.jsonl --alpha 0.2 --window 1").ok();
    assert!(coverage.contains("4 (outside)"), "{coverage}");
    let again =
        place.retie("lab fit psi --genus 4 --points 3 --known 3 --activations tanh --seeds 1 --epochs 300 --json");
    let figures = &json(&again.ok())["fit"]["activations"][0];
    assert_eq!(figures["activation"], "tanh");
    assert!(figures["seeds"][0]["within"].as_f64().unwrap() > 0.9, "{figures}");
    assert!(table.contains(&format!("{:.3}", figures["seeds"][0]["fitted"].as_f64().unwrap())), "{table}\n{figures}");
    let line = place.retie("lab fit bitwise --activations relu,dra:paper --seeds 1 --epochs 3").ok();
    assert!(line.contains("dra:paper") && line.lines().count() == 3, "{line}");
    let message = place.refused("lab fit bitwise --known 300");
    assert!(message.contains("`--known` is 300 and `--last` 200"), "{message}");
    let message = place.refused("lab fit psi --activations gelu");
    assert!(message.contains("expected one of dra:paper, dra:model"), "{message}");
}

#[test]
fn dynamicformer_is_fitted_and_its_points_are_calibrated() {
    let place = Place::new();
    let line =
        "lab fit psi --genus 3 --points 2 --known 2 --network dynamicformer --seeds 1 --epochs 2 --json -o points";
    let figures = &json(&place.retie(line).ok())["fit"]["activations"][0];
    assert_eq!(figures["activation"], "dra:model");
    assert!(figures["seeds"][0]["genera"]["3"].is_f64(), "{figures}");
    let coverage = place.retie("lab conformal points/psi-dynamicformer-dra-model-0.jsonl --alpha 0.5 --window 1").ok();
    assert!(coverage.contains("3 (outside)"), "{coverage}");
    let message = place.refused("lab fit psi --network dynamicformer --activations dra:paper,snake");
    assert!(message.contains("`--network dynamicformer` has no activation snake"), "{message}");
}

#[test]
fn queries_over_a_split_graph_are_answered() {
    // Two objects each, so that a negation can take one away.
    const STEPS: [(&str, usize); 6] =
        [("next", 1), ("next", 2), ("third", 3), ("third", 2), ("fifth", 5), ("fifth", 1)];
    let place = Place::new();
    let fact =
        |subject: usize, relation: &str, by: usize| format!("e{subject}\t{relation}\te{}\n", (subject + by) % 14);
    let facts: Vec<String> = (0..14).flat_map(|e| STEPS.map(|(relation, by)| fact(e, relation, by))).collect();
    let part = |of: fn(usize) -> bool| -> String {
        facts.iter().enumerate().filter(|(index, _)| of(*index)).map(|(_, fact)| fact.as_str()).collect()
    };
    ["graph", "results"].iter().for_each(|folder| fs_err::create_dir_all(place.path(folder)).unwrap());
    place.write("graph/train.txt", part(|index| index % 7 > 1));
    let message = place.refused("lab paths graph");
    assert!(message.contains("`graph` has no valid.txt, test.txt"), "{message}");
    place.write("graph/valid.txt", part(|index| index % 7 == 1));
    place.write("graph/test.txt", "e1\tsecond\te3\n");
    let message = place.refused("lab paths graph");
    assert!(message.contains("`graph/test.txt` has `second`, which train.txt does not have"), "{message}");
    place.write("graph/test.txt", part(|index| index % 7 == 0));
    let line = "lab paths graph --types 1p,2u,inp --queries 5 --seeds 2 --steps 4 -o results/paths.json --json";
    let result = json(&place.retie(line).ok());
    let kind = &result["paths"]["types"][1];
    assert_eq!((&kind["type"], &kind["queries"]), (&"2u".into(), &5.into()));
    assert_eq!(kind["systems"][0]["system"], "pathformer");
    assert_eq!(kind["systems"].as_array().unwrap().len(), 5);
    let mrr = kind["systems"][4]["seeds"][1]["mrr"].as_f64().unwrap();
    assert!(mrr > 0.0 && mrr <= 1.0, "{kind}");
    place.retie("lab report results").ok();
    let message = place.refused("lab paths graph --types 1p,4p");
    assert!(message.contains("`--types` has `4p`, expected of 1p, 2p"), "{message}");
}

#[test]
fn what_a_task_cannot_be_is_refused() {
    let place = Place::new();
    for (line, expected) in [
        ("eval base --tasks succ?length=0..3", "cannot have the lengths 0 to 3, expected 1 to 1000"),
        ("eval base --tasks query:4p", "no variant `4p`"),
        ("eval base --tasks recal?length=3", "did you mean `recall`?"),
        ("eval base --tasks succ --recursions 2", "has no shared block that runs again"),
        ("eval base --tasks copy?length=20&form=plain", "hint: `form=spaced` puts a space between symbols"),
        ("eval base --tasks copy?distance=16384", "the model's context"),
        ("eval oracle --tasks piqa", "answers generated tasks only"),
        ("eval base --tasks perplexity --text text/heldout.jsonl --explain shortcut", "no generated task is asked for"),
        ("lab report text", "no file in `text` has results"),
    ] {
        let message = place.refused(line);
        assert!(message.contains(expected), "{line}: {message}");
    }
    place.write("few.jsonl", "{\"group\": 0, \"value\": 1, \"prediction\": 0, \"calibration\": true}\n{\"group\": 0, \"value\": 1, \"prediction\": 0, \"calibration\": false}\n");
    assert!(place.refused("lab conformal few.jsonl").contains("do not suffice for alpha 0.1, expected at least 9"));
    assert!(place.refused("lab conformal few.jsonl --alpha 1.5").contains("expected a number between 0 and 1"));
}
