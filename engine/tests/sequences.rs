//! Life of a sequence: stop conditions, forced tokens, recursion counts, slots and their memory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use retie_engine::{Engine, EngineError, EngineOptions, FinishReason, Progress, Request, Sampling, StopConditions};
use retie_testing::{CONTEXT, EOS, VOCAB_SIZE, overflowing_model, tiny_llama};
use support::{Texts, alone, engine, models, plain, request, routed, sampled, tokens};

#[test]
fn a_sequence_ends_at_the_first_stop_condition() {
    let model = plain();
    let greedy = |new| request(tokens(4, 6), new, Sampling::default());
    let text = alone(&model, greedy(12));
    assert_eq!((text.tokens.len(), text.finish), (12, Some(FinishReason::MaxNewTokens)));
    // A position whose token occurs there for the first time, so that no earlier position stops.
    let at = (4..12).find(|at| !text.tokens[..*at].contains(&text.tokens[*at])).unwrap();
    let stopped = |stop: StopConditions| {
        let request = Request { stop: StopConditions { max_new_tokens: Some(12), ..stop }, ..greedy(12) };
        alone(&model, request)
    };
    let eos = stopped(StopConditions { eos_token_ids: vec![text.tokens[at]], ..StopConditions::default() });
    assert_eq!((&eos.tokens[..], eos.finish), (&text.tokens[..=at], Some(FinishReason::EndOfText)));
    let sequences = vec![vec![text.tokens[at], 60, 60], text.tokens[at - 2..=at].to_vec()];
    let sequence = stopped(StopConditions { sequences, ..StopConditions::default() });
    assert_eq!((&sequence.tokens[..], sequence.finish), (&text.tokens[..=at], Some(FinishReason::StopSequence)));
    let stop = StopConditions::default();
    let full = alone(&model, Request { stop, ..greedy(12) });
    assert_eq!((full.tokens.len(), full.finish), (CONTEXT - 6, Some(FinishReason::ContextLength)));
    assert_eq!(full.tokens[..12], text.tokens);
}

#[test]
fn the_eos_tokens_of_the_model_are_a_stop_condition() {
    let model = plain();
    let stop = StopConditions::for_model(model.config(), Some(5));
    assert_eq!((stop.eos_token_ids.as_slice(), stop.max_new_tokens), (&[EOS][..], Some(5)));
}

#[test]
fn tokens_continue_what_was_generated_before_them() {
    for (name, model) in models() {
        let whole = alone(&model, request(tokens(8, 9), 14, Sampling::default())).tokens;
        for read in [1, 5, 13] {
            let prompt = [&tokens(8, 9)[..], &whole[..read]].concat();
            let rest = alone(&model, request(prompt, 14 - read, Sampling::default())).tokens;
            assert_eq!(rest, whole[read..], "{name}");
        }
    }
}

#[test]
fn later_tokens_change_nothing_before_them() {
    for (name, model) in models() {
        let counts = |last: u32| {
            let forced = [&tokens(2, 6)[..], &[last]].concat();
            let request = request(tokens(6, 11), 8, sampled(1));
            alone(&model, Request { forced, recursion_counts: true, ..request }).recursion_counts
        };
        let [first, second] = [3, 50].map(counts);
        assert_eq!((first.len(), &first[..17]), (19, &second[..17]), "{name}");
    }
}

#[test]
fn forced_tokens_come_before_sampled_ones() {
    let model = routed();
    let text = alone(&model, request(tokens(5, 4), 10, Sampling::default()));
    let forced = text.tokens[..6].to_vec();
    let request = request(tokens(5, 4), 10, Sampling::default());
    assert_eq!(alone(&model, Request { forced: forced.clone(), ..request.clone() }), text);
    let other = alone(&model, Request { forced: vec![(forced[0] + 1) % 60], ..request });
    assert_eq!(other.tokens[0], (forced[0] + 1) % 60);
}

#[test]
fn recursion_counts_are_those_of_every_token() {
    for (name, model) in models() {
        let request = Request { recursion_counts: true, ..request(tokens(7, 10), 6, sampled(7)) };
        let text = alone(&model, request.clone());
        assert_eq!((text.tokens.len(), text.recursion_counts.len()), (6, 16), "{name}");
        // Recursion counts of the same tokens in one pass.
        let prompt = [&request.prompt[..], &text.tokens].concat();
        let whole = alone(&model, Request { prompt, ..support::request(Vec::new(), 1, sampled(0)) });
        assert_eq!(whole.recursion_counts, [0usize; 0], "not asked for");
        let prompt = [&request.prompt[..], &text.tokens].concat();
        let asked = Request { prompt, recursion_counts: true, ..support::request(Vec::new(), 1, sampled(0)) };
        assert_eq!(alone(&model, asked).recursion_counts[..16], text.recursion_counts, "{name}");
        let distinct = text.recursion_counts.iter().collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!(distinct > 1, model.router().is_some(), "{name}: {:?}", text.recursion_counts);
    }
}

#[test]
fn a_slot_is_used_again_and_its_past_forgotten() {
    for (name, model) in models() {
        let mut engine = engine(&model, 1, CONTEXT);
        let mut texts = Texts::default();
        for seed in 0..4 {
            let request = request(tokens(seed, 20 - 4 * seed), 5, sampled(seed as u64));
            let id = engine.admit(request.clone()).unwrap();
            if seed == 1 {
                engine.step();
                assert!(engine.evict(id) && !engine.evict(id));
                continue;
            }
            texts.finish(&mut engine);
            assert_eq!(texts.get(id), alone(&model, request), "{name}, sequence {seed}");
            assert!(!engine.evict(id), "it has ended");
        }
    }
}

