//! A KV cache in blocks that are too few: sequences give up theirs and read their tokens again, and
//! have the tokens that they have alone, in a cache with rows for each slot. Nothing is reported
//! twice, nobody starves, and no block is lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use proptest::prelude::*;
use retie_config::{ExitRuleKind, Init, KvSharing, LoraConfig, RecursionConfig, RouterConfig, Sharing, SkippedKv};
use retie_engine::{
    Engine, EngineError, EngineOptions, ExitOptions, ExitTrace, KvUsage, Progress, Request, Sampling, Scheduler,
    SequenceId, SpeculationOptions,
};
use retie_model::{CausalLm, ExitRule, KvBlocks};
use retie_testing::{CONTEXT, random_model};
use std::collections::{BTreeMap, VecDeque};
use support::{Texts, expert_choice, models, request, sampled, token_choice, tokens};

/// Tokens of a block: sequences of up to 64 tokens have up to 16.
const BLOCK: usize = 4;

fn recursive(router: Option<RouterConfig>) -> CausalLm {
    random_model(Some(RecursionConfig {
        prelude: Some(2),
        coda: Some(1),
        lora: Some(LoraConfig::uniform(2)),
        router,
        ..RecursionConfig::new(3, Sharing::Cycle, Init::Stepwise)
    }))
}

fn engine(model: &CausalLm, (num_slots, max_step_tokens): (usize, usize), count: usize) -> Engine {
    let engine = support::engine(model, num_slots, max_step_tokens);
    engine.with_kv_blocks(KvBlocks { tokens: BLOCK, count }).unwrap()
}

/// All that is reported about sequences.
#[derive(Debug, Default)]
struct Reports {
    texts: Texts,
    prompt_logprobs: BTreeMap<SequenceId, Vec<(u32, f32)>>,
    logprobs: BTreeMap<SequenceId, Vec<u32>>,
}

impl Reports {
    fn add(&mut self, progress: Vec<Progress>) {
        for progress in &progress {
            let of_prompt = progress.prompt_logprobs.iter().map(|found| (found.token, found.logprob));
            self.prompt_logprobs.entry(progress.sequence).or_default().extend(of_prompt);
            let new = progress.logprobs.iter().map(|found| found.token);
            self.logprobs.entry(progress.sequence).or_default().extend(new);
        }
        self.texts.add(progress);
    }
}

/// Runs all requests, in their order, to their end.
fn run(engine: &mut Engine, requests: &[Request]) -> (Vec<SequenceId>, Reports) {
    let (mut reports, mut ids) = (Reports::default(), Vec::new());
    let mut waiting: VecDeque<&Request> = requests.iter().collect();
    // At worst one token after the other, and each read once more for every other one.
    let mut left = 100 * CONTEXT * requests.len();
    while !waiting.is_empty() || !engine.is_idle() {
        while let Some(request) = waiting.front().filter(|request| engine.has_room_for(request)) {
            ids.push(engine.admit((*request).clone()).unwrap());
            waiting.pop_front();
        }
        reports.add(engine.step());
        left -= 1;
        assert!(left > 0, "a sequence starves");
    }
    (ids, reports)
}

fn usage(engine: &Engine) -> KvUsage {
    engine.kv_usage().unwrap()
}

fn assert_no_block_is_lost(engine: &Engine) {
    let KvUsage { blocks, occupied, held, free, .. } = usage(engine);
    assert_eq!((occupied, held + free), (0, blocks));
    assert_eq!(engine.num_preempted(), 0);
}

/// Requests of several lengths, of which some ask for all that is reported.
fn requests() -> Vec<Request> {
    let sampling = |seed: u64| if seed.is_multiple_of(2) { Sampling::default() } else { sampled(seed) };
    [(0, 7, 30), (1, 9, 40), (2, 1, 44), (3, 19, 35), (4, 12, 8), (5, 30, 30), (6, 25, 20)]
        .map(|(seed, prompt, new)| Request {
            recursion_counts: seed % 3 == 0,
            logprobs: (seed % 2 == 0).then_some(1),
            prompt_logprobs: (seed % 4 == 3).then_some(0),
            ..request(tokens(seed, prompt), new, sampling(seed as u64))
        })
        .to_vec()
}

