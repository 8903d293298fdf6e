//! Schedulers: a request's tokens are the same in every mode and mix, and those of forced exits are
//! the tokens of a model that leaves recursions out.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use burn::tensor::{Int, Tensor};
use retie_config::{
    DepthExtra, ExpertChoiceConfig, Gating, Init, IntermediateState, KvSharing, LoraConfig, RecursionConfig, Relax,
    RouterConfig, RouterNetwork, Sharing, TokenChoiceConfig,
};
use retie_engine::{Engine, EngineError, EngineOptions, ExitTrace, Request, Sampling, Scheduler};
use retie_model::{
    CausalLm,
    kernels::{Layout, f32_slice},
};
use retie_testing::{CONTEXT, random_model};
use support::{Text, Texts, alone, models, plain, request, sampled, tokens};

/// Models with three recursions: with a prelude, a coda and plain LoRA; with all that a depth can
/// have of its own; and without unshared layers.
fn recursive() -> Vec<(&'static str, CausalLm)> {
    let cycle = RecursionConfig {
        prelude: Some(2),
        coda: Some(1),
        share_norms: true,
        lora: Some(LoraConfig::uniform(2)),
        ..RecursionConfig::new(3, Sharing::Cycle, Init::Stepwise)
    };
    let own = RecursionConfig {
        lora: Some(LoraConfig { relax: Relax::Dora, ..LoraConfig::uniform(2) }),
        share_norms: false,
        extras: DepthExtra::ALL.into(),
        ..cycle.clone()
    };
    let whole = RecursionConfig { prelude: None, coda: None, lora: None, ..cycle.clone() };
    vec![("LoRA", cycle), ("everything", own), ("no ends", whole)]
        .into_iter()
        .map(|(name, recursion)| (name, random_model(Some(recursion))))
        .collect()
}

/// Models whose recursions share keys and values, and models with a router of each kind.
fn shared_or_routed() -> Vec<(&'static str, CausalLm)> {
    let routed = |router, change: fn(&mut RecursionConfig)| {
        let mut recursion = RecursionConfig {
            prelude: Some(2),
            coda: Some(1),
            lora: Some(LoraConfig::uniform(2)),
            share_norms: false,
            router,
            ..RecursionConfig::new(3, Sharing::Cycle, Init::Stepwise)
        };
        change(&mut recursion);
        random_model(Some(recursion))
    };
    let expert = |change: fn(&mut ExpertChoiceConfig)| {
        let mut config = ExpertChoiceConfig { alpha: 1.0, ..ExpertChoiceConfig::new(3) };
        change(&mut config);
        Some(RouterConfig::ExpertChoice(config))
    };
    let token = |change: fn(&mut TokenChoiceConfig)| {
        let mut config = TokenChoiceConfig::default();
        change(&mut config);
        Some(RouterConfig::TokenChoice(config))
    };
    let mut all = models();
    all.retain(|(_, model)| model.router().is_some() || model.kv_sharing() != KvSharing::RecursionWise);
    all.extend([
        ("hybrid", routed(None, |recursion| recursion.kv_sharing = KvSharing::Hybrid)),
        ("every recursion selects", routed(expert(|router| router.capacities = vec![0.9, 0.6, 0.4]), |_| {})),
        ("random", routed(expert(|router| router.network = RouterNetwork::Random), |_| {})),
        ("auxiliary", routed(expert(|router| router.auxiliary = Some(RouterNetwork::Linear)), |_| {})),
        ("token choice, gated", routed(token(|router| router.intermediate = IntermediateState::Gated), |_| {})),
        ("token choice, random", routed(token(|router| router.network = RouterNetwork::Random), |_| {})),
        (
            "token choice, shared",
            routed(token(|router| router.gating = Gating::Delta), |recursion| recursion.kv_sharing = KvSharing::Shared),
        ),
    ]);
    all
}

/// Requests with prompts of different lengths, greedy and sampled, with their recursion counts.
fn requests() -> Vec<Request> {
    let sampling = |seed: u64| if seed.is_multiple_of(2) { Sampling::default() } else { sampled(seed) };
    [(0, 7, 9), (1, 7, 9), (2, 1, 12), (3, 19, 5), (4, 12, 8), (5, 30, 3)]
        .map(|(seed, prompt, new)| Request {
            recursion_counts: true,
            ..request(tokens(seed, prompt), new, sampling(seed as u64))
        })
        .to_vec()
}

fn engine(model: &CausalLm, sizes: (usize, usize), scheduler: Scheduler, trace: Option<&[usize]>) -> Engine {
    let (num_slots, max_step_tokens) = sizes;
    let engine = Engine::new(model.clone(), EngineOptions { num_slots, context: CONTEXT, max_step_tokens }).unwrap();
    engine.with_scheduler(scheduler, trace.map(|counts| ExitTrace::new(counts.to_vec()).unwrap())).unwrap()
}

