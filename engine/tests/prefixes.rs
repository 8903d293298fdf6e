//! Prefix reuse: sequences that begin as others do have the tokens that they have alone, and read
//! fewer. Memory stays what it is, every sequence ends, and no slot is lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use proptest::prelude::*;
use retie_config::{ExitRuleKind, Init, LoraConfig, RecursionConfig, Sharing, SkippedKv};
use retie_engine::{
    Engine, EngineOptions, ExitOptions, ExitTrace, PrefixCounts, Request, Sampling, Scheduler, SequenceId,
    SpeculationOptions,
};
use retie_model::{CausalLm, ExitRule};
use retie_testing::{CONTEXT, random_model};
use std::collections::{BTreeMap, VecDeque};
use support::{Texts, alone, models, request, routed, sampled, tokens};

fn recursive() -> CausalLm {
    random_model(Some(RecursionConfig {
        prelude: Some(2),
        coda: Some(1),
        lora: Some(LoraConfig::uniform(2)),
        ..RecursionConfig::new(3, Sharing::Cycle, Init::Stepwise)
    }))
}

fn engine(model: &CausalLm, num_slots: usize, max_step_tokens: usize) -> Engine {
    support::engine(model, num_slots, max_step_tokens).with_prefix_reuse()
}

fn run(engine: &mut Engine, request: &Request) -> Vec<u32> {
    let mut texts = Texts::default();
    let id = engine.admit(request.clone()).unwrap();
    texts.finish(engine);
    texts.get(id).tokens
}

fn reused(engine: &Engine) -> u64 {
    engine.prefix_counts().unwrap().reused
}

#[test]
fn a_conversation_reads_only_what_is_new_with_every_kind_of_cache() {
    for (name, model) in models() {
        let mut engine = engine(&model, 2, 16);
        let bytes = engine.cache_bytes();
        let mut prompt = tokens(3, 20);
        let mut read = 0;
        for turn in 0..3 {
            let request = request(prompt.clone(), 6, if turn == 1 { sampled(5) } else { Sampling::default() });
            let expected = alone(&model, request.clone()).tokens;
            assert_eq!(run(&mut engine, &request), expected, "{name}, turn {turn}");
            // All that was read before, less the last new token, which was not read.
            assert_eq!(reused(&engine), read, "{name}, turn {turn}");
            read += (prompt.len() + expected.len() - 1) as u64;
            prompt.extend(expected);
            prompt.extend(tokens(turn + 7, 4));
        }
        // Recursions that hold a part of the tokens get room on demand.
        assert!(engine.cache_bytes() == bytes || name.contains("choice"), "{name}");
        assert_eq!(engine.num_free_slots(), 2, "{name}");
    }
}

#[test]
fn sequences_share_a_long_beginning_while_they_run() {
    let model = recursive();
    let start = tokens(1, 32);
    let with = |seed: usize| [&start[..], &tokens(seed, 5)].concat();
    let mut engine = engine(&model, 3, 64);
    let first = engine.admit(request(with(4), 8, Sampling::default())).unwrap();
    let mut texts = Texts::default();
    (0..2).for_each(|_| texts.add(engine.step()));
    let others = [5, 6].map(|seed| engine.admit(request(with(seed), 8, sampled(seed as u64))).unwrap());
    assert_eq!(others.map(|id| engine.num_reused(id)), [32, 32]);
    assert_eq!(engine.num_unread_prompt_tokens(), 10);
    texts.finish(&mut engine);
    assert_eq!(texts.get(first), alone(&model, request(with(4), 8, Sampling::default())));
    for (seed, id) in [5, 6].into_iter().zip(others) {
        assert_eq!(texts.get(id), alone(&model, request(with(seed), 8, sampled(seed as u64))), "{seed}");
    }
    assert_eq!(engine.prefix_counts(), Some(PrefixCounts { asked: 3 * 37, reused: 64 }));
}

#[test]
fn other_exits_another_salt_and_what_reports_on_the_prompt_reuse_nothing() {
    let model = recursive();
    let rule = || Some(ExitRule::new(ExitRuleKind::Change, &[], &model.device()));
    let exits = ExitOptions { rule: rule(), kv: SkippedKv::Latest };
    let mut engine = engine(&model, 9, 64).with_exits(exits).unwrap();
    let plain = request(tokens(2, 24), 3, Sampling::default());
    run(&mut engine, &plain);
    let changes: [fn(&mut Request); 7] = [
        |request| request.exit_threshold = Some(0.3),
        |request| request.max_recursions = Some(1),
        |request| request.salt = "another".to_owned(),
        |request| request.prompt_logprobs = Some(0),
        |request| request.recursion_counts = true,
        |request| request.prompt.truncate(16),
        |request| request.prompt[3] += 1,
    ];
    for change in changes {
        let mut other = plain.clone();
        change(&mut other);
        run(&mut engine, &other);
        assert_eq!(reused(&engine), 0, "{other:?}");
    }
    run(&mut engine, &plain);
    assert_eq!(reused(&engine), 23, "all but the last token, which is read for its logits");
    // The sequence with the salt is there, too.
    run(&mut engine, &Request { salt: "another".to_owned(), ..plain });
    assert_eq!(reused(&engine), 46);
}

