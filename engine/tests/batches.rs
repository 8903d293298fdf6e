//! Independence of a request's tokens from the other sequences in its batch.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use burn::tensor::{Device, Int, Tensor};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};
use retie_engine::{Request, Sampler, Sampling};
use retie_model::{CausalLm, KvCache, NewTokens, kernels::f32_slice};
use retie_testing::CONTEXT;
use support::{Texts, alone, engine, models, request, routed, sampled, tokens};

/// Requests with prompts of different lengths, greedy and sampled.
fn requests() -> Vec<Request> {
    let sampling = |seed: u64| if seed.is_multiple_of(2) { Sampling::default() } else { sampled(seed) };
    [(0, 7, 9), (1, 7, 9), (2, 1, 12), (3, 19, 5), (4, 12, 8), (5, 30, 3)]
        .map(|(seed, prompt, new)| request(tokens(seed, prompt), new, sampling(seed as u64)))
        .to_vec()
}

/// Token ids as rows of one length, `[B, T]`, padded on the right.
fn padded_ids<'a>(rows: impl Iterator<Item = &'a [u32]> + Clone, device: &Device) -> Tensor<2, Int> {
    let longest = rows.clone().map(<[u32]>::len).max().unwrap();
    let mut ids: Vec<i32> = Vec::new();
    for (i, row) in rows.enumerate() {
        ids.extend(row.iter().map(|id| *id as i32));
        ids.resize((i + 1) * longest, 0);
    }
    Tensor::<1, Int>::from_ints(ids.as_slice(), device).reshape([ids.len() / longest, longest])
}

/// `new` tokens for each prompt, by whole forward passes over a padded batch without a cache.
fn padded(model: &CausalLm, requests: &[Request], new: usize) -> Vec<Vec<u32>> {
    let mut texts: Vec<Vec<u32>> = requests.iter().map(|request| request.prompt.clone()).collect();
    let mut samplers: Vec<_> =
        requests.iter().map(|request| Sampler::new(request.sampling.clone(), &request.prompt)).collect();
    for _ in 0..new {
        let ids = padded_ids(texts.iter().map(Vec::as_slice), &model.device());
        let [_, longest] = ids.dims();
        let logits = model.logits(model.forward(ids, None)).into_data();
        let rows = f32_slice(&logits).chunks(model.config().vocab_size).collect::<Vec<_>>();
        for (i, (text, sampler)) in texts.iter_mut().zip(&mut samplers).enumerate() {
            text.push(sampler.next(&mut rows[i * longest + text.len() - 1].to_vec(), 0).unwrap());
        }
    }
    texts.iter().zip(requests).map(|(text, request)| text[request.prompt.len()..].to_vec()).collect()
}

/// `new` tokens for each prompt, with a cache that reads the padded prompts as one grid and crops
/// the padding.
fn padded_and_cropped(model: &CausalLm, requests: &[Request], new: usize) -> Vec<Vec<u32>> {
    let (device, vocab_size) = (model.device(), model.config().vocab_size);
    let ids = padded_ids(requests.iter().map(|request| request.prompt.as_slice()), &device);
    let [_, longest] = ids.dims();
    let mut cache = KvCache::for_batch(model.config(), requests.len(), longest + new, &device);
    let slots: Vec<_> = cache.slots().collect();
    let logits = model.logits(model.forward(ids, Some(&mut cache))).into_data();
    let last = |(i, request): (usize, &Request)| (i * longest + request.prompt.len() - 1) * vocab_size;
    let at: Vec<usize> = requests.iter().enumerate().map(last).collect();
    let mut rows: Vec<Vec<f32>> = at.iter().map(|at| f32_slice(&logits)[*at..][..vocab_size].to_vec()).collect();
    slots.iter().zip(requests).for_each(|(slot, request)| cache.crop(*slot, request.prompt.len()));
    let batch: Vec<_> = slots.iter().map(|slot| NewTokens { slot: *slot, tokens: 1 }).collect();
    let mut samplers: Vec<_> =
        requests.iter().map(|request| Sampler::new(request.sampling.clone(), &request.prompt)).collect();
    let mut texts = vec![Vec::new(); requests.len()];
    for _ in 0..new {
        let next: Vec<u32> =
            samplers.iter_mut().zip(&mut rows).map(|(sampler, row)| sampler.next(row, 0).unwrap()).collect();
        texts.iter_mut().zip(&next).for_each(|(text, token)| text.push(*token));
        let ids: Vec<i32> = next.iter().map(|id| *id as i32).collect();
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &device);
        let (hidden, _) = model.forward_cached(ids, &batch, &mut cache);
        let logits = model.logits(hidden).into_data();
        rows = f32_slice(&logits).chunks(vocab_size).map(<[f32]>::to_vec).collect();
    }
    texts
}

