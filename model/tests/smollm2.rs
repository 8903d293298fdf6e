//! SmolLM2-135M-Instruct against `transformers`. `golden/smollm2.safetensors`, which
//! `golden/make_smollm2.py` made, has the largest logits, log-probabilities and some hidden states.
//!
//! `RETIE_SMOLLM2_GGUF` names the model file, which `scripts/fetch-smollm2` gets: without it the
//! tests are skipped. Where `RETIE_ASSETS` names a folder with `golden/logits.safetensors`, the
//! file that the golden was made from, every logit is compared.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod routed;

use burn::tensor::Device;
use retie_checkpoint::ModelSource;
use retie_model::{CausalLm, KvCache, kernels::Layout};
use retie_testing::{Golden, differences, ids, values};
use routed::flat;
use std::path::PathBuf;

const NUM_PROMPTS: usize = 3;

/// Largest difference of a large logit or a log-probability. The logits reach 36; the reference is
/// 4e-5 from a forward pass in f64, and one of numpy in f32 is 7e-5 from the reference: ten times
/// that.
const LOGIT: f64 = 7e-4;

/// Largest difference of an element of a hidden state, relative to the state's root mean square:
/// ten times the 2.6e-6 of the same pass in f32.
const HIDDEN: f32 = 3e-5;

fn model() -> Option<CausalLm> {
    let Ok(path) = std::env::var("RETIE_SMOLLM2_GGUF") else {
        eprintln!("skipped: set RETIE_SMOLLM2_GGUF to the file that scripts/fetch-smollm2 gets");
        return None;
    };
    let source = ModelSource::open(&path).unwrap();
    Some(CausalLm::load(&source.config, source.tensors.as_ref(), &Device::flex()).unwrap())
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).reduce(|a, b| if row[b] > row[a] { b } else { a }).unwrap()
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let largest = f64::from(row[argmax(row)]);
    row.iter().map(|x| (f64::from(*x) - largest).exp()).sum::<f64>().ln() + largest
}

/// Token ids of the golden.
fn tokens(golden: &Golden, name: &str) -> Vec<u32> {
    golden.ints(name).0.iter().map(|id| *id as u32).collect()
}

fn logits(model: &CausalLm, tokens: &[u32], cache: Option<&mut KvCache>) -> Vec<f32> {
    values(model.logits(model.forward(ids(&[tokens.to_vec()], &model.device()), cache)))
}

#[test]
fn hidden_states_are_those_of_the_reference() {
    let Some(model) = model() else { return };
    let golden = Golden::named("smollm2");
    let width = model.config().hidden_size;
    for prompt in 0..NUM_PROMPTS {
        let key = |what: &str| format!("golden.prompt{prompt}.{what}");
        let tokens = tokens(&golden, &key("ids"));
        let context = model.row_context(Layout::batch(1, tokens.len()));
        let embedded = model.embed(flat(&[tokens], &model.device()));
        assert!(values(embedded.clone()) == golden.floats(&key("hidden0")), "prompt {prompt}: other embeddings");
        let first = model.run_depths(embedded, 0..1, &context);
        let half = model.run_depths(first.clone(), 1..15, &context);
        let last = model.norm(model.run_depths(half.clone(), 15..30, &context));
        let layers = [(1, first), (15, half), (30, last)];
        for ((layer, hidden), rms) in layers.into_iter().zip(golden.floats(&key("rms"))) {
            let all = values(hidden);
            let found = &all[all.len() - width..];
            let found_rms = (found.iter().map(|x| x * x).sum::<f32>() / width as f32).sqrt();
            let expected = golden.floats(&key(&format!("hidden{layer}")));
            let (max, _) = differences(&found[..expected.len()], &expected);
            eprintln!("prompt {prompt}, layer {layer}: differs by {max:.2e}, root mean square {rms:.3}");
            assert!(max <= HIDDEN * rms, "prompt {prompt}, layer {layer}: differs by {max}");
            assert!((found_rms - rms).abs() <= HIDDEN * rms, "prompt {prompt}, layer {layer}: {found_rms} and {rms}");
        }
    }
}