#[test]
fn preempted_sequences_have_the_tokens_and_reports_of_those_that_run_alone_in_every_kind_of_cache() {
    for (name, model) in models() {
        let alone: Vec<_> = requests()
            .into_iter()
            .map(|request| {
                let mut engine = support::engine(&model, 1, CONTEXT);
                let (ids, reports) = run(&mut engine, &[request]);
                (reports.texts.get(ids[0]), reports.prompt_logprobs[&ids[0]].clone(), reports.logprobs[&ids[0]].clone())
            })
            .collect();
        for (scheduler, holds, sizes, count) in [
            (Scheduler::Full, false, (4, 40), 20),
            (Scheduler::Full, true, (4, 40), 20),
            (Scheduler::Lockstep, true, (7, 9), 24),
            (Scheduler::Depthwise, true, (4, 40), 20),
            (Scheduler::Depthwise, true, (3, 3), 48),
        ] {
            let mut engine = engine(&model, sizes, count).with_scheduler(scheduler, None).unwrap();
            if holds {
                engine = engine.with_prefix_reuse();
            }
            let (ids, reports) = run(&mut engine, &requests());
            let case = format!("{name}, {scheduler}, {sizes:?}, {count} blocks");
            for ((id, (text, prompt_logprobs, logprobs)), request) in ids.iter().zip(&alone).zip(requests()) {
                assert_eq!(reports.texts.get(*id), *text, "{case}");
                assert_eq!(reports.logprobs[id], *logprobs, "{case}");
                let found = &reports.prompt_logprobs[id];
                let scored = if request.prompt_logprobs.is_some() { request.prompt.len() - 1 } else { 0 };
                assert_eq!(found.len(), scored, "{case}");
                for ((token, found), (expected_token, expected)) in found.iter().zip(prompt_logprobs) {
                    // The sums of a pass depend on its number of rows: some roundings of f32.
                    assert!(token == expected_token && (found - expected).abs() < 1e-4, "{case}: {found} {expected}");
                }
            }
            assert_eq!(usage(&engine).preemptions > 0, count < 48, "{case}");
            assert_no_block_is_lost(&engine);
        }
    }
}

#[test]
fn forced_exits_of_tokens_that_are_read_again_are_those_of_the_first_time() {
    for (name, model) in [("recursive", recursive(None)), ("routed", recursive(Some(expert_choice())))] {
        let trace = || Some(ExitTrace::new(vec![1, 3, 2, 1, 1, 2]).unwrap());
        let of = |engine: Engine, scheduler| engine.with_scheduler(scheduler, trace()).unwrap();
        let (ids, expected) = run(&mut of(support::engine(&model, 1, CONTEXT), Scheduler::Lockstep), &requests());
        for scheduler in [Scheduler::Lockstep, Scheduler::Depthwise] {
            for holds in [false, true] {
                let mut engine = of(engine(&model, (4, 20), 20), scheduler);
                if holds {
                    engine = engine.with_prefix_reuse();
                }
                let (found_ids, found) = run(&mut engine, &requests());
                assert_eq!(found_ids, ids);
                for id in &ids {
                    assert_eq!(found.texts.get(*id), expected.texts.get(*id), "{name}, {scheduler}");
                }
                assert!(usage(&engine).preemptions > 0, "{name}, {scheduler}");
                assert_no_block_is_lost(&engine);
            }
        }
    }
}

#[test]
fn the_oldest_sequence_goes_on_and_the_youngest_gives_up_its_blocks() {
    let model = recursive(None);
    let mut engine = engine(&model, (3, 64), 17);
    let ids = [0, 1, 2].map(|seed| engine.admit(request(tokens(seed, 15), 40, Sampling::default())).unwrap());
    // Four blocks each; the fifth one of the first two is there.
    assert!(!engine.has_room_for(&request(tokens(9, 3), 1, Sampling::default())), "a slot is missing");
    let mut reports = Reports::default();
    let mut progressed = |engine: &mut Engine| {
        let progress = engine.step();
        let found: Vec<SequenceId> = progress.iter().map(|progress| progress.sequence).collect();
        reports.add(progress);
        found
    };
    assert_eq!(progressed(&mut engine), ids);
    assert_eq!((progressed(&mut engine), usage(&engine).occupied), (ids.to_vec(), 12));
    assert_eq!((progressed(&mut engine), usage(&engine).occupied), (ids.to_vec(), 15));
    while usage(&engine).preemptions == 0 {
        assert!(progressed(&mut engine).contains(&ids[0]));
    }
    assert_eq!((engine.num_preempted(), engine.num_free_slots()), (1, 1));
    assert!(!engine.has_room_for(&request(vec![1], 1, Sampling::default())), "the preempted one is first");
    assert_eq!(
        engine.admit(request(vec![1], 1, Sampling::default())).unwrap_err(),
        EngineError::NoFreeBlocks { needed: 1, available: 0 }
    );
    assert!(!progressed(&mut engine).contains(&ids[2]));
    // It can be paused, resumed and ended as others can.
    assert!(engine.pause(ids[2]) && engine.resume(ids[2]) && engine.evict(ids[2]) && !engine.evict(ids[2]));
    while !engine.is_idle() {
        progressed(&mut engine);
    }
    assert_no_block_is_lost(&engine);
}