#[test]
fn the_cache_of_a_thousand_sequences_is_that_of_the_first_few() {
    for model in [plain(), routed()] {
        let mut engine = engine(&model, 3, 64);
        let mut bytes = Vec::new();
        for i in 0..1000 {
            while engine.num_free_slots() == 0 {
                engine.step();
            }
            engine.admit(request(tokens(i % 9, 1 + i % 9), 1 + i % 5, Sampling::default())).unwrap();
            bytes.push(engine.cache_bytes());
        }
        // Admissions repeat every 45 times; slots take turns.
        assert_eq!(bytes[300], bytes[999]);
        // Bound: keys and values of six depths, two heads of four elements, in f32.
        assert!(bytes[999] <= 3 * CONTEXT * 6 * 2 * 2 * 4 * 4);
    }
}

#[test]
fn an_idle_engine_does_nothing() {
    let mut engine = engine(&plain(), 2, 8);
    assert!(engine.is_idle() && engine.step().is_empty());
}

#[test]
fn wrong_requests_are_refused_and_cost_no_slot() {
    let mut engine = engine(&plain(), 1, 8);
    let good = request(tokens(0, 10), 4, Sampling::default());
    let refused = |engine: &mut Engine, request: Request| engine.admit(request).unwrap_err();
    let prompt = |prompt| Request { prompt, ..good.clone() };
    let stop = |stop| Request { stop, ..good.clone() };
    assert_eq!(refused(&mut engine, prompt(Vec::new())), EngineError::EmptyPrompt);
    let token = VOCAB_SIZE as u32;
    let unknown = EngineError::UnknownToken { token, vocab_size: VOCAB_SIZE };
    assert_eq!(refused(&mut engine, prompt(vec![1, token])), unknown);
    assert_eq!(refused(&mut engine, Request { forced: vec![token], ..good.clone() }), unknown);
    let error = refused(&mut engine, prompt(tokens(0, 61)));
    assert_eq!(error, EngineError::TooLong { prompt_tokens: 61, new_tokens: 4, context: CONTEXT });
    assert_eq!(
        error.to_string(),
        "a prompt of 61 tokens and 4 new ones do not fit the context of 64\nhint: shorten the prompt or ask for fewer new tokens"
    );
    let sequences = vec![vec![1], Vec::new()];
    let error = refused(&mut engine, stop(StopConditions { sequences, ..StopConditions::default() }));
    assert_eq!(error, EngineError::EmptyStopSequence);
    let error = refused(&mut engine, stop(StopConditions { max_new_tokens: Some(0), ..StopConditions::default() }));
    assert!(error.to_string().starts_with("`max_new_tokens` is `0`, expected at least 1\nhint: "));
    let sampling = Sampling { top_p: 2.0, ..Sampling::default() };
    let error = refused(&mut engine, Request { sampling, ..good.clone() });
    assert!(error.to_string().starts_with("`top_p` is `2`, expected above 0, up to 1\nhint: "));
    engine.admit(good.clone()).unwrap();
    assert_eq!(refused(&mut engine, good), EngineError::NoFreeSlot { num_slots: 1 });
}

#[test]
fn options_out_of_range_are_refused() {
    let refused = |num_slots, context, max_step_tokens| {
        let error = Engine::new(plain(), EngineOptions { num_slots, context, max_step_tokens }).unwrap_err();
        error.to_string().lines().next().unwrap().to_owned()
    };
    assert_eq!(refused(0, 8, 8), "`num_slots` is `0`, expected at least 1");
    assert_eq!(refused(1, 65, 8), "`context` is `65`, expected 1 to 64, the context of the model");
    assert_eq!(refused(4, 8, 3), "`max_step_tokens` is `3`, expected at least 4, one for each slot");
}

#[test]
fn a_sequence_whose_logits_are_no_numbers_fails_and_the_others_go_on() {
    let model = overflowing_model(&tiny_llama());
    let mut engine = engine(&model, 2, CONTEXT);
    let forced = Request { forced: tokens(2, 4), ..request(tokens(1, 3), 4, Sampling::default()) };
    let drawn = engine.admit(request(tokens(1, 3), 4, sampled(1))).unwrap();
    let forced = engine.admit(forced).unwrap();
    let first = engine.step();
    let of = |id, progress: &[Progress]| progress.iter().find(|progress| progress.sequence == id).cloned().unwrap();
    let failed = of(drawn, &first);
    assert_eq!((failed.token, failed.finish), (None, None));
    let error = failed.failed.unwrap();
    assert!(matches!(error, EngineError::LogitsNotFinite { position: 3, .. }), "{error}");
    assert_eq!(engine.num_free_slots(), 1);
    let mut finish = of(forced, &first).finish;
    while !engine.is_idle() {
        let progress = of(forced, &engine.step());
        assert_eq!(progress.failed, None);
        finish = progress.finish;
    }
    assert_eq!(finish, Some(FinishReason::MaxNewTokens));
    let scored = Request { prompt_logprobs: Some(0), ..request(tokens(1, 3), 0, Sampling::default()) };
    engine.admit(scored).unwrap();
    let error = engine.step().remove(0).failed.unwrap();
    assert!(matches!(error, EngineError::LogitsNotFinite { position: 1, .. }), "{error}");
    assert!(engine.is_idle());
}
