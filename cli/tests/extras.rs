//! Extras of a conversion change no logit until they are trained, and `retie check identity`
//! reports it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use insta::assert_snapshot;
use serde_json::Value;
use support::{Place, uptrain_yaml};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

const CONVERT: &str = "convert base --recursions 2 --init average --lora-rank 4 --share-norms false";
const EXTRAS: &str = "--extras residual_scale,loop_norm,loop_embedding";

/// Checks every extra after the conversion, where it has no effect, and after some training steps,
/// which change all of them.
#[test]
fn extras_change_nothing_until_they_are_trained() {
    let place = Place::new();
    for sharing in ["middle_cycle", "sequence"] {
        let (converted, run) = (format!("{sharing}-extras"), format!("run-{sharing}"));
        place.retie(&format!("{CONVERT} --sharing {sharing} -o {sharing}")).ok();
        let table = place.retie(&format!("{CONVERT} --sharing {sharing} {EXTRAS} -o {converted}")).ok();
        assert!(table.contains("extras"), "{table}");
        let facts = json(&place.retie(&format!("inspect {converted} --json")).ok());
        assert_eq!(facts["recursion"]["extras"], Value::from(vec!["loop_embedding", "loop_norm", "residual_scale"]));
        assert!(facts["parameters"]["extras"].as_u64().unwrap() > 0);
        let checked =
            place.retie(&format!("check identity {converted} --reference {sharing} --tolerance 0 --device cpu"));
        let lines = checked.ok();
        assert_eq!(lines.lines().filter(|line| line.ends_with("ok")).count(), 5, "{lines}");

        let yaml = uptrain_yaml(3).replace("{model: converted}", &format!("{{model: {converted}}}"));
        place.write("run.yaml", yaml.replace("{dir: run}", &format!("{{dir: {run}}}")));
        place.retie("uptrain run.yaml --set optimizer.groups.extras.lr=10").ok();
        let trained = place.retie(&format!("check identity {run}/model --json"));
        assert_eq!(trained.code, Some(1), "{trained:?}");
        for comparison in json(&trained.stdout)["comparisons"].as_array().unwrap() {
            assert_eq!(comparison["passed"], false, "{comparison}");
        }
        place.retie(&format!("generate {run}/model -p The --max-new-tokens 4")).ok();
    }
}

/// Full-rank LoRA with unshared norms reproduces the source, up to rounding.
#[test]
fn a_full_rank_conversion_is_identical_to_its_source() {
    let place = Place::new();
    let full = CONVERT.replace("--lora-rank 4", "--lora-rank 128 --dtype f32");
    place.retie(&format!("{full} --sharing cycle -o full")).ok();
    place.retie("check identity full --reference base --tolerance 1e-4").ok();
    place.retie(&format!("{CONVERT} --sharing cycle -o low")).ok();
    assert_eq!(place.retie("check identity low --reference base --tolerance 1e-4").code, Some(1));
}

#[test]
fn impossible_comparisons_and_extras_are_refused() {
    let place = Place::new();
    assert_snapshot!(place.refused("check identity base"), @"
    error: `base` has no extras, magnitudes or mechanisms to leave out
    hint: name another model with `--reference` or a mechanism with `--with`, or convert with `--extras` or `--relax dora`
    ");
    assert_snapshot!(place.refused("check identity base --reference base --tokens 0"), @"error: `--tokens` is 0, expected 1 to 256");
    assert_snapshot!(place.refused("convert base --recursions 1 --sharing cycle --init average --extras loop_norm -o out"), @"
    error: extras of the depths of a loop are asked for, but there is none with 1 recursion
    hint: ask for 2 recursions or more, or leave `extras` out
    ");
    assert_snapshot!(place.refused("convert base --recursions 2 --sharing cycle --init average --extras loop_gate -o out"), @"
    error: invalid value 'loop_gate' for '--extras <EXTRA,…>'
      [possible values: loop_embedding, loop_norm, residual_scale]

      tip: a similar value exists: 'loop_norm'

    For more information, try '--help'.
    ");
}