/// Texts of `requests`; every third step one sequence is paused, for two steps.
fn run(mut engine: Engine, requests: &[Request]) -> Vec<Text> {
    let (mut texts, mut ids, mut steps, mut paused) = (Texts::default(), Vec::new(), 0, None);
    let mut step = |engine: &mut Engine, ids: &[_], texts: &mut Texts| {
        steps += 1;
        if steps % 3 == 0 {
            let id = ids[steps / 3 % ids.len()];
            paused = engine.pause(id).then_some(id);
        } else if steps % 3 == 2 {
            paused.take().into_iter().for_each(|id| _ = engine.resume(id));
        }
        let progress = engine.step();
        assert!(paused.is_none_or(|id| progress.iter().all(|progress| progress.sequence != id)), "paused");
        texts.add(progress);
    };
    for request in requests {
        while engine.num_free_slots() == 0 {
            step(&mut engine, &ids, &mut texts);
        }
        ids.push(engine.admit(request.clone()).unwrap());
    }
    while !engine.is_idle() {
        step(&mut engine, &ids, &mut texts);
    }
    ids.iter().map(|id| texts.get(*id)).collect()
}

const SIZES: [(usize, usize); 3] = [(6, 6 * CONTEXT), (3, 7), (2, 2)];

#[test]
fn without_exits_every_scheduler_gives_the_tokens_of_a_request_alone() {
    for (name, model) in recursive() {
        let expected: Vec<Text> = requests().into_iter().map(|request| alone(&model, request)).collect();
        for scheduler in Scheduler::ALL {
            for sizes in SIZES {
                let found = run(engine(&model, sizes, scheduler, None), &requests());
                assert_eq!(found, expected, "{name}, {scheduler}, {sizes:?}");
            }
        }
    }
}

#[test]
fn shared_keys_and_routers_give_the_tokens_of_a_request_alone() {
    for (name, model) in shared_or_routed() {
        let expected: Vec<Text> = requests().into_iter().map(|request| alone(&model, request)).collect();
        let mut counts: Vec<usize> = expected.iter().flat_map(|text| text.recursion_counts.clone()).collect();
        counts.sort_unstable();
        counts.dedup();
        assert_eq!(counts.len() > 1, model.router().is_some(), "{name}: {counts:?}");
        for scheduler in [Scheduler::Lockstep, Scheduler::Depthwise] {
            for sizes in SIZES {
                let found = run(engine(&model, sizes, scheduler, None), &requests());
                assert_eq!(found, expected, "{name}, {scheduler}, {sizes:?}");
            }
        }
    }
}

#[test]
fn forced_exits_of_shared_keys_and_routers_do_not_depend_on_the_scheduler_or_the_mix() {
    let trace = [1, 3, 2, 1, 1, 2];
    for (name, model) in shared_or_routed() {
        let expected = run(engine(&model, (1, CONTEXT), Scheduler::Lockstep, Some(&trace)), &requests());
        let plain = run(engine(&model, (1, CONTEXT), Scheduler::Lockstep, None), &requests());
        assert_ne!(expected, plain, "{name}: exits");
        for scheduler in [Scheduler::Lockstep, Scheduler::Depthwise] {
            for sizes in SIZES {
                let found = run(engine(&model, sizes, scheduler, Some(&trace)), &requests());
                assert_eq!(found, expected, "{name}, {scheduler}, {sizes:?}");
            }
        }
        for ((text, plain), request) in expected.iter().zip(&plain).zip(requests()) {
            let start = request.prompt.len();
            assert_eq!(
                text.recursion_counts[..start],
                plain.recursion_counts[..start],
                "{name}: prompts are not forced"
            );
        }
    }
}

#[test]
fn exits_do_not_depend_on_the_scheduler_or_the_mix() {
    let trace = [1, 3, 2, 1, 1, 2];
    for (name, model) in recursive() {
        // One sequence after the other.
        let expected = run(engine(&model, (1, CONTEXT), Scheduler::Lockstep, Some(&trace)), &requests());
        assert_ne!(expected, run(engine(&model, (1, CONTEXT), Scheduler::Full, None), &requests()), "{name}: exits");
        for scheduler in [Scheduler::Lockstep, Scheduler::Depthwise] {
            for sizes in SIZES {
                let found = run(engine(&model, sizes, scheduler, Some(&trace)), &requests());
                assert_eq!(found, expected, "{name}, {scheduler}, {sizes:?}");
            }
        }
        for (text, request) in expected.iter().zip(requests()) {
            let (prompt, new) = text.recursion_counts.split_at(request.prompt.len());
            assert!(prompt.iter().all(|count| *count == 3), "{name}: prompts are read at full depth");
            assert_eq!(new.len(), text.tokens.len(), "{name}");
            assert!(new.windows(6).all(|counts| counts.iter().sum::<usize>() == 10), "{name}: {new:?}");
        }
    }
}