#[test]
fn forced_exits_leave_prompts_to_be_reused_and_speculation_goes_with_it() {
    let model = recursive();
    let prompt = tokens(6, 20);
    let first = request(prompt.clone(), 8, Sampling::default());
    let trace = || ExitTrace::new(vec![1, 2]).unwrap();
    let forced = |engine: Engine| engine.with_scheduler(Scheduler::Depthwise, Some(trace())).unwrap();
    let mut with = forced(engine(&model, 1, 64));
    let text = run(&mut with, &first);
    let next = request([&prompt[..], &text, &tokens(8, 3)].concat(), 4, Sampling::default());
    let mut without = forced(support::engine(&model, 1, 64));
    run(&mut without, &first);
    assert_eq!(run(&mut with, &next), run(&mut without, &next));
    assert_eq!(reused(&with), 20, "new tokens left early, as tokens of a prompt do not");

    let drafts = SpeculationOptions { num_drafts: Some(3), ..SpeculationOptions::default() };
    let mut drafting = engine(&model, 1, 64).with_speculation(drafts).unwrap();
    let text = run(&mut drafting, &first);
    assert_eq!(text, alone(&model, first).tokens);
    let next = request([&prompt[..], &text, &tokens(8, 3)].concat(), 8, Sampling::default());
    assert_eq!(run(&mut drafting, &next), alone(&model, next).tokens);
    assert_eq!(reused(&drafting), 27);
}

/// What happens to an engine.
#[derive(Clone, Debug)]
enum Action {
    /// A request whose prompt is the beginning of a text, and a few tokens of its own.
    Ask {
        text: usize,
        common: usize,
        own: usize,
        new: usize,
        exits: usize,
    },
    Step,
    Evict(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let ask = (0..2usize, 0..40usize, 1..6usize, 1..6usize, 0..3usize);
    let ask = ask.prop_map(|(text, common, own, new, exits)| Action::Ask { text, common, own, new, exits });
    prop_oneof![3 => ask, 5 => Just(Action::Step), 1 => (0..4usize).prop_map(Action::Evict)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_of_requests_has_its_tokens_within_the_same_memory(
        actions in prop::collection::vec(action(), 1..24),
        (kv, scheduler) in (0..4usize, 0..3usize),
        (num_slots, budget) in (1..4usize, 4..40usize),
    ) {
        let model = recursive();
        let kv = [SkippedKv::Latest, SkippedKv::Skip, SkippedKv::Propagate, SkippedKv::Recompute][kv];
        let rule = Some(ExitRule::new(ExitRuleKind::Change, &[], &model.device()));
        let options = ExitOptions { rule, kv };
        let sized = |num_slots, max_step_tokens| {
            let sizes = EngineOptions { num_slots, context: CONTEXT, max_step_tokens };
            Engine::new(model.clone(), sizes).unwrap().with_exits(options.clone()).unwrap()
        };
        let mut engine = sized(num_slots, budget).with_scheduler(Scheduler::ALL[scheduler], None).unwrap().with_prefix_reuse();
        let bytes = engine.cache_bytes();
        let (mut texts, mut waiting, mut asked) = (Texts::default(), VecDeque::new(), BTreeMap::new());
        let mut admit = |engine: &mut Engine, waiting: &mut VecDeque<Request>| {
            while engine.num_free_slots() > 0 {
                let Some(request) = waiting.pop_front() else { return };
                asked.insert(engine.admit(request.clone()).unwrap(), request);
            }
        };
        let mut evicted: Vec<SequenceId> = Vec::new();
        for action in actions {
            match action {
                Action::Ask { text, common, own, new, exits } => {
                    let prompt = [&tokens(text, 40)[..common], &tokens(common + own, own)].concat();
                    let exit_threshold = [None, Some(0.3), Some(-1.0)][exits];
                    waiting.push_back(Request { exit_threshold, ..request(prompt, new, Sampling::default()) });
                }
                Action::Step => texts.add(engine.step()),
                Action::Evict(at) => {
                    let ids: Vec<SequenceId> = texts.active().collect();
                    if let Some(id) = ids.get(at).filter(|id| engine.evict(**id)) {
                        evicted.push(*id);
                    }
                }
            }
            admit(&mut engine, &mut waiting);
        }
        // At worst one token at a time, recursion by recursion.
        let mut left = 40 * 50 * 3;
        while !engine.is_idle() || !waiting.is_empty() {
            texts.add(engine.step());
            admit(&mut engine, &mut waiting);
            left -= 1;
            prop_assert!(left > 0, "a sequence starves");
        }
        prop_assert_eq!(engine.num_free_slots(), num_slots);
        if kv != SkippedKv::Skip {
            prop_assert_eq!(engine.cache_bytes(), bytes);
        }
        for (id, request) in asked {
            let found = texts.get(id);
            let mut alone = sized(1, CONTEXT);
            let expected = run(&mut alone, &request);
            if evicted.contains(&id) {
                prop_assert!(expected.starts_with(&found.tokens), "{:?}", request);
            } else {
                prop_assert_eq!(&found.tokens, &expected, "{:?}, {}", request, kv);
            }
        }
    }
}

#[test]
fn a_routed_model_reuses_what_one_slot_holds() {
    let model = routed();
    let mut engine = engine(&model, 2, 64);
    let first = request(tokens(1, 24), 4, Sampling::default());
    run(&mut engine, &first);
    // Cut back to the common beginning, in its place.
    let second = request([&tokens(1, 20)[..], &tokens(9, 6)].concat(), 4, Sampling::default());
    let found = run(&mut engine, &second);
    assert_eq!(found, alone(&model, second).tokens);
    assert_eq!(reused(&engine), 20);
}