#[test]
fn a_paused_sequence_is_preempted_first_and_keeps_nobody_waiting() {
    let model = recursive(None);
    let all: Vec<Request> = (0..3).map(|seed| request(tokens(seed, 15), 40, Sampling::default())).collect();
    let mut engine = engine(&model, (3, 64), 20).with_prefix_reuse();
    let ids: Vec<SequenceId> = all.iter().map(|request| engine.admit(request.clone()).unwrap()).collect();
    let mut reports = Reports::default();
    reports.add(engine.step());
    assert!(engine.pause(ids[0]));
    while engine.num_preempted() == 0 {
        reports.add(engine.step());
    }
    assert_eq!(engine.kv_usage().unwrap().preemptions, 1);
    while reports.texts.get(ids[1]).finish.is_none() || reports.texts.get(ids[2]).finish.is_none() {
        reports.add(engine.step());
    }
    assert_eq!(reports.texts.get(ids[0]).tokens.len(), 1);
    assert!(engine.step().is_empty() && engine.resume(ids[0]));
    while !engine.is_idle() {
        reports.add(engine.step());
    }
    for (id, request) in ids.iter().zip(all) {
        assert_eq!(reports.texts.get(*id), support::alone(&model, request));
    }
    assert_no_block_is_lost(&engine);
}

#[test]
fn speculation_crops_over_the_borders_of_blocks_and_takes_none_from_others() {
    let model = recursive(None);
    let requests: Vec<Request> = (0..3).map(|seed| request(tokens(seed, 9), 50, sampled(seed as u64))).collect();
    let expected: Vec<_> = requests.iter().map(|request| support::alone(&model, request.clone())).collect();
    for (tokens, count) in [(4, 17), (3, 22), (1, 64), (32, 2)] {
        let options = SpeculationOptions { num_drafts: Some(3), ..SpeculationOptions::default() };
        let mut engine = support::engine(&model, 2, 40).with_kv_blocks(KvBlocks { tokens, count }).unwrap();
        engine = engine.with_prefix_reuse().with_speculation(options).unwrap();
        let (ids, reports) = run(&mut engine, &requests);
        for (id, expected) in ids.iter().zip(&expected) {
            assert_eq!(reports.texts.get(*id), *expected, "blocks of {tokens}");
        }
        let counts = engine.speculation_counts().unwrap();
        assert!(counts.accepted > 0 && counts.accepted < counts.drafted, "{counts:?}");
        assert_no_block_is_lost(&engine);
    }
}

