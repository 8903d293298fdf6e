//! The scheduler on a simulated clock: a pass over the shared block takes one unit of time. The KV
//! cache may be too small for all sequences that have a slot.

use super::*;
use crate::{
    Request, SequenceId, StopConditions, exits,
    held::{HeldIndex, Salt},
    memory::{KvUsage, Memory},
    prefixes::wanted,
    schedule::schedule,
    sequence::Sequence,
};
use proptest::prelude::*;
use retie_model::{KvBlocks, KvCache, NewTokens};
use std::collections::{BTreeMap, VecDeque};

/// A request of the simulation.
#[derive(Clone, Debug)]
struct Arrival {
    /// Passes after the previous one.
    after: usize,
    prompt: usize,
    new: usize,
}

#[derive(Clone, Debug)]
struct Setting {
    scheduler: Scheduler,
    num_slots: usize,
    /// Token budget beyond the number of slots.
    spare: usize,
    num_recursions: usize,
    /// Blocks of four tokens, at least 16, for a sequence of the whole context.
    blocks: usize,
    /// True if tokens are held for later sequences. All begin alike.
    holds: bool,
    /// Recursion counts of decoded tokens, in turn.
    counts: Vec<usize>,
    /// What the exit rule says of one row after the other; empty without a rule.
    leaves: Vec<bool>,
    /// What a router selects of one row after the other; empty without a router.
    selects: Vec<bool>,
    arrivals: Vec<Arrival>,
}

fn setting() -> impl Strategy<Value = Setting> {
    let arrival = (0..4usize, 1..40usize, 1..12usize).prop_map(|(after, prompt, new)| Arrival { after, prompt, new });
    let scheduler = prop_oneof![Just(Scheduler::Lockstep), Just(Scheduler::Depthwise)];
    let counts = prop::collection::vec(1..4usize, 1..7);
    let leaves = prop::collection::vec(any::<bool>(), 0..9);
    let selects = prop_oneof![Just(Vec::new()), prop::collection::vec(any::<bool>(), 1..9)];
    let sizes = (1..5usize, 0..20usize, 1..4usize, 16..40usize, any::<bool>());
    (scheduler, sizes, counts, (leaves, selects), prop::collection::vec(arrival, 1..12)).prop_map(
        |(scheduler, (num_slots, spare, num_recursions, blocks, holds), counts, (leaves, selects), arrivals)| Setting {
            scheduler,
            num_slots,
            spare,
            num_recursions,
            blocks,
            holds,
            counts,
            leaves,
            selects,
            arrivals,
        },
    )
}

/// What the simulation has seen.
#[derive(Debug, Default)]
struct Seen {
    passes: usize,
    /// Largest number of rows of a pass, and of rows that are somewhere in the pipeline.
    most_rows: usize,
    most_held: usize,
    /// Passes from the start of a decoded token to the end of the stack, at most.
    longest_token: usize,
    /// Passes without a start of a token although one could start, in a row, at most.
    longest_wait: usize,
    /// Passes after which the prompt of each sequence has been read.
    prompts: BTreeMap<u64, usize>,
    /// New tokens of each sequence.
    new: BTreeMap<u64, usize>,
    /// Times that the oldest sequence was preempted.
    oldest_preempted: usize,
    /// The blocks in the end.
    usage: KvUsage,
}

