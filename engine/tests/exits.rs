//! Tokens that leave the loop early: the engine computes what one pass over the text does, whatever
//! the batch, with every rule and every policy for the keys and values that they did not make.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use burn::tensor::{Device, Int, Tensor};
use retie_config::{
    ExitProbe, ExitRuleKind, Init, KvSharing, LoraConfig, ModelConfig, RecursionConfig, Sharing, SkippedKv, steps_with,
};
use retie_engine::{Engine, EngineError, EngineOptions, ExitOptions, Request};
use retie_model::{CausalLm, ExitLimit, ExitRule, KvCache, NewTokens, RowExits, SelectionRule, kernels::Layout};
use retie_testing::{CONTEXT, RandomWeights, VOCAB_SIZE, differences, tiny_llama, values};
use support::{Text, Texts, expert_choice, request, sampled, token_choice, tokens};

/// Three recursions of a layer with LoRA, between prelude and `coda`.
fn model(coda: usize, change: impl FnOnce(&mut RecursionConfig)) -> CausalLm {
    let mut recursion = RecursionConfig {
        prelude: Some(3 - coda),
        coda: Some(coda),
        lora: Some(LoraConfig::uniform(2)),
        share_norms: false,
        ..RecursionConfig::new(3, Sharing::Cycle, Init::Stepwise)
    };
    change(&mut recursion);
    let config = ModelConfig { recursion: Some(recursion), ..tiny_llama() };
    CausalLm::load(&config, &RandomWeights::new(&config), &Device::flex()).unwrap()
}

fn rule(kind: ExitRuleKind) -> ExitRule {
    let weight = (0..16).map(|i| ((i * 7 % 5) as f32 - 2.0) * 0.4).collect();
    let probe = ExitProbe { weight, bias: 0.1 };
    ExitRule::new(kind, &[probe.clone(), probe], &Device::flex())
}

fn engine(model: &CausalLm, options: &ExitOptions, num_slots: usize, max_step_tokens: usize) -> Engine {
    let sizes = EngineOptions { num_slots, context: CONTEXT, max_step_tokens };
    Engine::new(model.clone(), sizes).unwrap().with_exits(options.clone()).unwrap()
}

fn run(mut engine: Engine, requests: &[Request]) -> Vec<Text> {
    let mut texts = Texts::default();
    let ids: Vec<_> = requests.iter().map(|request| engine.admit(request.clone()).unwrap()).collect();
    texts.finish(&mut engine);
    ids.into_iter().map(|id| texts.get(id)).collect()
}

/// Hidden states and recursion counts of one pass over `ids`, without a cache.
fn pass(model: &CausalLm, ids: &[u32], exits: &ExitOptions, limits: Vec<ExitLimit>) -> (Tensor<2>, Vec<usize>) {
    let rows: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let rows = Tensor::<1, Int>::from_ints(rows.as_slice(), &Device::flex());
    let forward = model.begin(rows, Layout::batch(1, ids.len()), SelectionRule::Causal);
    let (hidden, trace) = forward.with_exits(RowExits { rule: exits.rule.as_ref(), kv: exits.kv, limits }).finish();
    (hidden, trace.recursion_counts(ids.len()))
}

/// A threshold of `rule` that about half of the tokens of `ids` reach after a recursion.
fn median(model: &CausalLm, rule: &ExitRule, ids: &[u32]) -> f32 {
    quantile(model, rule, ids, 0.5)
}

/// A threshold of `rule` that about a `part` of the tokens of `ids` do not reach after a recursion.
fn quantile(model: &CausalLm, rule: &ExitRule, ids: &[u32], part: f64) -> f32 {
    let rows: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let rows = Tensor::<1, Int>::from_ints(rows.as_slice(), &Device::flex());
    let mut forward = model.begin(rows, Layout::batch(1, ids.len()), SelectionRule::Causal);
    let exits = model.share_map().exits().unwrap();
    forward.advance_to(model.share_map().loop_start());
    let before = forward.hidden().clone();
    forward.advance_to(exits.end(1));
    let mut numbers = rule.numbers(model, 1, [before, forward.hidden().clone()]);
    numbers.sort_by(f32::total_cmp);
    numbers[(part * numbers.len() as f64) as usize]
}

const POLICIES: [SkippedKv; 4] = [SkippedKv::Skip, SkippedKv::Latest, SkippedKv::Propagate, SkippedKv::Recompute];