#[test]
fn largest_logits_and_log_probabilities_are_those_of_the_reference() {
    let Some(model) = model() else { return };
    let golden = Golden::named("smollm2");
    let assert_near = |what: String, found: f64, expected: f32| {
        let difference = (found - f64::from(expected)).abs();
        assert!(difference <= LOGIT, "{what}: {found} and {expected}");
    };
    for prompt in 0..NUM_PROMPTS {
        let key = |what: &str| format!("golden.prompt{prompt}.{what}");
        let tokens = tokens(&golden, &key("ids"));
        let logits = logits(&model, &tokens, None);
        let (top_ids, shape) = golden.ints(&key("top_ids"));
        let (top_logits, sums) = (golden.floats(&key("top_logits")), golden.floats(&key("log_sum_exp")));
        let log_probs = golden.floats(&key("target_log_probs"));
        assert_eq!((shape[0], sums.len(), log_probs.len()), (tokens.len(), tokens.len(), tokens.len() - 1));
        for (at, row) in logits.chunks(model.config().vocab_size).enumerate() {
            let top = at * shape[1]..(at + 1) * shape[1];
            assert_eq!(argmax(row) as i64, top_ids[top.start], "prompt {prompt}, position {at}");
            for (id, expected) in top_ids[top.clone()].iter().zip(&top_logits[top]) {
                let what = format!("prompt {prompt}, position {at}, logit of token {id}");
                assert_near(what, f64::from(row[*id as usize]), *expected);
            }
            let sum = log_sum_exp(row);
            assert_near(format!("prompt {prompt}, position {at}, log-sum-exp"), sum, sums[at]);
            if let Some(target) = tokens.get(at + 1) {
                let found = f64::from(row[*target as usize]) - sum;
                assert_near(format!("prompt {prompt}, position {at}, log-probability"), found, log_probs[at]);
            }
        }
    }
}

#[test]
fn greedy_decoding_is_that_of_the_reference_and_of_the_full_forward_pass() {
    let Some(model) = model() else { return };
    let golden = Golden::named("smollm2");
    let vocab_size = model.config().vocab_size;
    for prompt in 0..NUM_PROMPTS {
        let key = |what: &str| format!("golden.prompt{prompt}.{what}");
        let (mut all, greedy) = (tokens(&golden, &key("ids")), tokens(&golden, &key("greedy16")));
        let mut cache = KvCache::for_batch(model.config(), 1, all.len() + greedy.len(), &model.device());
        let mut next = logits(&model, &all, Some(&mut cache));
        for expected in greedy {
            let token = argmax(&next[next.len() - vocab_size..]) as u32;
            assert_eq!(token, expected);
            all.push(token);
            next = logits(&model, &[token], Some(&mut cache));
        }
        let full = logits(&model, &all, None);
        let (max, _) = differences(&next, &full[full.len() - vocab_size..]);
        eprintln!("prompt {prompt}: the last decoded logits differ from the full forward by {max:.2e}");
        assert!(max <= 1e-4, "{max}");
    }
}

#[test]
fn every_logit_is_that_of_the_reference() {
    let root = std::env::var_os("RETIE_ASSETS").map(PathBuf::from);
    let root = root.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/assets")));
    let path = root.join("golden/logits.safetensors");
    if !path.exists() {
        eprintln!("skipped: no `{}` (set RETIE_ASSETS)", path.display());
        return;
    }
    let Some(model) = model() else { return };
    let golden = Golden::open(&path);
    let vocab_size = model.config().vocab_size;
    for prompt in 0..NUM_PROMPTS {
        let key = |what: &str| format!("f32.prompt{prompt}.{what}");
        let found = logits(&model, &tokens(&golden, &key("ids")), None);
        let expected = golden.floats(&key("logits"));
        let (max, mean) = differences(&found, &expected);
        eprintln!("prompt {prompt}: logits differ by {max:.2e} at most, {mean:.2e} in the mean");
        assert!(max <= 2e-3 && mean <= 1e-4, "prompt {prompt}: max {max}, mean {mean}");
        for (a, b) in found.chunks(vocab_size).zip(expected.chunks(vocab_size)) {
            assert_eq!(argmax(a), argmax(b));
        }
    }
}
