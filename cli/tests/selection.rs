//! `convert --init select` and `convert --method drop` on the bundled model.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use safetensors::SafeTensors;
use serde_json::Value;
use support::Place;

const TEXT: &str = "--calibration text/train.jsonl --calibration-tokens 4096 --dtype f32";

fn report(place: &Place, model: &str) -> Value {
    serde_json::from_str(&place.read(&format!("{model}/convert.json"))).unwrap()
}

#[test]
fn removed_layers_are_compensated_and_a_closed_loop_over_them_changes_no_logit() {
    let place = Place::new();
    let table = place.retie(&format!("convert base --method drop --budget 75% {TEXT} -o drop")).ok();
    assert!(table.contains("layers kept within") && table.contains("uncompensated"), "{table}");
    place.retie(&format!("convert base --method drop --budget 75% --compensation none {TEXT} -o bare")).ok();
    let (base, drop, bare) = (place.nll("base"), place.nll("drop"), place.nll("bare"));
    // At least a tenth of what the removal costs comes back.
    assert!(base < drop && drop < bare - 0.1 * (bare - base), "{base} {drop} {bare}");

    // A plain model: another conversion reads it as any other.
    let config: Value = serde_json::from_str(&place.read("drop/config.json")).unwrap();
    let kept = report(&place, "drop")["selection"]["kept"].as_array().unwrap().len();
    assert_eq!((config["num_hidden_layers"].as_u64(), &config["model_type"]), (Some(kept as u64), &"llama".into()));

    let layers: Vec<u64> =
        report(&place, "drop")["selection"]["kept"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    let list = |layers: &[u64]| layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let looped = [&layers[..3], &layers[1..]].concat();
    place
        .retie(&format!(
            "convert base --init select --source-layers {} --lora-rank 2 --share-norms false {TEXT} -o closed",
            list(&looped)
        ))
        .ok();
    let same = place.retie("check identity closed --reference drop --tolerance 0").ok();
    assert!(same.contains("beside drop") && same.contains("ok"), "{same}");
    assert_eq!(place.nll("closed"), drop);
    place
        .retie(&format!("convert base --init select --source-layers {} --gate 0.3 {TEXT} -o open", list(&looped)))
        .ok();
    assert_eq!(place.retie("check identity open --reference drop").code, Some(1));

    // The exit after the first recursion is the model without the removed layers, to the last bit.
    // A compensation would fit the layers behind an open loop to what it does.
    place.retie(&format!("convert base --method drop --source-layers {} -o plain", list(&layers))).ok();
    place.retie(&format!("convert base --init select --source-layers {} --gate 0.3 -o loose", list(&looped))).ok();
    let text = "--tasks perplexity --text text/heldout.jsonl --limit 8 --window 128";
    place.retie(&format!("eval loose {text} --depths all --json loose.json")).ok();
    let exits: Value = serde_json::from_str(&place.read("loose.json")).unwrap();
    let (exit, whole) = (&exits["exits"][0], &exits["results"]["perplexity"]["token_nll"]);
    assert_eq!((exit["recursion"].as_u64(), exit["depths"].as_u64()), (Some(1), Some(kept as u64)));
    let plain = place.nll("plain");
    assert_eq!(exit["results"]["perplexity"]["token_nll"].as_f64(), Some(plain));
    assert_ne!(whole.as_f64(), Some(plain), "the second recursion counts");

    // A step of training opens the gates.
    let gates = |model: &str| -> Vec<f32> {
        let bytes = fs_err::read(place.path(&format!("{model}/model.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        // The first depth of the second recursion.
        let gate = tensors.tensor("model.depths.3.extras.attention_scale").unwrap();
        gate.data().chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
    };
    assert!(gates("closed").iter().all(|gate| *gate == 0.0) && gates("open").iter().all(|gate| *gate == 0.3));
    let yaml = "schema: 1\nrun: {dir: run}\nstudent: {model: closed}\n\
                data: {train: [text/train.jsonl], sequence_length: 32}\n\
                losses: [cross_entropy: {weight: 1}]\noptimizer: {lr: 1e-2, groups: {extras: {lr: 10}}}\n\
                schedule: {cosine: {warmup_steps: 1}}\ntrain: {steps: 2, batch_size: 2, seed: 1}\n";
    place.write("run.yaml", yaml);
    place.retie("uptrain run.yaml").ok();
    assert!(gates("run/model").iter().all(|gate| *gate != 0.0), "{:?}", gates("run/model"));
}

#[test]
fn a_selection_is_planned_written_and_the_same_again() {
    let place = Place::new();
    let line = format!("convert base --init select --budget 80% --share-norms false {TEXT}");
    let plan = place.retie(&format!("{line} --plan -o first")).ok();
    assert!(plan.contains("looped layers") && !place.path("first").exists(), "{plan}");
    for name in ["first", "second"] {
        place.retie(&format!("{line} --report {name}.html -o {name}")).ok();
    }
    let read = |name: &str| fs_err::read(place.path(name)).unwrap();
    assert!(read("first/model.safetensors") == read("second/model.safetensors"));
    let report = report(&place, "first");
    let (recursion, selection) = (&report["recursion"], &report["selection"]);
    assert_eq!((&recursion["init"], &recursion["sharing"]), (&"select".into(), &"cycle".into()));
    assert!(selection["loops"][0]["kl"].as_f64().unwrap() <= selection["kl"].as_f64().unwrap());
    assert!(report["calibration"]["calibrated"]["kl"].as_f64() < report["calibration"]["average"]["kl"].as_f64());
    assert!(plan.contains(&format!("{:.4}", selection["kl"].as_f64().unwrap())), "{plan}");
}

#[test]
fn what_does_not_go_with_a_selection_is_refused() {
    let place = Place::new();
    let refused = |line: &str| place.refused(line);
    let drop = "convert base --method drop -o out";
    assert!(refused(drop).contains("nothing says how many layers are kept"));
    assert!(refused(&format!("{drop} --budget 75%")).contains("method `drop` has no text to be measured on"));
    assert!(refused(&format!("{drop} --budget 100% {TEXT}")).contains("nothing has to be removed"));
    assert!(refused(&format!("{drop} --source-layers 0,1 --lora-rank 4")).contains("takes no `lora_rank`"));
    assert!(refused(&format!("{drop} --source-layers 0,99")).contains("layer 99 is listed"));
    assert!(
        refused("convert base --init average --recursions 2 --sharing cycle --gate 1 -o out")
            .contains("takes no `gate`")
    );
}

#[test]
fn layers_chosen_by_repeated_text_say_so_and_are_not_combined_with_a_list() {
    let place = Place::new();
    let drop = "convert base --method drop --compensation none";
    let table = place.retie(&format!("{drop} --budget 75% --select-by copying {TEXT} -o copying")).ok();
    assert!(table.contains("part of them of repeated text"), "{table}");
    let selection = &report(&place, "copying")["selection"];
    assert_eq!(selection["select_by"], "copying");
    let refused = place.refused(&format!("{drop} --source-layers 0,1 --select-by copying -o listed"));
    assert!(refused.contains("`select_by: copying` is given beside a list of `source_layers`"), "{refused}");
}
