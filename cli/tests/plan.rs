//! `retie plan`: its figures are those of other commands, and what fits nothing is refused with
//! what would.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use serde_json::Value;
use support::{CONVERT, Place, uptrain_yaml};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn value(row: &Value, key: &str) -> f64 {
    row[key]["value"].as_f64().unwrap()
}

/// Sum of the parts of a row's memory.
fn sum_of_parts(row: &Value) -> f64 {
    let parts = row["parts"].as_object().unwrap();
    let number = |key: &str| parts[key].as_f64().unwrap();
    let fixed = ["program", "weights", "gradients", "accumulated", "optimizer", "teacher", "merged", "logits"];
    fixed.map(number).iter().sum::<f64>() + number("activations_per_sequence") * number("sequences")
}

#[test]
fn plans_of_a_model_have_the_figures_of_its_conversions() {
    let place = Place::new();
    let plan = json(&place.retie("plan base --gpus 8 --memory 1GiB --budget 100h --json").ok());
    let rows = plan["rows"].as_array().unwrap();
    // Of 8 layers, 2 and 4 recursions; of the 6 inner ones, 2 and 3. Three ranks each.
    assert_eq!(rows.len(), 12, "{plan}");
    place.retie(&CONVERT.replace("--lora-rank 4", "--lora-rank 64")).ok();
    let inspected = json(&place.retie("inspect converted --json").ok());
    let is_it = |row: &&Value| {
        row["plan"] == "middle_cycle, middle_sequence" && row["recursions"] == 2 && row["lora_rank"] == 64
    };
    let row = rows.iter().find(is_it).unwrap();
    assert_eq!(value(row, "parameters"), inspected["parameters"]["total"].as_f64().unwrap());
    assert_eq!(value(row, "kv_bytes_per_token"), inspected["kv_cache_bytes_per_token"]["f32"].as_f64().unwrap());
    for row in rows {
        assert_eq!(value(row, "memory_bytes"), sum_of_parts(row), "{row}");
        assert!(value(row, "memory_bytes") <= f64::from(1 << 30), "{row}");
        // 8 processes with a micro-batch each.
        let tokens = 8.0 * row["sequences"].as_f64().unwrap() * row["sequence_length"].as_f64().unwrap();
        let per_second = tokens / value(row, "step_seconds");
        assert!((value(row, "tokens") / (per_second * 360_000.0) - 1.0).abs() < 1e-9, "{row}");
        // Priors: a rate of another machine, and memory of a GPU.
        assert_eq!((&row["tokens"]["basis"], &row["memory_bytes"]["basis"]), (&"prior".into(), &"prior".into()));
    }
    let chosen = &rows[plan["recommended"].as_u64().unwrap() as usize];
    let own = json(&place.retie("inspect base --json").ok())["parameters"]["total"].as_f64().unwrap();
    assert!(value(chosen, "parameters") <= 0.75 * own, "{chosen}");
    let smaller = rows.iter().filter(|row| value(row, "parameters") <= 0.75 * own);
    let most = smaller.map(|row| value(row, "effective_parameters")).fold(0.0, f64::max);
    assert_eq!(value(chosen, "effective_parameters"), most);
    // Dividing the optimizer needs less of each process.
    let run = place.retie("plan base --gpus 8 --memory 90MiB --sequence-length 256 --budget 1h --device cpu --json");
    let tight = json(&run.ok());
    assert!(tight.to_string().contains("gradient checkpointing"), "{tight}");
}

#[test]
fn a_plan_of_a_run_has_the_memory_of_its_dry_run_and_a_measured_time() {
    let place = Place::new();
    place.retie(CONVERT).ok();
    place.write("run.yaml", uptrain_yaml(4));
    let dry = json(&place.retie("uptrain run.yaml --dry-run --device cpu --json").ok())["plan"].clone();
    let plan = "plan run.yaml --gpus 1 --memory 1GiB --budget 1h --device cpu --json";
    let computed = json(&place.retie(plan).ok());
    let row = &computed["rows"][0];
    let parts = ["student_bytes", "teacher_bytes", "activation_bytes", "other_bytes"];
    let bytes: f64 = parts.map(|key| dry[key].as_f64().unwrap()).iter().sum();
    assert_eq!((value(row, "memory_bytes"), &row["memory_bytes"]["basis"]), (bytes, &"computed".into()));
    assert_eq!(
        (value(row, "operations_per_step"), &row["run_tokens"]),
        (dry["flops_per_step"].as_f64().unwrap(), &256.into())
    );
    let run = place.retie(&format!("{plan} --measure"));
    let measured = json(&run.ok());
    let row = &measured["rows"][0];
    assert_eq!((&row["step_seconds"]["basis"], &row["tokens"]["basis"]), (&"measured".into(), &"computed".into()));
    let times = &measured["rate"]["measured"];
    let step = times["micro_batch"].as_f64().unwrap() + times["update"].as_f64().unwrap();
    assert_eq!(value(row, "step_seconds"), step);
    assert_eq!(value(row, "run_seconds"), 4.0 * step);
    let table = place.retie(&plan.replace(" --json", "")).ok();
    assert!(table.contains("memory of one process of the run, 2 recursions, LoRA of rank 4 (whole):"), "{table}");
}

#[test]
fn a_plan_that_nothing_fits_says_what_would() {
    let place = Place::new();
    let message = place.refused("plan base --gpus 2 --memory 20MiB --budget 1h");
    assert!(message.contains("no plan fits into 20.0 MiB, for each of 2 processes: the smallest, "), "{message}");
    let would = message.split("`--memory ").nth(1).unwrap().split('`').next().unwrap();
    place.retie(&format!("plan base --gpus 2 --memory {would} --budget 1h")).ok();
    place.retie(CONVERT).ok();
    place.write("run.yaml", uptrain_yaml(4));
    let message = place.refused("plan run.yaml --gpus 1 --memory 20MiB --budget 1h --device cpu");
    assert!(message.contains("one sequence with gradient checkpointing needs"), "{message}");
    let message = place.refused("plan run.yaml --gpus 2 --memory 1GiB --budget 1h");
    assert!(
        message.contains("`train.gradient_accumulation` is 1, expected a multiple of the 2 processes"),
        "{message}"
    );
    let message = place.refused("plan base --gpus 1 --memory 1GiB --budget 1h --recursions 5");
    assert!(message.contains("no number of `--recursions` divides the 8 layers"), "{message}");
    let message = place.refused("plan base --gpus 1 --memory 1GiB --budget 1h --rate 0");
    assert!(message.contains("`--rate` is `0`, expected a number above 0"), "{message}");
}