#[test]
fn sizes_that_cannot_hold_one_sequence_are_refused() {
    let sized = |tokens, count| support::engine(&recursive(None), 2, 40).with_kv_blocks(KvBlocks { tokens, count });
    let message =
        |found: Result<Engine, EngineError>| found.unwrap_err().to_string().lines().next().unwrap().to_owned();
    assert_eq!(
        message(sized(4, 15)),
        "`num_blocks` is `15`, expected at least 16 of 4 tokens, for a sequence of the context of 64"
    );
    assert_eq!(message(sized(0, 15)), "`block_tokens` is `0`, expected at least 1");
    let tokens = support::engine(&recursive(None), 2, 40).with_kv_tokens(63);
    assert_eq!(message(tokens), "`kv_tokens` is `63`, expected at least 64, a sequence of the whole context");
    let engine = support::engine(&recursive(None), 2, 40).with_kv_tokens(65).unwrap();
    assert_eq!(usage(&engine).blocks, 3);
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
    Pause(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let ask = (0..2usize, 0..40usize, 1..6usize, 1..18usize, 0..3usize);
    let ask = ask.prop_map(|(text, common, own, new, exits)| Action::Ask { text, common, own, new, exits });
    let (evict, pause) = ((0..4usize).prop_map(Action::Evict), (0..4usize).prop_map(Action::Pause));
    prop_oneof![4 => ask, 6 => Just(Action::Step), 1 => evict, 1 => pause]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_of_requests_has_its_tokens_within_any_number_of_blocks(
        actions in prop::collection::vec(action(), 1..30),
        // A policy for skipped recursions, or a router.
        (kv, scheduler) in (0..7usize, 0..3usize),
        (num_slots, budget, count) in (1..5usize, 5..40usize, 16..30usize),
    ) {
        let routed = [Some(expert_choice()), Some(token_choice())];
        let (model, kv) = match kv {
            0..4 => {
                let kv = [SkippedKv::Latest, SkippedKv::Skip, SkippedKv::Propagate, SkippedKv::Recompute][kv];
                (recursive(None), Some(kv))
            }
            4 => (random_model(Some(RecursionConfig {
                prelude: Some(2),
                coda: Some(1),
                kv_sharing: KvSharing::Hybrid,
                ..RecursionConfig::new(3, Sharing::Cycle, Init::Stepwise)
            })), None),
            router => (recursive(routed[router - 5].clone()), None),
        };
        let sized = |num_slots, max_step_tokens| {
            let sizes = EngineOptions { num_slots, context: CONTEXT, max_step_tokens };
            let engine = Engine::new(model.clone(), sizes).unwrap();
            match kv {
                Some(kv) => {
                    let rule = Some(ExitRule::new(ExitRuleKind::Change, &[], &model.device()));
                    engine.with_exits(ExitOptions { rule, kv }).unwrap()
                }
                None => engine,
            }
        };
        let mut engine = sized(num_slots, budget).with_scheduler(Scheduler::ALL[scheduler], None).unwrap();
        engine = engine.with_prefix_reuse().with_kv_blocks(KvBlocks { tokens: BLOCK, count }).unwrap();
        let bytes = engine.cache_bytes();
        let (mut texts, mut waiting, mut asked) = (Texts::default(), VecDeque::<Request>::new(), BTreeMap::new());
        let mut admit = |engine: &mut Engine, waiting: &mut VecDeque<Request>| {
            while waiting.front().is_some_and(|request| engine.has_room_for(request)) {
                let Some(request) = waiting.pop_front() else { return };
                asked.insert(engine.admit(request.clone()).unwrap(), request);
            }
        };
        let (mut evicted, mut paused): (Vec<SequenceId>, Vec<SequenceId>) = (Vec::new(), Vec::new());
        for action in actions {
            let ids: Vec<SequenceId> = texts.active().collect();
            match action {
                Action::Ask { text, common, own, new, exits } => {
                    let prompt = [&tokens(text, 40)[..common], &tokens(common + own, own)].concat();
                    let exit_threshold = [None, Some(0.3), Some(-1.0)][exits].filter(|_| kv.is_some());
                    waiting.push_back(Request { exit_threshold, ..request(prompt, new, Sampling::default()) });
                }
                Action::Step => texts.add(engine.step()),
                Action::Evict(at) => {
                    if let Some(id) = ids.get(at).filter(|id| engine.evict(**id)) {
                        evicted.push(*id);
                    }
                }
                Action::Pause(at) => paused.extend(ids.get(at).filter(|id| engine.pause(**id))),
            }
            admit(&mut engine, &mut waiting);
        }
        paused.into_iter().for_each(|id| _ = engine.resume(id));
        // At worst one token at a time, recursion by recursion.
        let mut left = 40 * 60 * 3 * 3;
        while !engine.is_idle() || !waiting.is_empty() {
            texts.add(engine.step());
            admit(&mut engine, &mut waiting);
            left -= 1;
            prop_assert!(left > 0, "a sequence starves");
        }
        assert_no_block_is_lost(&engine);
        // Recursions that hold a part of the tokens get blocks on demand.
        let grows = kv == Some(SkippedKv::Skip) || model.router().is_some();
        prop_assert!(engine.cache_bytes() == bytes || grows);
        for (id, request) in asked {
            let found = texts.get(id);
            let mut alone = sized(1, CONTEXT);
            let (ids, expected) = run(&mut alone, std::slice::from_ref(&request));
            let expected = expected.texts.get(ids[0]).tokens;
            if evicted.contains(&id) {
                prop_assert!(expected.starts_with(&found.tokens), "{:?}", request);
            } else {
                prop_assert_eq!(&found.tokens, &expected, "{:?}, {:?}", request, kv);
            }
        }
    }
}