fn models() -> Vec<(CausalLm, SkippedKv)> {
    let plain = model(1, |_| {});
    let mut all: Vec<_> = POLICIES.iter().map(|kv| (plain.clone(), *kv)).collect();
    let fused = model(1, |recursion| {
        recursion.steps = steps_with(&[], &["grouped_softmax:groups=2".parse().unwrap()], 3).unwrap();
    });
    all.extend(POLICIES[..3].iter().map(|kv| (fused.clone(), *kv)));
    all.push((model(1, |recursion| recursion.kv_sharing = KvSharing::Shared), SkippedKv::Shared));
    all
}

#[test]
fn decoding_is_one_pass_over_the_text_in_every_batch_with_every_policy() {
    for (model, kv) in models() {
        let options = ExitOptions { rule: Some(rule(ExitRuleKind::Change)), kv };
        let threshold = median(&model, options.rule.as_ref().unwrap(), &tokens(1, 40));
        let requests: Vec<Request> = (0..4)
            .map(|i| Request {
                recursion_counts: true,
                exit_threshold: [Some(threshold), None, Some(threshold), Some(threshold)][i],
                max_recursions: [None, Some(1), Some(2), None][i],
                ..request(tokens(i, 9 + 4 * i), 14, if i == 3 { sampled(3) } else { retie_engine::Sampling::default() })
            })
            .collect();
        let alone: Vec<Text> = requests
            .iter()
            .map(|one| run(engine(&model, &options, 1, CONTEXT), std::slice::from_ref(one)).remove(0))
            .collect();
        for (num_slots, budget) in [(4, 64), (4, 6), (2, 3)] {
            let mut found = run(engine(&model, &options, num_slots, budget), &requests[..num_slots]);
            found
                .iter_mut()
                .zip(&alone)
                .for_each(|(found, alone)| assert_eq!(found, alone, "{kv}, {num_slots} {budget}"));
        }
        for (request, text) in requests.iter().zip(&alone) {
            let ids = [&request.prompt[..], &text.tokens].concat();
            let limit = ExitLimit {
                threshold: request.exit_threshold.unwrap_or(f32::INFINITY),
                max_recursions: request.max_recursions.unwrap_or(usize::MAX),
            };
            let (hidden, counts) = pass(&model, &ids, &options, vec![limit; ids.len()]);
            assert_eq!(text.recursion_counts, counts, "{kv}");
            if request.sampling.temperature == 0.0 {
                let logits = values(model.logits(hidden));
                let best = |row: usize| {
                    let row = &logits[row * VOCAB_SIZE..][..VOCAB_SIZE];
                    (0..VOCAB_SIZE).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32
                };
                let start = request.prompt.len();
                let expected: Vec<u32> = (start..ids.len()).map(|row| best(row - 1)).collect();
                assert_eq!(text.tokens, expected, "{kv}");
            }
        }
        let mixed = &alone[0].recursion_counts;
        assert!(mixed.contains(&1) && mixed.iter().any(|count| *count > 1), "{kv}: {mixed:?}");
    }
}

#[test]
fn without_a_threshold_nothing_changes_and_one_recursion_is_the_first_exit() {
    for (model, kv) in models() {
        let options = ExitOptions { rule: Some(rule(ExitRuleKind::Probe)), kv };
        let request = request(tokens(2, 12), 20, retie_engine::Sampling::default());
        let plain = support::alone(&model, request.clone());
        let same = |change: fn(&mut Request)| {
            let mut request = request.clone();
            change(&mut request);
            run(engine(&model, &options, 1, CONTEXT), &[request]).remove(0)
        };
        assert_eq!(same(|_| {}), plain, "{kv}");
        assert_eq!(same(|request| request.max_recursions = Some(3)), plain, "{kv}");
        let first = same(|request| request.max_recursions = Some(1));
        let ids = [&request.prompt[..], &first.tokens].concat();
        let rows: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let rows = Tensor::<1, Int>::from_ints(rows.as_slice(), &Device::flex());
        let (expected, _) = model.begin(rows, Layout::batch(1, ids.len()), SelectionRule::Causal).exit_after(1);
        let limit = ExitLimit { max_recursions: 1, ..ExitLimit::NEVER };
        let (found, _) = pass(&model, &ids, &options, vec![limit; ids.len()]);
        assert_eq!(values(found), values(expected), "{kv}");
        assert_ne!(first.tokens, plain.tokens);
    }
}

