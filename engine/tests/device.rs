//! Captured decoding on a device: the same tokens and bits as without, and one launch a token.
//!
//! `RETIE_DEVICE` names the device (`wgpu`, `cuda`, …). `scripts/check-device` sets it and runs
//! these tests, which are ignored otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use burn::tensor::Device;
use retie_config::{ModelConfig, RecursionConfig};
use retie_engine::{Engine, EngineOptions, Progress, Request};
use retie_model::{
    CausalLm,
    kernels::{Capture, Execution, REPLAY, num_reads, pool_memory, replays, set_capture, with_launches},
};
use retie_testing::{CONTEXT, RandomWeights, tiny_llama};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use support::{recursive, request, sampled, tokens};

fn device() -> Device {
    let name = std::env::var("RETIE_DEVICE").expect("RETIE_DEVICE names a device: run scripts/check-device");
    assert_ne!(name, "cpu", "the CPU captures nothing");
    retie_model::device(&name).unwrap()
}

fn load(recursion: Option<RecursionConfig>, layers: usize) -> CausalLm {
    let config = tiny_llama();
    let depths: Vec<usize> = (0..layers).map(|layer| layer % config.num_hidden_layers).collect();
    let config = ModelConfig { recursion, ..config.with_depths(&depths) };
    CausalLm::load(&config, &RandomWeights::new(&config), &device()).unwrap()
}

fn engine(model: &CausalLm, capture: Capture, num_slots: usize) -> Engine {
    set_capture(capture);
    let engine =
        Engine::new(model.clone(), EngineOptions { num_slots, context: CONTEXT, max_step_tokens: 16 }).unwrap();
    set_capture(Capture::Auto);
    engine.with_prefix_reuse()
}

/// All progress of requests one after the other. Log-probabilities of every token are in it.
fn run(engine: &mut Engine, requests: &[Request]) -> Vec<Progress> {
    let mut all = Vec::new();
    for request in requests {
        engine.admit(request.clone()).unwrap();
        while !engine.is_idle() {
            all.extend(engine.step());
        }
    }
    all
}

#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn texts_and_log_probabilities_do_not_depend_on_capture() {
    let with_logprobs = |prompt: Vec<u32>, new: usize, seed: u64| Request {
        logprobs: Some(3),
        prompt_logprobs: (seed == 2).then_some(2),
        recursion_counts: seed == 3,
        ..request(prompt, new, sampled(seed))
    };
    let long = tokens(1, 30);
    // The second begins as the first does, and reuses what the slot holds.
    let second = [&long[..20], &[5, 6, 7]].concat();
    let requests = [
        with_logprobs(long, 50 - 30, 0),
        with_logprobs(second, 25, 1),
        with_logprobs(tokens(2, 9), 50, 2),
        with_logprobs(vec![4], 12, 3),
    ];
    // With two slots one sequence is in the second, which is not captured.
    for (recursion, num_slots, least) in [(None, 1, 95), (Some(recursive()), 2, 40)] {
        let model = load(recursion, 6);
        let [off, on] = [Capture::Off, Capture::Auto].map(|capture| {
            let before = replays().count;
            let found = run(&mut engine(&model, capture, num_slots), &requests);
            (found, replays().count - before)
        });
        assert_eq!(on.0, off.0, "{num_slots} slots");
        assert_eq!(off.1, 0);
        assert!(on.1 > least, "{} replays", on.1);
    }
}

/// Sequences that decode side by side are not captured, and the one that is left is.
#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_sequence_whose_neighbour_ends_goes_on_with_the_same_bits() {
    let model = load(Some(recursive()), 6);
    let requests = [request(tokens(1, 9), 30, sampled(1)), request(tokens(2, 9), 10, sampled(2))];
    let [off, on] = [Capture::Off, Capture::Auto].map(|capture| {
        let mut engine = engine(&model, capture, 2);
        requests.iter().for_each(|request| _ = engine.admit(request.clone()).unwrap());
        let (mut all, before) = (Vec::new(), replays().count);
        while !engine.is_idle() {
            all.extend(engine.step());
        }
        (all, replays().count - before)
    });
    assert_eq!(on.0, off.0);
    // The second reads the end of its prompt in the second step, and ends in the eleventh.
    assert_eq!((off.1, on.1), (0, 19));
}

/// The most that a decoded token may take.
#[derive(Debug, Deserialize)]
struct Budget {
    batch: usize,
    seq: usize,
    launches: usize,
    /// Kernels of the replay.
    kernels: usize,
    reads: usize,
    /// In the pools of the device.
    gib: f64,
}

/// As many depths as SmolLM2-135M; the number of kernels does not depend on widths.
#[test]
#[ignore = "needs RETIE_DEVICE; run scripts/check-device"]
fn a_decoded_token_stays_within_its_budget() {
    let mut all: BTreeMap<String, Value> = serde_json::from_str(include_str!("../../benches/launches.json")).unwrap();
    let model = load(None, 30);
    for (name, capture) in [("decode, 30 depths", Capture::Auto), ("decode, 30 depths, not captured", Capture::Off)] {
        let budget: Budget = serde_json::from_value(all.remove(name).unwrap()).unwrap();
        assert_eq!(budget.batch, 1);
        let mut engine = engine(&model, capture, 1);
        engine.admit(request(tokens(1, budget.seq), 8, sampled(1))).unwrap();
        // The first steps read the prompt, and record.
        while engine.num_unread_prompt_tokens() > 0 {
            engine.step();
        }
        engine.step();
        for _ in 0..3 {
            let (reads, kernels) = (num_reads(), replays().kernels);
            let (progress, launches) = with_launches(&device(), Execution::Real, || engine.step());
            assert!(progress[0].token.is_some());
            let launches = launches.unwrap();
            let (total, gib) = (launches.values().sum::<usize>(), pool_memory(&device()).unwrap().reserved as f64);
            let gib = gib / f64::from(1 << 30);
            eprintln!("{name}: {total} launches, {gib:.2} GiB\n{launches:#?}");
            assert_eq!(replays().kernels - kernels, budget.kernels, "{name}");
            assert_eq!(launches.get(REPLAY).copied(), (capture == Capture::Auto).then_some(1), "{name}");
            assert!(total <= budget.launches, "{name}: {total} launches, {} are allowed", budget.launches);
            assert!(num_reads() - reads <= budget.reads, "{name}: {} reads", num_reads() - reads);
            assert!(gib <= budget.gib, "{name}: {gib:.2} GiB, {} are allowed", budget.gib);
        }
    }
}
