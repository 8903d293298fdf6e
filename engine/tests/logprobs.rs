//! Log-probabilities of the tokens of prompts and of new tokens, and sequences that are paused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use burn::tensor::{Int, Tensor};
use retie_engine::{EngineError, FinishReason, Progress, Request, Sampling, StopConditions, TokenLogprobs};
use retie_model::{CausalLm, kernels::f32_slice};
use retie_testing::CONTEXT;
use support::{Texts, alone, engine, models, plain, request, sampled, tokens};

/// Log-probabilities `[T, V]` of the token after each of `ids`, by one pass without a cache.
fn expected(model: &CausalLm, ids: &[u32]) -> Vec<Vec<f64>> {
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &model.device()).reshape([1, ids.len()]);
    let logits = model.logits(model.forward(ids, None)).into_data();
    let log_softmax = |row: &[f32]| {
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        row.iter().map(|logit| f64::from(*logit) - sum.ln()).collect()
    };
    f32_slice(&logits).chunks(model.config().vocab_size).map(log_softmax).collect()
}

/// Runs a request beside another one; returns its log-probabilities of the prompt and of the new
/// tokens.
fn run(model: &CausalLm, request: Request, max_step_tokens: usize) -> [Vec<TokenLogprobs>; 2] {
    let mut engine = engine(model, 2, max_step_tokens);
    let neighbour = engine.admit(support::request(tokens(9, 12), 20, sampled(9))).unwrap();
    let id = engine.admit(request).unwrap();
    let mut found = [Vec::new(), Vec::new()];
    while !engine.is_idle() {
        for Progress { sequence, token, logprobs, prompt_logprobs, .. } in engine.step() {
            if sequence == neighbour {
                assert!(logprobs.is_none() && prompt_logprobs.is_empty(), "not asked for");
                continue;
            }
            assert_eq!(sequence, id);
            assert_eq!(logprobs.as_ref().map(|logprobs| logprobs.token), token);
            found[0].extend(prompt_logprobs);
            found[1].extend(logprobs);
        }
    }
    found
}

#[test]
fn logprobs_are_those_of_one_pass_over_the_whole_text() {
    for (name, model) in models() {
        let request = request(tokens(4, 23), 9, sampled(4));
        let text = [&request.prompt[..], &alone(&model, request.clone()).tokens].concat();
        let expected = expected(&model, &text);
        for max_step_tokens in [2, 7, 100] {
            let asked = Request { logprobs: Some(3), prompt_logprobs: Some(2), ..request.clone() };
            let [prompt, new] = run(&model, asked, max_step_tokens);
            assert_eq!((prompt.len(), new.len()), (22, 9), "{name}");
            for ((row, token), found) in expected.iter().zip(&text[1..]).zip(prompt.iter().chain(&new)) {
                assert_eq!(found.token, *token, "{name}: log-probabilities change no token");
                // Sums of f32 in another order differ by some 1e-6, and gates double it at every
                // recursion: 1.3e-5 was seen with expert choice and hybrid sharing.
                let difference = (f64::from(found.logprob) - row[*token as usize]).abs();
                assert!(difference < 1e-4, "{name}: {difference} {found:?}");
                let mut order: Vec<u32> = (0..row.len() as u32).collect();
                order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
                let top: Vec<u32> = found.top.iter().map(|(token, _)| *token).collect();
                assert_eq!(top, order[..top.len()], "{name}");
            }
            assert!(prompt.iter().all(|found| found.top.len() == 2) && new.iter().all(|found| found.top.len() == 3));
        }
    }
}

#[test]
fn a_greedy_token_has_the_largest_logprob_of_its_position() {
    let request = Request { logprobs: Some(1), ..request(tokens(1, 5), 8, Sampling::default()) };
    let [prompt, new] = run(&plain(), request, 8);
    assert_eq!((prompt.len(), new.len()), (0, 8));
    assert!(new.iter().all(|found| found.top == [(found.token, found.logprob)]), "{new:?}");
}

#[test]
fn a_prompt_is_scored_without_a_new_token_up_to_the_whole_context() {
    let model = plain();
    let score = Request { prompt_logprobs: Some(0), ..request(tokens(2, CONTEXT), 0, Sampling::default()) };
    let [prompt, new] = run(&model, score.clone(), 10);
    assert_eq!((prompt.len(), new.len()), (CONTEXT - 1, 0));
    let text = alone(&model, score.clone());
    assert_eq!((text.tokens.len(), text.finish), (0, Some(FinishReason::MaxNewTokens)));
    let mut engine = engine(&model, 1, 8);
    let error = engine.admit(Request { prompt_logprobs: None, ..score }).unwrap_err().to_string();
    assert!(error.starts_with("`max_new_tokens` is `0`, expected at least 1\nhint: "), "{error}");
    let prompt = tokens(2, CONTEXT + 1);
    let stop = StopConditions { max_new_tokens: Some(0), ..StopConditions::default() };
    let error = engine.admit(Request { prompt, stop, prompt_logprobs: Some(0), ..Request::default() }).unwrap_err();
    assert_eq!(error, EngineError::TooLong { prompt_tokens: CONTEXT + 1, new_tokens: 0, context: CONTEXT });
}

#[test]
fn a_paused_sequence_waits_and_goes_on_as_if_it_had_not() {
    for (name, model) in models() {
        let requests = [request(tokens(1, 9), 12, sampled(1)), request(tokens(2, 14), 9, Sampling::default())];
        let mut engine = engine(&model, 2, 6);
        let ids = requests.clone().map(|request| engine.admit(request).unwrap());
        let mut texts = Texts::default();
        let mut pauses = 0;
        // In turns: nobody, the first, the second, both.
        for round in 0usize.. {
            if engine.is_idle() {
                break;
            }
            let paused = [round & 1 == 1, round & 2 == 2];
            for (id, paused) in ids.iter().zip(paused) {
                if paused {
                    pauses += usize::from(engine.pause(*id));
                } else {
                    engine.resume(*id);
                }
            }
            let progress = engine.step();
            let found = |id| progress.iter().any(|progress| progress.sequence == id);
            assert!(ids.iter().zip(paused).all(|(id, paused)| !(paused && found(*id))), "{name}");
            texts.add(progress);
        }
        assert!(pauses > 4, "{name}");
        for (id, request) in ids.iter().zip(requests) {
            assert_eq!(texts.get(*id), alone(&model, request), "{name}");
            assert!(!engine.pause(*id) && !engine.resume(*id), "it has ended");
        }
    }
}