#[test]
fn with_recompute_a_token_that_stays_has_the_state_of_the_whole_stack() {
    // No layer after the loop: its keys and values would be those of the exits.
    let model = model(0, |_| {});
    let ids = tokens(4, 20);
    let early = |row: usize| if row % 3 == 1 { usize::MAX } else { 1 + row % 2 };
    let limits: Vec<_> =
        (0..ids.len()).map(|row| ExitLimit { max_recursions: early(row), ..ExitLimit::NEVER }).collect();
    let whole = values(model.forward(retie_testing::ids(std::slice::from_ref(&ids), &Device::flex()), None));
    let distances = |kv| {
        let options = ExitOptions { rule: None, kv };
        let found = values(pass(&model, &ids, &options, limits.clone()).0);
        // The same token by token, with a cache.
        let mut cache = KvCache::for_exits(model.config(), 1, CONTEXT, &Device::flex(), kv);
        let slot = cache.admit().unwrap();
        let decoded: Vec<f32> = ids
            .iter()
            .zip(&limits)
            .flat_map(|(id, limit)| {
                let exits = RowExits { rule: None, kv, limits: vec![*limit] };
                let id = Tensor::<1, Int>::from_ints([*id as i32], &Device::flex());
                values(model.forward_exiting(id, &[NewTokens { slot, tokens: 1 }], exits, &mut cache).0)
            })
            .collect();
        // Rounding of f32 in another order.
        assert!(differences(&found, &decoded).0 < 1e-4, "{kv}");
        let waiting: usize = cache.num_pending().iter().sum();
        let rows = (0..ids.len()).filter(|row| row % 3 == 1).map(|row| row * 16..(row + 1) * 16);
        let largest = rows.map(|at| differences(&decoded[at.clone()], &whole[at]).0).fold(0.0, f32::max);
        (largest, waiting)
    };
    let (exact, waiting) = distances(SkippedKv::Recompute);
    // The last token stays and makes up for those before it.
    assert!(exact < 1e-4 && waiting == 0, "{exact} {waiting}");
    for other in [SkippedKv::Skip, SkippedKv::Latest, SkippedKv::Propagate] {
        assert!(distances(other).0 > 1e-2, "{other} is not exact");
    }
}

#[test]
fn tokens_that_wait_are_dropped_with_their_sequence() {
    let model = model(1, |_| {});
    let mut cache = KvCache::for_exits(model.config(), 2, CONTEXT, &Device::flex(), SkippedKv::Recompute);
    let batch = [6, 4].map(|tokens| NewTokens { slot: cache.admit().unwrap(), tokens });
    // Two recursions for the first sequence, one for the second.
    let limit = |row| ExitLimit { max_recursions: if row < 6 { 2 } else { 1 }, ..ExitLimit::NEVER };
    let exits = RowExits { rule: None, kv: SkippedKv::Recompute, limits: (0..10).map(limit).collect() };
    let ids = Tensor::<1, Int>::from_ints([5i32; 10], &Device::flex());
    let _ = model.forward_exiting(ids, &batch, exits, &mut cache);
    assert_eq!(cache.num_pending(), [0, 4, 6]);
    cache.crop(batch[0].slot, 2);
    assert_eq!(cache.num_pending(), [0, 4, 2]);
    cache.evict(batch[1].slot);
    assert_eq!(cache.num_pending(), [0, 0, 2]);
}

#[test]
fn every_rule_gives_numbers_that_rank_tokens() {
    let model = model(1, |_| {});
    let ids = tokens(6, 30);
    for kind in ExitRuleKind::ALL.iter().filter(|kind| model.check_exit_rule(**kind).is_ok()) {
        let rule = rule(*kind);
        let threshold = median(&model, &rule, &ids);
        let options = ExitOptions { rule: Some(rule), kv: SkippedKv::Latest };
        let limit = |threshold| ExitLimit { threshold, ..ExitLimit::NEVER };
        let counts = |threshold| pass(&model, &ids, &options, vec![limit(threshold); ids.len()]).1;
        let first = |counts: &[usize]| counts.iter().filter(|count| **count == 1).count();
        assert_eq!(first(&counts(threshold)), 15, "{kind}");
        assert!(counts(f32::MAX).iter().all(|count| *count == 3), "{kind}");
        assert!(counts(f32::MIN).iter().all(|count| *count == 1), "{kind}");
    }
}

