//! Early exits by a rule inside the schedulers: in every mode, mix and budget a request's tokens
//! and recursion counts are those that it has alone, in one pass over the whole stack after the
//! other, under every policy for the keys and values of skipped recursions; with every mechanism of
//! a step that is local to a token.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use burn::tensor::{Device, Int, Tensor};
use retie_config::{
    ExitProbe, ExitRuleKind, Init, KvSharing, LoraConfig, MechanismAt, RecursionConfig, Sharing, SkippedKv, steps_with,
};
use retie_engine::{
    Engine, EngineError, EngineOptions, ExitOptions, ExitTrace, Request, Sampling, Scheduler, SpeculationOptions,
};
use retie_model::{CausalLm, ExitRule, SelectionRule, kernels::Layout};
use retie_testing::{CONTEXT, random_model};
use support::{Text, Texts, alone, expert_choice, request, sampled, tokens};

/// A prelude of two layers, three recursions of a layer with LoRA and norms of their own, and a
/// coda.
fn recursion() -> RecursionConfig {
    RecursionConfig {
        prelude: Some(2),
        coda: Some(1),
        lora: Some(LoraConfig::uniform(2)),
        share_norms: false,
        ..RecursionConfig::new(3, Sharing::Cycle, Init::Stepwise)
    }
}

const POLICIES: [SkippedKv; 4] = [SkippedKv::Skip, SkippedKv::Latest, SkippedKv::Propagate, SkippedKv::Recompute];
const SIZES: [(usize, usize); 3] = [(6, 6 * CONTEXT), (3, 7), (2, 2)];

fn options(kind: ExitRuleKind, kv: SkippedKv) -> ExitOptions {
    let weight = (0..16).map(|i| ((i * 7 % 5) as f32 - 2.0) * 0.4).collect();
    let probe = ExitProbe { weight, bias: 0.1 };
    ExitOptions { rule: Some(ExitRule::new(kind, &[probe.clone(), probe], &Device::flex())), kv }
}

/// A threshold that about half of some tokens reach after the first recursion.
fn median(model: &CausalLm, rule: &ExitRule) -> f32 {
    let rows: Vec<i32> = tokens(1, 40).iter().map(|id| *id as i32).collect();
    let rows = Tensor::<1, Int>::from_ints(rows.as_slice(), &Device::flex());
    let mut forward = model.begin(rows, Layout::batch(1, 40), SelectionRule::Causal);
    forward.advance_to(model.share_map().loop_start());
    let before = forward.hidden().clone();
    forward.advance_to(model.share_map().exits().unwrap().end(1));
    let mut numbers = rule.numbers(model, 1, [before, forward.hidden().clone()]);
    numbers.sort_by(f32::total_cmp);
    numbers[numbers.len() / 2]
}

/// Requests with prompts of different lengths, greedy and sampled; all but one leave early, by the
/// rule, by a recursion count, or by both.
fn requests(threshold: f32) -> Vec<Request> {
    let exits = [
        (Some(threshold), None),
        (None, None),
        (Some(threshold), Some(2)),
        (Some(threshold), None),
        (None, Some(1)),
        (Some(threshold), None),
    ];
    let sizes = [(0, 7, 9), (1, 7, 9), (2, 1, 12), (3, 19, 5), (4, 12, 8), (5, 30, 3)];
    let request = |((seed, prompt, new), (exit_threshold, max_recursions))| Request {
        recursion_counts: true,
        exit_threshold,
        max_recursions,
        ..request(tokens(seed, prompt), new, if seed % 2 == 0 { Sampling::default() } else { sampled(seed as u64) })
    };
    sizes.into_iter().zip(exits).map(request).collect()
}

fn engine(model: &CausalLm, sizes: (usize, usize)) -> Engine {
    let (num_slots, max_step_tokens) = sizes;
    Engine::new(model.clone(), EngineOptions { num_slots, context: CONTEXT, max_step_tokens }).unwrap()
}

/// Texts of `requests`. Every fifth step one sequence is paused, for three steps.
fn run(mut engine: Engine, requests: &[Request]) -> Vec<Text> {
    let (mut texts, mut ids, mut steps, mut waiting) = (Texts::default(), Vec::new(), 0, requests.iter());
    while !engine.is_idle() || waiting.len() > 0 {
        while engine.num_free_slots() > 0 {
            let Some(request) = waiting.next() else { break };
            ids.push(engine.admit(request.clone()).unwrap());
        }
        match steps % 5 {
            1 => _ = engine.pause(ids[steps / 5 % ids.len()]),
            4 => ids.iter().for_each(|id| _ = engine.resume(*id)),
            _ => {}
        }
        steps += 1;
        texts.add(engine.step());
    }
    assert_eq!(engine.num_free_slots(), engine.options().num_slots);
    ids.iter().map(|id| texts.get(*id)).collect()
}

/// Each request in an engine of its own, which runs the whole stack in every step.
fn each_alone(model: &CausalLm, options: &ExitOptions, requests: &[Request]) -> Vec<Text> {
    let alone = |request: &Request| {
        let engine = engine(model, (1, CONTEXT)).with_exits(options.clone()).unwrap();
        run(engine, std::slice::from_ref(request)).remove(0)
    };
    requests.iter().map(alone).collect()
}