/// Runs the arrivals to their end, in at most `most_passes` passes.
fn simulate(setting: &Setting, most_passes: usize) -> Seen {
    let Setting { scheduler, num_slots, spare, num_recursions, blocks, holds, counts, leaves, selects, arrivals } =
        setting;
    let threshold = if leaves.is_empty() { f32::INFINITY } else { 0.5 };
    let (mut asked, mut routed) = (0, 0);
    // The router decides on the first rows in the loop: all after a pass, the new ones at a start.
    let mut route = |pipeline: &mut Pipeline, rows: usize| {
        let all: usize = pipeline.in_loop.iter().map(|unit| unit.span.tokens).sum();
        if selects.is_empty() || rows == 0 {
            return;
        }
        let of_rows = (0..all).map(|row| row >= rows || selects[(routed + row) % selects.len()]);
        let Rows { stay, leave } = pipeline.selected(&of_rows.collect::<Vec<_>>());
        assert_eq!(stay.len() + leave.len(), all);
        routed += rows;
    };
    let (device, sizes) = (burn::tensor::Device::flex(), KvBlocks { tokens: 4, count: *blocks });
    let mut cache = KvCache::in_blocks(&config(), (*num_slots, 64), &device, None, sizes);
    let mut memory = Memory::new(sizes);
    memory.held = holds.then(|| HeldIndex::new(sizes));
    let mut pipeline = Pipeline::new(*scheduler, *num_recursions);
    let mut slots: Vec<Option<Sequence>> = (0..*num_slots).map(|_| None).collect();
    let (mut seen, mut started, mut wait) = (Seen::default(), BTreeMap::new(), 0);
    let mut time = 0;
    let mut waiting: VecDeque<(usize, u64, &Arrival)> = VecDeque::new();
    for (id, arrival) in arrivals.iter().enumerate() {
        time += arrival.after;
        waiting.push_back((time, id as u64, arrival));
    }
    while seen.passes < most_passes {
        while let Some((_, id, arrival)) = waiting.front().filter(|(time, ..)| *time <= seen.passes) {
            let stop = StopConditions { max_new_tokens: Some(arrival.new), ..StopConditions::default() };
            let request = Request { prompt: vec![1; arrival.prompt], stop, ..Request::default() };
            let salt = Salt::new(exits::limit(&request), &request.salt);
            if cache.num_free_slots() == 0 || memory.has_waiting() {
                break;
            }
            let Some((slot, reused)) = memory.place(&mut cache, &slots, &wanted(&request, &salt)) else { break };
            let mut sequence = Sequence::new(SequenceId(*id), slot, request);
            sequence.continue_at(slot, reused);
            slots[slot.index()] = Some(sequence);
            waiting.pop_front();
        }
        if waiting.is_empty() && slots.iter().all(Option::is_none) && memory.preempted.is_empty() {
            seen.usage = memory.usage(&cache);
            return seen;
        }
        let mut batch = Vec::new();
        if pipeline.may_start() {
            let oldest = slots.iter().flatten().map(|sequence| sequence.id).min();
            for slot in memory.make_room(&mut cache, &mut slots) {
                pipeline.drop_slot(slot);
                started.remove(&slot);
            }
            seen.oldest_preempted += memory.preempted.iter().filter(|sequence| Some(sequence.id) == oldest).count();
            batch = schedule(slots.iter().flatten(), num_slots + spare, pipeline.prompt_rows());
        }
        let could = slots.iter().flatten().any(|sequence| sequence.num_unstarted() > 0);
        wait = if could && batch.is_empty() { wait + 1 } else { 0 };
        seen.longest_wait = seen.longest_wait.max(wait);
        let unit = |NewTokens { slot, tokens }: NewTokens, slots: &mut Vec<Option<Sequence>>, cache: &mut KvCache| {
            let sequence = slots[slot.index()].as_mut().unwrap();
            let token = sequence.num_started.checked_sub(sequence.num_given);
            sequence.num_started += tokens;
            let until = token.map_or(*num_recursions, |token| counts[token % counts.len()].min(*num_recursions));
            let span = cache.extend(NewTokens { slot, tokens });
            Unit { span, done: 0, until, threshold, is_prompt: token.is_none() }
        };
        let units: Vec<Unit> = batch.into_iter().map(|new| unit(new, &mut slots, &mut cache)).collect();
        units.iter().filter(|unit| !unit.is_prompt).for_each(|unit| _ = started.insert(unit.span.slot, seen.passes));
        let new_rows = units.iter().map(|unit| unit.span.tokens).sum();
        pipeline.start(units);
        route(&mut pipeline, new_rows);
        let tokens = pipeline.pass();
        assert!(tokens.windows(2).all(|pair| pair[0].recursion <= pair[1].recursion), "sorted by recursion");
        let rows: usize = tokens.iter().map(|tokens| tokens.span.tokens).sum();
        seen.most_rows = seen.most_rows.max(rows);
        let held: usize = pipeline.in_loop.iter().chain(&pipeline.left).map(|unit| unit.span.tokens).sum();
        seen.most_held = seen.most_held.max(held);
        let mut numbers = vec![f32::NEG_INFINITY; rows];
        for row in pipeline.asked().into_iter().flat_map(|asked| asked.rows) {
            numbers[row] = f32::from(u8::from(leaves[asked % leaves.len()]));
            asked += 1;
        }
        let (Rows { stay, leave }, leaving) = pipeline.passed(&numbers);
        assert_eq!(stay.len() + leave.len(), rows);
        assert_eq!(leaving.iter().map(|unit| unit.span.tokens).sum::<usize>(), leave.len());
        assert!(leaving.is_sorted_by_key(|unit| unit.done), "those that leave early come first");
        let still: usize = pipeline.in_loop.iter().map(|unit| unit.span.tokens).sum();
        route(&mut pipeline, still);
        seen.passes += 1;
        if pipeline.waits() {
            continue;
        }
        for unit in pipeline.take(|_| true).0 {
            let slot = unit.span.slot;
            let sequence = slots[slot.index()].as_mut().unwrap();
            assert_eq!(sequence.num_read, unit.span.start, "tokens of a sequence are read in their order");
            sequence.num_read += unit.span.tokens;
            memory.hold_filled(&mut cache, sequence, unit.span.tokens);
            if let Some(start) = started.remove(&slot) {
                seen.longest_token = seen.longest_token.max(seen.passes - start);
            }
            if sequence.num_unread() > 0 {
                continue;
            }
            let id = sequence.id.0;
            if unit.is_prompt {
                seen.prompts.entry(id).or_insert(seen.passes);
            }
            sequence.tokens.push(1);
            let new = seen.new.entry(id).or_default();
            *new += 1;
            if *new == arrivals[id as usize].new {
                let sequence = slots[slot.index()].take().unwrap();
                memory.free(&mut cache, &sequence);
                pipeline.drop_slot(slot);
            }
        }
    }
    panic!("not finished after {most_passes} passes: {seen:?}");
}