#[test]
fn tokens_of_a_routed_model_leave_before_its_router_drops_them() {
    for (kv_sharing, kv) in [(KvSharing::RecursionWise, SkippedKv::Skip), (KvSharing::Shared, SkippedKv::Shared)] {
        let model = model(1, |recursion| {
            recursion.router = Some(expert_choice());
            recursion.kv_sharing = kv_sharing;
        });
        assert_eq!(model.default_skipped_kv(), kv);
        for kind in [ExitRuleKind::Router, ExitRuleKind::Change] {
            let options = ExitOptions { rule: Some(rule(kind)), kv };
            let text = tokens(1, 40);
            // Most tokens leave: the router drops more than half of them.
            let threshold = quantile(&model, options.rule.as_ref().unwrap(), &text, 0.1);
            let never = pass(&model, &text, &options, vec![ExitLimit::NEVER; 40]).1;
            let limit = ExitLimit { threshold, ..ExitLimit::NEVER };
            let early = pass(&model, &text, &options, vec![limit; 40]).1;
            let first = |counts: &[usize]| counts.iter().filter(|count| **count <= 1).count();
            assert!(first(&early) > first(&never), "{kv}, {kind}: {early:?} {never:?}");
            let requests: Vec<Request> = (0..3)
                .map(|i| Request {
                    recursion_counts: true,
                    exit_threshold: [Some(threshold), None, Some(threshold)][i],
                    max_recursions: [None, None, Some(2)][i],
                    ..request(tokens(i, 9 + 4 * i), 12, retie_engine::Sampling::default())
                })
                .collect();
            let found = run(engine(&model, &options, 3, 7), &requests);
            for (request, text) in requests.iter().zip(&found) {
                let one = std::slice::from_ref(request);
                assert_eq!(run(engine(&model, &options, 1, CONTEXT), one)[0], *text, "{kv}, {kind}");
                let ids = [&request.prompt[..], &text.tokens].concat();
                let limit = ExitLimit {
                    threshold: request.exit_threshold.unwrap_or(f32::INFINITY),
                    max_recursions: request.max_recursions.unwrap_or(usize::MAX),
                };
                assert_eq!(
                    text.recursion_counts,
                    pass(&model, &ids, &options, vec![limit; ids.len()]).1,
                    "{kv}, {kind}"
                );
            }
            let plain = support::alone(&model, requests[1].clone());
            assert_eq!(found[1], plain, "{kv}, {kind}: without a threshold the router decides alone");
        }
    }
}

#[test]
fn exits_that_are_not_there_are_refused() {
    let plain = model(1, |_| {});
    assert_eq!(plain.default_skipped_kv(), SkippedKv::Propagate);
    let engine_of = |model: CausalLm, kv| {
        let sizes = EngineOptions { num_slots: 1, context: CONTEXT, max_step_tokens: 8 };
        Engine::new(model, sizes).unwrap().with_exits(ExitOptions { rule: None, kv })
    };
    let refusal = |model: CausalLm, kv| engine_of(model, kv).unwrap_err().to_string();
    assert!(refusal(support::plain(), SkippedKv::Latest).contains("it has one recursion"));
    assert!(refusal(plain.clone(), SkippedKv::Shared).contains("needs `kv_sharing: shared`"));
    let shared = model(1, |recursion| recursion.kv_sharing = KvSharing::Shared);
    assert!(refusal(shared, SkippedKv::Latest).contains("the policy is `shared`, not `latest`"));
    let routed = model(1, |recursion| recursion.router = Some(expert_choice()));
    assert!(refusal(routed, SkippedKv::Latest).contains("the policy is `skip`, not `latest`"));
    let chosen = model(1, |recursion| recursion.router = Some(token_choice()));
    assert!(refusal(chosen, SkippedKv::Skip).contains("its router chooses recursion counts before the loop"));
    let by_router = ExitOptions { rule: Some(rule(ExitRuleKind::Router)), kv: SkippedKv::Latest };
    let sizes = EngineOptions { num_slots: 1, context: CONTEXT, max_step_tokens: 8 };
    let error = Engine::new(plain.clone(), sizes).unwrap().with_exits(by_router).unwrap_err().to_string();
    assert!(error.contains("the rule `router` needs an expert-choice router"), "{error}");

    let mut with = engine_of(plain.clone(), SkippedKv::Latest).unwrap();
    let ask = |change: fn(&mut Request)| {
        let mut request = request(tokens(1, 5), 4, retie_engine::Sampling::default());
        change(&mut request);
        request
    };
    let many = with.admit(ask(|request| request.max_recursions = Some(4))).unwrap_err().to_string();
    assert!(many.starts_with("`max_recursions` is `4`, expected 1 to 3, the recursions of the model"), "{many}");
    let no_rule = with.admit(ask(|request| request.exit_threshold = Some(0.5))).unwrap_err();
    assert_eq!(no_rule, EngineError::ExitsOff { name: "exit_threshold" });
    let mut without = support::engine(&plain, 1, 8);
    let off = without.admit(ask(|request| request.max_recursions = Some(2))).unwrap_err();
    assert_eq!(off, EngineError::ExitsOff { name: "max_recursions" });
    assert!(without.admit(ask(|request| request.max_recursions = Some(3))).is_ok());
}
