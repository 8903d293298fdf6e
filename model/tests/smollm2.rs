//! SmolLM2-135M against the recorded logits of `transformers`.
//!
//! `RETIE_SMOLLM2_GGUF` names the model file; `RETIE_ASSETS` the folder with `golden/logits.safetensors`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use burn::tensor::Device;
use retie_checkpoint::ModelSource;
use retie_model::{CausalLm, KvCache};
use std::path::PathBuf;
use support::{Golden, differences, ids, values};

fn assets() -> Option<(ModelSource, Golden)> {
    let root = std::env::var_os("RETIE_ASSETS").map(PathBuf::from);
    let root = root.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/assets")));
    let golden = root.join("golden/logits.safetensors");
    let model = std::env::var("RETIE_SMOLLM2_GGUF").ok();
    match model {
        Some(model) if golden.exists() => Some((ModelSource::open(&model).unwrap(), Golden::open(&golden))),
        _ => {
            eprintln!("skipped: needs RETIE_SMOLLM2_GGUF and `{}`", golden.display());
            None
        }
    }
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).reduce(|a, b| if row[b] > row[a] { b } else { a }).unwrap()
}

#[test]
fn logits_are_those_of_the_reference_and_decoding_is_the_full_forward() {
    let Some((source, golden)) = assets() else { return };
    let device = Device::flex();
    let model = CausalLm::load(&source.config, source.tensors.as_ref(), &device).unwrap();
    let vocab_size = source.config.vocab_size;
    for prompt in 0..3 {
        let key = |what: &str| format!("f32.prompt{prompt}.{what}");
        let tokens: Vec<u32> = golden.ints(&key("ids")).0.iter().map(|id| *id as u32).collect();
        let logits = values(model.logits(model.forward(ids(std::slice::from_ref(&tokens), &device), None)));
        let expected = golden.floats(&key("logits"));
        let (max, mean) = differences(&logits, &expected);
        eprintln!("prompt {prompt}: logits differ by {max:.2e} at most, {mean:.2e} in the mean");
        assert!(max <= 2e-3 && mean <= 1e-4, "prompt {prompt}: max {max}, mean {mean}");
        for (a, b) in logits.chunks(vocab_size).zip(expected.chunks(vocab_size)) {
            assert_eq!(argmax(a), argmax(b));
        }

        let greedy = golden.ints(&key("greedy16")).0;
        let mut cache = KvCache::new(&source.config, 1, tokens.len() + greedy.len(), &device);
        let mut next =
            values(model.logits(model.forward(ids(std::slice::from_ref(&tokens), &device), Some(&mut cache))));
        let mut all = tokens;
        for expected in greedy {
            let token = argmax(&next[next.len() - vocab_size..]);
            assert_eq!(token as i64, expected);
            all.push(token as u32);
            next = values(model.logits(model.forward(ids(&[vec![token as u32]], &device), Some(&mut cache))));
        }
        let full = values(model.logits(model.forward(ids(&[all], &device), None)));
        let (max, _) = differences(&next, &full[full.len() - vocab_size..]);
        eprintln!("prompt {prompt}: the last decoded logits differ from the full forward by {max:.2e}");
        assert!(max <= 1e-4, "{max}");
    }
}