/// Checks the texts of every scheduler, with engines of `sizes`, against those of each request
/// alone.
fn check(name: &str, model: &CausalLm, options: &ExitOptions, sizes: &[(usize, usize)]) {
    let requests = requests(median(model, options.rule.as_ref().unwrap()));
    let expected = each_alone(model, options, &requests);
    let counts: Vec<usize> = expected.iter().flat_map(|text| text.recursion_counts.clone()).collect();
    assert!((1..=3).all(|count| counts.contains(&count)), "{name}: {counts:?}");
    for scheduler in Scheduler::ALL {
        for sizes in sizes.iter().copied() {
            // The order in which an engine gets them does not matter.
            let with_exits = || engine(model, sizes).with_exits(options.clone()).unwrap();
            let engine = match sizes.0 {
                3 => engine(model, sizes).with_scheduler(scheduler, None).unwrap().with_exits(options.clone()).unwrap(),
                _ => with_exits().with_scheduler(scheduler, None).unwrap(),
            };
            assert_eq!(run(engine, &requests), expected, "{name}, {}, {scheduler}, {sizes:?}", options.kv);
        }
    }
}

#[test]
fn tokens_leave_alike_in_every_scheduler_with_every_policy() {
    for kv in POLICIES {
        check("three recursions", &random_model(Some(recursion())), &options(ExitRuleKind::Change, kv), &SIZES);
    }
    let whole = RecursionConfig { prelude: None, coda: None, ..recursion() };
    check("no ends", &random_model(Some(whole)), &options(ExitRuleKind::Probe, SkippedKv::Recompute), &SIZES);
}

#[test]
fn tokens_leave_alike_with_shared_keys_and_values_and_with_a_router() {
    let shared = |router, kv_sharing| random_model(Some(RecursionConfig { router, kv_sharing, ..recursion() }));
    for (name, model, kv) in [
        ("shared", shared(None, KvSharing::Shared), SkippedKv::Shared),
        ("routed", shared(Some(expert_choice()), KvSharing::RecursionWise), SkippedKv::Skip),
        ("routed, shared", shared(Some(expert_choice()), KvSharing::Shared), SkippedKv::Shared),
    ] {
        for kind in ExitRuleKind::ALL.iter().filter(|kind| model.check_exit_rule(**kind).is_ok()) {
            check(&format!("{name}, {kind}"), &model, &options(*kind, kv), &SIZES[1..2]);
        }
        check(name, &model, &options(ExitRuleKind::Change, kv), &SIZES);
    }
}

#[test]
fn tokens_leave_alike_by_every_rule() {
    let model = random_model(Some(recursion()));
    for kind in ExitRuleKind::ALL.iter().filter(|kind| model.check_exit_rule(**kind).is_ok()) {
        check(kind.name(), &model, &options(*kind, SkippedKv::Latest), &SIZES[1..2]);
    }
}

#[test]
fn steps_that_are_local_to_a_token_go_with_exits_and_schedulers() {
    for mechanism in ["coefficients", "hai", "nll:ratio=0.5@1", "silu_dra@0", "snake@2", "dra:form=package"] {
        let added: Vec<MechanismAt> = vec![mechanism.parse().unwrap()];
        let steps = steps_with(&[], &added, 3).unwrap();
        let model = random_model(Some(RecursionConfig { steps, ..recursion() }));
        check(mechanism, &model, &options(ExitRuleKind::Change, SkippedKv::Propagate), &SIZES[1..2]);
    }
}

#[test]
fn steps_that_are_not_local_are_refused_by_name() {
    for mechanism in [
        "dense",
        "gnconv:order=1,kernel=2",
        "sliced:groups=2@1",
        "descriptor:chunk=4,ratio=2",
        "rg:stride=2,latents=4",
        "resolution:factor=2",
    ] {
        let added: Vec<MechanismAt> = vec![mechanism.parse().unwrap()];
        let steps = steps_with(&[], &added, 3).unwrap();
        let model = random_model(Some(RecursionConfig { steps, ..recursion() }));
        let engine = || engine(&model, (1, 8));
        let errors = [
            engine().with_exits(options(ExitRuleKind::Change, SkippedKv::Latest)),
            engine().with_scheduler(Scheduler::Depthwise, None),
            engine().with_speculation(SpeculationOptions::default()),
        ];
        let name = mechanism.split(':').next().unwrap();
        for error in errors.map(|engine| engine.unwrap_err().to_string()) {
            assert!(error.contains(&format!("the mechanism `{name}`")), "{error}");
        }
    }
}

#[test]
fn fused_exits_are_those_of_one_pass_at_a_time() {
    let steps = steps_with(&[], &["grouped_softmax:groups=2".parse().unwrap()], 3).unwrap();
    let model = random_model(Some(RecursionConfig { steps, ..recursion() }));
    let with_exits = |kv| engine(&model, (1, 8)).with_exits(options(ExitRuleKind::Change, kv));
    assert!(with_exits(SkippedKv::Propagate).is_ok());
    let refused = [
        with_exits(SkippedKv::Recompute),
        engine(&model, (1, 8)).with_scheduler(Scheduler::Lockstep, None),
        engine(&model, (1, 8)).with_speculation(SpeculationOptions::default()),
    ];
    for error in refused.map(|engine| engine.unwrap_err().to_string()) {
        assert!(error.contains("the mechanism `grouped_softmax`"), "{error}");
    }
}