#[test]
fn padded_single_and_mixed_batches_give_the_same_tokens() {
    for (name, model) in models() {
        let requests = requests();
        let expected: Vec<Vec<u32>> = requests.iter().map(|request| alone(&model, request.clone()).tokens).collect();
        let distinct = expected.concat().into_iter().collect::<std::collections::BTreeSet<_>>();
        assert!(distinct.len() > 10, "{name}: a model that says something: {expected:?}");
        for found in [padded(&model, &requests, 3), padded_and_cropped(&model, &requests, 3)] {
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(*found, expected[..3], "{name}, padded");
            }
        }
        // All requests at once, and with fewer slots and tokens per step.
        for (num_slots, max_step_tokens) in [(6, 6 * CONTEXT), (3, 5), (2, 2)] {
            let mut engine = engine(&model, num_slots, max_step_tokens);
            let (mut texts, mut ids) = (Texts::default(), Vec::new());
            for request in &requests {
                while engine.num_free_slots() == 0 {
                    texts.add(engine.step());
                }
                ids.push(engine.admit(request.clone()).unwrap());
            }
            texts.finish(&mut engine);
            for (id, expected) in ids.iter().zip(&expected) {
                assert_eq!(texts.get(*id).tokens, *expected, "{name}, {num_slots} slots, {max_step_tokens} tokens");
            }
        }
    }
}

#[test]
fn a_prompt_that_is_read_in_chunks_is_continued_alike() {
    for (name, model) in models() {
        let request = request(tokens(3, 29), 6, sampled(3));
        let expected = alone(&model, Request { recursion_counts: true, ..request.clone() });
        for chunk in [1, 2, 7, 28] {
            let mut engine = engine(&model, 1, chunk);
            let mut texts = Texts::default();
            let id = engine.admit(Request { recursion_counts: true, ..request.clone() }).unwrap();
            texts.finish(&mut engine);
            assert_eq!(texts.get(id), expected, "{name}, chunks of {chunk}");
        }
    }
}

/// An event in the life of an engine.
#[derive(Clone, Debug)]
enum Event {
    Admit {
        seed: usize,
        prompt: usize,
        new: usize,
        sampled: bool,
    },
    /// Evicts one of the admitted sequences, which may have ended already.
    Evict(usize),
    Step,
}

fn event() -> impl Strategy<Value = Event> {
    let admit = (0..40usize, 1..24usize, 1..12usize, any::<bool>());
    prop_oneof![
        3 => admit.prop_map(|(seed, prompt, new, sampled)| Event::Admit { seed, prompt, new, sampled }),
        1 => (0..12usize).prop_map(Event::Evict),
        4 => Just(Event::Step),
    ]
}

proptest! {
    // Tokens whose logits differ by less than the rounding of f32 can be chosen either way; the
    // fixed seed has no such case.
    #![proptest_config(Config { cases: 48, rng_seed: RngSeed::Fixed(18), ..Config::default() })]

    #[test]
    fn tokens_do_not_depend_on_other_sequences(
        events in prop::collection::vec(event(), 1..40),
        model in 0..7usize,
        max_step_tokens in 4..40usize,
    ) {
        let model = models().swap_remove(model).1;
        let mut engine = engine(&model, 4, max_step_tokens);
        let (mut texts, mut admitted, mut evicted) = (Texts::default(), Vec::new(), Vec::new());
        for event in events {
            match event {
                Event::Admit { seed, prompt, new, sampled: draws } => {
                    let sampling = if draws { sampled(seed as u64) } else { Sampling::default() };
                    let request = request(tokens(seed, prompt), new, sampling);
                    let was_full = engine.num_free_slots() == 0;
                    match engine.admit(request.clone()) {
                        Ok(id) => admitted.push((id, request)),
                        Err(error) => prop_assert!(was_full, "{}", error),
                    }
                }
                Event::Evict(i) => {
                    if let Some((id, _)) = admitted.get(i) && engine.evict(*id) {
                        evicted.push(*id);
                    }
                }
                Event::Step => texts.add(engine.step()),
            }
        }
        texts.finish(&mut engine);
        prop_assert_eq!(engine.num_free_slots(), 4);
        for (id, request) in admitted {
            let (found, expected) = (texts.get(id), alone(&model, request));
            if evicted.contains(&id) {
                prop_assert!(expected.tokens.starts_with(&found.tokens));
            } else {
                prop_assert_eq!(found, expected);
            }
        }
    }
}

#[test]
fn neighbours_with_other_seeds_do_not_disturb_a_draw() {
    let model = routed();
    let request = |seed| request(tokens(1, 5), 20, Sampling { temperature: 2.0, seed, ..Sampling::default() });
    let [first, second] = [1, 2].map(|seed| alone(&model, request(seed)).tokens);
    assert_ne!(first, second);
    let mut engine = engine(&model, 3, CONTEXT);
    let ids = [2, 1, 1].map(|seed| engine.admit(request(seed)).unwrap());
    let mut texts = Texts::default();
    texts.finish(&mut engine);
    assert_eq!(ids.map(|id| texts.get(id).tokens), [second, first.clone(), first]);
}
