//! KV sharing in a plain recursive model, in which every token goes through every recursion:
//! decoding equals the whole forward pass, attention is causal, and the cache has the size of the
//! formula.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod routed;

use burn::tensor::Device;
use retie_config::{Gating, KvSharing, RouterConfig, RouterNetwork};
use retie_model::{CausalLm, KvCache, SelectionRule};
use retie_testing::{differences, ids, values};
use routed::{Changed, rows, run, top_k};

const NAME: &str = "routed_kv";
/// Decoding against the whole pass: f32 sums in two orders over eight depths of random weights,
/// relative to the largest logit. Measured: 6.3e-6.
const DECODED: f32 = 2e-5;
const BOTH: [KvSharing; 2] = [KvSharing::Shared, KvSharing::Hybrid];

/// Three recursions of two layers between an unshared first and last layer.
fn load(kv: KvSharing) -> CausalLm {
    Changed::new(NAME, |_| {}).unrouted().with_kv_sharing(kv).load()
}

fn logits(model: &CausalLm, rows: &[Vec<u32>]) -> Vec<f32> {
    run(model, rows, SelectionRule::Causal).0
}

/// A plain model equals a routed model that selects every token.
#[test]
fn it_is_the_routed_model_that_selects_every_token() {
    for kv in KvSharing::ALL.iter().copied() {
        let everyone = Changed::new(NAME, |router| {
            let RouterConfig::ExpertChoice(router) = router else { panic!("{router:?}") };
            (router.network, router.gating) = (RouterNetwork::Random, Gating::StraightThrough);
            router.capacities.fill(1.0);
            router.thresholds = None;
        });
        let routed = everyone.with_kv_sharing(kv).load();
        let expected = logits(&load(kv), &rows(NAME));
        for choice in [SelectionRule::Causal, top_k(&routed)] {
            assert_eq!(run(&routed, &rows(NAME), choice).0, expected, "{kv}");
        }
    }
}

#[test]
fn shared_differs_from_a_model_without_sharing_and_hybrid_does_not() {
    let recursion_wise = logits(&load(KvSharing::RecursionWise), &rows(NAME));
    assert_eq!(logits(&load(KvSharing::Hybrid), &rows(NAME)), recursion_wise);
    assert!(differences(&logits(&load(KvSharing::Shared), &rows(NAME)), &recursion_wise).0 > 0.01);
}

#[test]
fn decoding_equals_the_whole_forward_pass() {
    for kv in BOTH {
        let (model, rows, device) = (load(kv), rows(NAME), Device::flex());
        let (batch, tokens, vocabulary) = (rows.len(), rows[0].len(), model.config().vocab_size);
        let expected = logits(&model, &rows);
        for prompt in [1, 5, tokens] {
            let mut cache = KvCache::for_batch(model.config(), batch, tokens, &device);
            let (mut at, mut decoded) = (0, vec![0.0; expected.len()]);
            while at < tokens {
                let count = if at == 0 { prompt } else { 1 };
                let step: Vec<Vec<u32>> = rows.iter().map(|row| row[at..at + count].to_vec()).collect();
                let found = values(model.logits(model.forward(ids(&step, &device), Some(&mut cache))));
                for (row, found) in found.chunks(count * vocabulary).enumerate() {
                    let from = (row * tokens + at) * vocabulary;
                    decoded[from..from + count * vocabulary].copy_from_slice(found);
                }
                at += count;
            }
            let scale = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
            let (max, _) = differences(&decoded, &expected);
            assert!(max <= DECODED * scale, "{kv}: differs by {max}, the largest is {scale}");
        }
    }
}

#[test]
fn a_token_depends_on_all_tokens_before_it_and_on_none_after_it() {
    for kv in BOTH {
        let model = load(kv);
        let row = rows(NAME)[0].clone();
        let vocabulary = model.config().vocab_size;
        let expected = logits(&model, std::slice::from_ref(&row));
        for at in [0, 7, row.len() - 1] {
            let mut other = row.clone();
            other[at] = (other[at] + 1) % vocabulary as u32;
            let found = logits(&model, &[other]);
            assert_eq!(found[..at * vocabulary], expected[..at * vocabulary], "{kv}: before {at}");
            let (last, before) = (found.len() - vocabulary, expected.len() - vocabulary);
            assert!(differences(&found[last..], &expected[before..]).0 > 0.0, "{kv}: the last token after {at}");
        }
    }
}

/// Eight depths: the first layer, two of each of three recursions, the last layer.
#[test]
fn a_cache_has_the_bytes_of_the_formula() {
    for (kv, depths) in [(KvSharing::RecursionWise, 8), (KvSharing::Shared, 4), (KvSharing::Hybrid, 8)] {
        let (model, rows, device) = (load(kv), rows(NAME), Device::flex());
        let (batch, tokens) = (rows.len(), rows[0].len());
        let cache = KvCache::for_batch(model.config(), batch, tokens, &device);
        // Keys and values: two heads of four numbers each, in f32.
        assert_eq!(cache.bytes(), batch * tokens * depths * 2 * 2 * 4 * 4, "{kv}");
        let cost = model.config().cost(tokens, None);
        assert_eq!(cache.bytes() as f64, batch as f64 * cost.cache_bytes, "{kv}");
    }
}