#[test]
fn without_thresholds_the_tokens_are_those_of_the_whole_stack() {
    let model = random_model(Some(recursion()));
    let requests: Vec<Request> = requests(0.0)
        .into_iter()
        .map(|request| Request { exit_threshold: None, max_recursions: None, ..request })
        .collect();
    let expected: Vec<Text> = requests.iter().map(|request| alone(&model, request.clone())).collect();
    for kv in POLICIES {
        for scheduler in Scheduler::ALL {
            let engine = engine(&model, (3, 7)).with_exits(options(ExitRuleKind::Probe, kv)).unwrap();
            let found = run(engine.with_scheduler(scheduler, None).unwrap(), &requests);
            assert_eq!(found, expected, "{kv}, {scheduler}");
        }
    }
}

#[test]
fn forced_exits_do_not_depend_on_the_scheduler_under_any_policy() {
    let model = random_model(Some(recursion()));
    let requests = requests(f32::INFINITY);
    for kv in POLICIES {
        let texts = |scheduler, sizes| {
            let trace = ExitTrace::new(vec![1, 3, 2, 1, 1, 2]).unwrap();
            let engine = engine(&model, sizes).with_exits(options(ExitRuleKind::Probe, kv)).unwrap();
            run(engine.with_scheduler(scheduler, Some(trace)).unwrap(), &requests)
        };
        let expected = texts(Scheduler::Lockstep, (1, CONTEXT));
        for sizes in SIZES {
            assert_eq!(texts(Scheduler::Lockstep, sizes), expected, "{kv}, {sizes:?}");
            assert_eq!(texts(Scheduler::Depthwise, sizes), expected, "{kv}, {sizes:?}");
        }
        // The fifth request has one recursion at most, whatever the trace says.
        assert!(expected[4].recursion_counts.iter().all(|count| *count == 1), "{kv}");
        assert!(expected[0].recursion_counts.contains(&3) && expected[0].recursion_counts.contains(&1), "{kv}");
    }
}

#[test]
fn an_evicted_sequence_leaves_the_others_alone_under_every_policy() {
    let model = random_model(Some(recursion()));
    for kv in POLICIES {
        let options = options(ExitRuleKind::Change, kv);
        let all = requests(median(&model, options.rule.as_ref().unwrap()));
        let expected = each_alone(&model, &options, &all);
        for when in 1..6 {
            let engine = engine(&model, (6, 12)).with_exits(options.clone()).unwrap();
            let mut engine = engine.with_scheduler(Scheduler::Depthwise, None).unwrap();
            let ids: Vec<_> = all.iter().map(|request| engine.admit(request.clone()).unwrap()).collect();
            let mut texts = Texts::default();
            (0..when).for_each(|_| texts.add(engine.step()));
            assert!(engine.evict(ids[3]));
            let again = engine.admit(all[0].clone()).unwrap();
            texts.finish(&mut engine);
            for index in [0, 1, 2, 4, 5] {
                assert_eq!(texts.get(ids[index]), expected[index], "{kv}: evicted after {when} steps");
            }
            assert_eq!(texts.get(again), expected[0], "{kv}: in its place");
        }
    }
}

#[test]
fn engines_that_cannot_do_what_they_are_given_are_refused() {
    let model = random_model(Some(recursion()));
    let drafts = SpeculationOptions::default;
    let exits = || options(ExitRuleKind::Change, SkippedKv::Latest);
    let engine = || engine(&model, (1, 8));
    let with_exits = engine().with_exits(exits()).unwrap();
    let error = with_exits.with_speculation(drafts()).unwrap_err();
    assert!(matches!(&error, EngineError::NoDrafts { reason } if reason.contains("leave the loop early")), "{error}");
    let error = engine().with_speculation(drafts()).unwrap().with_exits(exits()).unwrap_err();
    assert!(matches!(&error, EngineError::NoExits { reason } if reason.contains("speculation")), "{error}");
    for error in [
        engine().with_speculation(drafts()).unwrap().with_scheduler(Scheduler::Lockstep, None).unwrap_err(),
        engine().with_scheduler(Scheduler::Lockstep, None).unwrap().with_speculation(drafts()).unwrap_err(),
    ] {
        assert!(error.to_string().contains("scheduler `lockstep` reads every token for itself"), "{error}");
    }
    // Exits of requests need exits of the engine, whatever its scheduler.
    let mut bare = engine().with_scheduler(Scheduler::Depthwise, None).unwrap();
    let limited = Request { max_recursions: Some(1), ..request(tokens(1, 3), 2, Sampling::default()) };
    assert_eq!(bare.admit(limited).unwrap_err(), EngineError::ExitsOff { name: "max_recursions" });
}
