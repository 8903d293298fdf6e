//! Launches, reads and memory of an uptraining step on a device with kernels, held to the budgets
//! of `benches/launches.json`. Kernels are counted, not run: any GPU that wgpu finds will do, and
//! software too.
//!
//! `RETIE_DEVICE` names the device. `scripts/check-device` sets it and runs these tests, which are
//! ignored otherwise. Pools keep the pages of every test of the process, so the largest step has
//! the last name: tests run in the order of their names.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use burn::tensor::Device;
use retie_config::{
    ExpertChoiceConfig, Init, LoraConfig, ModelConfig, RecursionConfig, RouterConfig, Sharing, TokenChoiceConfig,
    UptrainConfig,
};
use retie_model::kernels::{Execution, Product, REPLAY, num_reads, pool_memory, replays, with_launches, with_work};
use retie_trainer::{RunModels, StepProbe};
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeMap, path::Path};

/// The most that a step may take.
#[derive(Debug, Deserialize)]
struct Budget {
    batch: usize,
    seq: usize,
    launches: usize,
    reads: usize,
    /// In the pools of the device.
    gib: f64,
    /// Kernels of the replays among the launches.
    kernels: Option<usize>,
}

fn budget(name: &str) -> Budget {
    let mut all: BTreeMap<String, Budget> = serde_json::from_str(include_str!("../../benches/launches.json")).unwrap();
    all.remove(name).unwrap_or_else(|| panic!("benches/launches.json has no `{name}`"))
}

fn device() -> Device {
    let name = std::env::var("RETIE_DEVICE").expect("RETIE_DEVICE names a device: run scripts/check-device");
    assert_ne!(name, "cpu", "the CPU launches no kernels");
    retie_model::device(&name).unwrap()
}

/// A Llama without weights.
fn llama(sizes: [usize; 4], [heads, kv_heads]: [usize; 2]) -> ModelConfig {
    let [vocab_size, hidden_size, intermediate_size, layers] = sizes;
    let keys = json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    ModelConfig::from_json(keys.as_object().unwrap().clone(), Path::new("config.json")).unwrap()
}

/// Distillation of a recursive `model` with two recursions from `model` itself.
fn run(batch: usize, seq: usize) -> UptrainConfig {
    let keys = json!({
        "schema": 1,
        "run": { "dir": "run" },
        "student": { "model": "student" },
        "teacher": { "model": "teacher" },
        "data": { "train": ["text"], "sequence_length": seq },
        "losses": [{ "cross_entropy": { "weight": 0.3 } }, { "distill": { "weight": 0.7 } }],
        "optimizer": { "lr": 5e-4 },
        "schedule": { "cosine": { "warmup_steps": 0 } },
        "train": { "steps": 1, "batch_size": batch },
    });
    serde_json::from_value(keys).unwrap()
}

/// Counts a step of `model` with LoRA of rank `rank`, three times: the counts are the same.
fn hold(name: &str, model: &ModelConfig, rank: usize, router: Option<RouterConfig>, execution: Execution) {
    let (device, budget) = (device(), budget(name));
    let recursion = RecursionConfig::new(2, Sharing::Cycle, Init::Average);
    let recursion = RecursionConfig { lora: Some(LoraConfig::uniform(rank)), router, ..recursion };
    let student = ModelConfig { recursion: Some(recursion), ..model.clone() };
    let config = run(budget.batch, budget.seq);
    let elements: usize = model.tensors().iter().map(|spec| spec.num_elements()).sum();
    let models = RunModels { student: &student, teacher: Some((model, 4 * elements)) };
    let (probe, _) = with_launches(&device, execution, || StepProbe::new(&config, models, &device));
    let mut probe = probe.unwrap();
    let mut counts = Vec::new();
    for _ in 0..4 {
        let before = num_reads();
        let ((step, work), launches) = with_launches(&device, execution, || with_work(|| probe.step(false)));
        step.unwrap();
        counts.push((launches.expect("a device with kernels"), num_reads() - before, work));
    }
    // The first step makes the state of the optimizer.
    let (launches, reads, _) = counts.remove(0);
    eprintln!("{name}: {} launches, {reads} reads in the first step", launches.values().sum::<usize>());
    let same = |(launches, reads, _): &(_, _, _)| (launches, reads) == (&counts[0].0, &counts[0].1);
    assert!(counts.iter().all(same), "{name}: the counts of later steps differ");
    let (launches, reads, work) = counts.remove(0);
    let products: usize = launches.iter().filter(|(name, _)| name.starts_with("Matmul")).map(|(_, count)| count).sum();
    assert_eq!(work.products.values().sum::<usize>(), products, "{name}: the shape of every product is known");
    let all = |of: fn(Product) -> u64| work.products.iter().map(|(shape, n)| of(*shape) * *n as u64).sum::<u64>();
    let (operations, bytes) = (all(Product::operations), all(Product::bytes));
    eprintln!(
        "{name}: products of {} shapes, {operations} operations, {bytes} bytes; kernels bind {} bytes",
        work.products.len(),
        work.bound_bytes
    );
    assert!(work.bound_bytes > 0, "{name}: kernels bind buffers");
    let total: usize = launches.values().sum();
    let gib = pool_memory(&device).expect("a device with pools").reserved as f64 / f64::from(1 << 30);
    eprintln!("{name}: {total} launches, {reads} reads, {gib:.2} GiB\n{launches:#?}");
    assert!(total <= budget.launches, "{name}: {total} launches, {} are allowed", budget.launches);
    assert!(reads <= budget.reads, "{name}: {reads} reads, {} are allowed", budget.reads);
    assert!(gib <= budget.gib, "{name}: {gib:.2} GiB, {} are allowed", budget.gib);
}