/// Greedy tokens after a prompt, by whole forward passes: the prompt at full depth, later tokens
/// with `count` recursions. In the recursions that they run, these attend to the tokens before them
/// as at full depth.
fn with_recursions(model: &CausalLm, prompt: &[u32], new: usize, count: usize) -> Vec<u32> {
    let parts = model.loop_parts().unwrap();
    let (first, last) = (parts.recursions[0].start, parts.recursions.last().unwrap().end);
    let mut text = prompt.to_vec();
    for _ in 0..new {
        let ids: Vec<i32> = text.iter().map(|id| *id as i32).collect();
        let rows = model.row_context(Layout::batch(1, text.len()));
        let x = model.embed(Tensor::<1, Int>::from_ints(ids.as_slice(), &model.device()));
        let early = model.run_depths(x, 0..parts.recursions[count - 1].end, &rows);
        let full = model.run_depths(early.clone(), first.max(parts.recursions[count - 1].end)..last, &rows);
        let (read, rest) = (prompt.len(), text.len() - prompt.len());
        let mixed = match rest {
            0 => full,
            _ => Tensor::cat(vec![full.narrow(0, 0, read), early.narrow(0, read, rest)], 0),
        };
        let hidden = model.norm(model.run_depths(mixed, parts.after.clone(), &rows));
        let logits = model.logits(hidden.narrow(0, text.len() - 1, 1)).into_data();
        let logits = f32_slice(&logits);
        let best = (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
        text.push(best as u32);
    }
    text.split_off(prompt.len())
}

#[test]
fn a_token_that_exits_leaves_recursions_out_but_not_the_last_layers() {
    for (name, model) in recursive() {
        let prompt = tokens(4, 12);
        for count in [1, 2, 3] {
            // The first new token belongs to the prompt's last row; the others are read with exits.
            let expected = with_recursions(&model, &prompt, 6, count);
            let greedy = request(prompt.clone(), 6, Sampling::default());
            let found = run(engine(&model, (2, 20), Scheduler::Depthwise, Some(&[count])), &[greedy]);
            assert_eq!(found[0].tokens, expected, "{name}, {count} recursions");
        }
    }
}

#[test]
fn an_evicted_sequence_leaves_the_others_alone() {
    let (_, model) = recursive().remove(0);
    let trace = [2, 1, 3];
    let all = requests();
    let expected = run(engine(&model, (6, 40), Scheduler::Depthwise, Some(&trace)), &all);
    for when in 1..5 {
        let mut engine = engine(&model, (6, 40), Scheduler::Depthwise, Some(&trace));
        let ids: Vec<_> = all.iter().map(|request| engine.admit(request.clone()).unwrap()).collect();
        let mut texts = Texts::default();
        (0..when).for_each(|_| texts.add(engine.step()));
        assert!(engine.evict(ids[1]));
        // Its slot has another sequence, whose tokens are its own.
        engine.admit(all[0].clone()).unwrap();
        texts.finish(&mut engine);
        for index in [0, 2, 3, 4, 5] {
            assert_eq!(texts.get(ids[index]), expected[index], "evicted after {when} steps");
        }
        assert_eq!(engine.num_free_slots(), 6);
    }
}

#[test]
fn models_without_a_loop_and_deep_traces_are_refused() {
    let (_, model) = recursive().remove(0);
    let options = EngineOptions { num_slots: 1, context: CONTEXT, max_step_tokens: 8 };
    let with = |model: &CausalLm, scheduler, trace: Option<&[usize]>| {
        let trace = trace.map(|counts| ExitTrace::new(counts.to_vec()).unwrap());
        Engine::new(model.clone(), options).unwrap().with_scheduler(scheduler, trace).err()
    };
    let sequence = random_model(Some(RecursionConfig::new(2, Sharing::Sequence, Init::Stepwise)));
    let refused = with(&sequence, Scheduler::Depthwise, None).map(|error| error.to_string()).unwrap();
    let reason = "its recursions do not run the same layers one after the other";
    assert!(refused.starts_with(&format!("scheduler `depthwise` cannot serve the model: {reason}")), "{refused}");
    assert_eq!(with(&sequence, Scheduler::Full, None), None);
    assert_eq!(with(&plain(), Scheduler::Depthwise, None), None, "one recursion");
    let deep = Some(EngineError::TraceTooDeep { found: 4, expected: 3 });
    assert_eq!(with(&model, Scheduler::Lockstep, Some(&[1, 4])), deep);
    assert_eq!(with(&model, Scheduler::Full, Some(&[1, 3])), Some(EngineError::TraceInFull));
    assert_eq!(sequence.loop_parts(), Err(reason.to_owned()));
    for (name, model) in models() {
        assert!(model.loop_parts().is_ok(), "{name}");
    }
}