fn config() -> retie_config::ModelConfig {
    let serde_json::Value::Object(map) = serde_json::json!({
        "model_type": "llama", "vocab_size": 5, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
    }) else {
        unreachable!()
    };
    retie_config::ModelConfig::from_json(map, std::path::Path::new("tiny")).unwrap()
}

proptest! {
    #[test]
    fn every_sequence_gets_its_tokens_in_bounded_time_and_memory(setting in setting()) {
        let Setting { num_slots, spare, num_recursions, arrivals, blocks, .. } = &setting;
        let budget = num_slots + spare;
        // At worst one sequence after the other, one row of a prompt at a time.
        let arrived: usize = arrivals.iter().map(|arrival| arrival.after).sum();
        let work: usize = arrivals.iter().map(|arrival| num_recursions * (arrival.prompt + arrival.new)).sum();
        let seen = simulate(&setting, arrived + work + 1);
        let expected: BTreeMap<u64, usize> =
            arrivals.iter().enumerate().map(|(id, arrival)| (id as u64, arrival.new)).collect();
        prop_assert_eq!(&seen.new, &expected);
        prop_assert!(seen.most_rows <= budget, "{} rows of a pass", seen.most_rows);
        prop_assert!(seen.most_held <= budget, "{} rows on their way", seen.most_held);
        prop_assert!(seen.longest_token <= *num_recursions, "{} passes for a token", seen.longest_token);
        prop_assert!(seen.longest_wait <= *num_recursions, "{} passes without a start", seen.longest_wait);
        // A prompt whose tokens leave early overtakes one that started with it.
        let in_order = !setting.leaves.is_empty() || !setting.selects.is_empty() || seen.prompts.values().is_sorted();
        prop_assert!(in_order, "first come, first served: {:?}", seen.prompts);
        prop_assert_eq!(seen.oldest_preempted, 0);
        let KvUsage { occupied, held, free, .. } = seen.usage;
        prop_assert_eq!((occupied, held + free), (0, *blocks));
        prop_assert!(setting.holds || held == 0);
    }
}