/// The teacher's forward pass is one launch from the third step on: the first is as always, the
/// second records.
#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_step_of_a_small_model_with_a_captured_teacher_stays_within_its_budget() {
    let (device, name, model) = (device(), "small, captured teacher", llama([300, 48, 96, 2], [6, 2]));
    let budget = budget(name);
    let lora = Some(LoraConfig::uniform(4));
    let recursion = RecursionConfig { lora, ..RecursionConfig::new(2, Sharing::Cycle, Init::Average) };
    let student = ModelConfig { recursion: Some(recursion), ..model.clone() };
    let config = run(budget.batch, budget.seq);
    let elements: usize = model.tensors().iter().map(|spec| spec.num_elements()).sum();
    let models = RunModels { student: &student, teacher: Some((&model, 4 * elements)) };
    let mut probe = StepProbe::new(&config, models, &device).unwrap().with_capture();
    for step in 1..=4 {
        let (reads, kernels) = (num_reads(), replays().kernels);
        let (seconds, launches) = with_launches(&device, Execution::Real, || probe.step(false));
        seconds.unwrap();
        let launches = launches.unwrap();
        let total: usize = launches.values().sum();
        let (reads, kernels) = (num_reads() - reads, replays().kernels - kernels);
        eprintln!("{name}, step {step}: {total} launches, {reads} reads; a replay of {kernels} kernels");
        if step > 2 {
            let gib = pool_memory(&device).unwrap().reserved as f64 / f64::from(1 << 30);
            assert_eq!((launches.get(REPLAY).copied(), Some(kernels)), (Some(1), budget.kernels), "{name}");
            assert!(total <= budget.launches, "{name}: {total} launches, {} are allowed", budget.launches);
            assert!(reads <= budget.reads, "{name}: {reads} reads, {} are allowed", budget.reads);
            assert!(gib <= budget.gib, "{name}: {gib:.2} GiB, {} are allowed", budget.gib);
        }
    }
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_step_of_a_small_model_stays_within_its_budget() {
    hold("small", &llama([300, 48, 96, 2], [6, 2]), 4, None, Execution::Real);
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_step_of_a_small_model_with_expert_choice_stays_within_its_budget() {
    let router = RouterConfig::ExpertChoice(ExpertChoiceConfig::new(2));
    hold("small, expert choice", &llama([300, 48, 96, 2], [6, 2]), 4, Some(router), Execution::Real);
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_step_of_a_small_model_with_token_choice_stays_within_its_budget() {
    let router = RouterConfig::TokenChoice(TokenChoiceConfig::default());
    hold("small, token choice", &llama([300, 48, 96, 2], [6, 2]), 4, Some(router), Execution::Real);
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_step_of_smollm2_stays_within_its_budget() {
    hold("smollm2-135m, R = 2, LoRA 64", &llama([49_152, 576, 1536, 30], [9, 3]), 64, None, Execution::Dry);
}
