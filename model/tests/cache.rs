//! A KV cache whose sequences are admitted and evicted, against whole forward passes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod routed;

use burn::tensor::{Int, Tensor};
use retie_config::KvSharing;
use retie_model::{CausalLm, HeldTokens, KvBlocks, KvCache, NewTokens, SelectionRule, Slot};
use retie_testing::values;
use routed::{Changed, LOGITS, run};

/// An unrouted recursive model, routed ones, and every KV sharing strategy, each with the token ids
/// of its golden.
fn models() -> Vec<(String, CausalLm, Vec<Vec<u32>>)> {
    let routed = ["routed_linear", "routed_mlp", "routed_softmax"];
    let routed = routed.map(|name| (name.to_owned(), routed::load(name), routed::rows(name)));
    let unrouted = Changed::new("routed_mlp", |_| {}).unrouted().load();
    let unrouted = ("unrouted".to_owned(), unrouted, routed::rows("routed_mlp"));
    let kv = KvSharing::ALL.iter().map(|kv| {
        let routed = Changed::new("routed_kv", |_| {}).with_kv_sharing(*kv);
        (format!("routed_kv, {kv}"), routed.load(), routed::rows("routed_kv"))
    });
    let shared = Changed::new("routed_kv", |_| {}).unrouted().with_kv_sharing(KvSharing::Shared).load();
    let shared = ("unrouted, shared".to_owned(), shared, routed::rows("routed_kv"));
    routed.into_iter().chain([unrouted, shared]).chain(kv).collect()
}

/// Tokens of a block.
const BLOCK: usize = 3;

/// A cache with rows for each slot, and one of the same size in blocks.
fn caches(model: &CausalLm, num_slots: usize, capacity: usize) -> [KvCache; 2] {
    let (config, device) = (model.config(), model.device());
    let blocks = KvBlocks { tokens: BLOCK, count: num_slots * capacity.div_ceil(BLOCK) };
    [
        KvCache::new(config, num_slots, capacity, &device),
        KvCache::in_blocks(config, (num_slots, capacity), &device, None, blocks),
    ]
}

/// Sequences in a cache, whose logits are compared with those of whole passes.
struct Sequences<'a> {
    name: &'a str,
    model: &'a CausalLm,
    cache: KvCache,
}

/// Sequence in its slot, with the number of tokens that the cache holds.
struct Sequence<'a> {
    slot: Slot,
    tokens: &'a [u32],
    read: usize,
}

impl Sequences<'_> {
    fn admit<'t>(&mut self, tokens: &'t [u32]) -> Sequence<'t> {
        Sequence { slot: self.cache.admit().unwrap(), tokens, read: 0 }
    }

    /// Reads `counts` tokens of each sequence in one pass.
    fn read(&mut self, mut sequences: Vec<&mut Sequence<'_>>, counts: &[usize]) {
        let new = sequences.iter().zip(counts).map(|(sequence, tokens)| (&sequence.tokens[sequence.read..], *tokens));
        let ids: Vec<i32> = new.flat_map(|(rest, count)| &rest[..count]).map(|id| *id as i32).collect();
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &self.model.device());
        let batch = sequences.iter().zip(counts).map(|(sequence, tokens)| (sequence.slot, *tokens));
        let batch: Vec<_> = batch.map(|(slot, tokens)| NewTokens { slot, tokens }).collect();
        for NewTokens { slot, tokens } in &batch {
            assert!(self.cache.reserve(*slot, self.cache.len(*slot) + tokens));
        }
        let (hidden, _) = self.model.forward_cached(ids, &batch, &mut self.cache);
        let logits = values(self.model.logits(hidden));
        let (width, mut start) = (self.model.config().vocab_size, 0);
        for (sequence, count) in sequences.iter_mut().zip(counts) {
            let from = sequence.read;
            sequence.read += count;
            assert_eq!(self.cache.len(sequence.slot), sequence.read);
            let whole = run(self.model, &[sequence.tokens[..sequence.read].to_vec()], SelectionRule::Causal).0;
            let found = &logits[start * width..(start + count) * width];
            let scale = whole.iter().fold(1.0f32, |m, x| m.max(x.abs()));
            let (max, _) = retie_testing::differences(found, &whole[from * width..]);
            assert!(max <= LOGITS * scale, "{}: differs by {max}, the largest is {scale}", self.name);
            start += count;
        }
    }
}

#[test]
fn sequences_of_any_length_are_read_in_one_pass() {
    for (name, model, rows) in models() {
        for cache in caches(&model, 3, rows[0].len()) {
            let mut all = Sequences { name: &name, model: &model, cache };
            let (mut a, mut b) = (all.admit(&rows[0]), all.admit(&rows[1]));
            all.read(vec![&mut a], &[5]);
            // A prompt beside a single token, in another order than their slots.
            all.read(vec![&mut b, &mut a], &[3, 1]);
            let mut c = all.admit(&rows[1][2..]);
            all.read(vec![&mut a, &mut b, &mut c], &[1, 1, 6]);
            all.read(vec![&mut a, &mut b, &mut c], &[1, 1, 1]);
            // The first sequence is evicted, and another one gets its slot.
            let slot = a.slot;
            all.cache.evict(slot);
            let mut d = all.admit(&rows[0][3..]);
            assert_eq!((d.slot, all.cache.num_free_slots(), all.cache.admit()), (slot, 0, None));
            all.read(vec![&mut d, &mut c], &[7, 1]);
            all.read(vec![&mut d, &mut b, &mut c], &[1, 2, 1]);
        }
    }
}

#[test]
fn a_cropped_sequence_continues_from_its_remaining_tokens() {
    for (name, model, rows) in models() {
        for cache in caches(&model, 2, rows[0].len()) {
            let mut all = Sequences { name: &name, model: &model, cache };
            let (mut a, mut b) = (all.admit(&rows[0]), all.admit(&rows[1]));
            all.read(vec![&mut a, &mut b], &[9, 7]);
            all.cache.crop(a.slot, 4);
            // Other tokens after the same prefix.
            let other = [&rows[0][..4], &rows[1][..8]].concat();
            let mut a = Sequence { slot: a.slot, tokens: &other, read: 4 };
            all.read(vec![&mut a, &mut b], &[2, 1]);
            all.read(vec![&mut a, &mut b], &[1, 1]);
        }
    }
}

#[test]
fn sequences_share_blocks_and_copy_what_they_write_over() {
    for (name, model, rows) in models() {
        let [_, cache] = caches(&model, 3, rows[0].len());
        let blocks = cache.blocks().unwrap().count;
        let mut all = Sequences { name: &name, model: &model, cache };
        let mut a = all.admit(&rows[0]);
        all.read(vec![&mut a], &[8]);
        let held: Vec<HeldTokens> = [0..3, 3..6, 6..8].map(|tokens| all.cache.hold(a.slot, tokens)).into();
        assert!(held[0].follows(None) && held[1].follows(Some(&held[0])) && !all.cache.is_last_holder(&held[2]));
        assert_eq!((all.cache.num_free_blocks(), all.cache.num_occupied_blocks()), (blocks - 3, 3));
        // One sequence goes on behind all of it, one behind a part of the last block.
        let (b_tokens, c_tokens) = ([&rows[0][..8], &rows[1][..4]].concat(), [&rows[0][..7], &rows[1][2..7]].concat());
        let admit =
            |all: &mut Sequences<'_>, len| all.cache.admit_holding(&held.iter().collect::<Vec<_>>(), len).unwrap();
        let mut b = Sequence { slot: admit(&mut all, 8), tokens: &b_tokens, read: 8 };
        let mut c = Sequence { slot: admit(&mut all, 7), tokens: &c_tokens, read: 7 };
        assert_eq!(all.cache.num_occupied_blocks(), 3);
        // The first one that writes goes on in the block, the others copy it.
        all.read(vec![&mut a], &[1]);
        assert_eq!(all.cache.num_occupied_blocks(), 3);
        all.read(vec![&mut b, &mut c], &[1, 2]);
        assert_eq!(all.cache.num_occupied_blocks(), 5);
        all.read(vec![&mut a, &mut b, &mut c], &[2, 2, 1]);
        [a.slot, b.slot, c.slot].into_iter().for_each(|slot| all.cache.evict(slot));
        assert_eq!((all.cache.num_free_blocks(), all.cache.num_occupied_blocks()), (blocks - 3, 0));
        assert!(all.cache.is_last_holder(&held[2]));
        // What is held has not changed.
        let mut d = Sequence { slot: admit(&mut all, 8), tokens: &rows[0], read: 8 };
        all.read(vec![&mut d], &[1]);
        all.cache.evict(d.slot);
        held.into_iter().for_each(|held| all.cache.drop_held(held));
        assert_eq!(all.cache.num_free_blocks(), blocks);
    }
}

#[test]
fn equal_sequences_in_the_first_slots_of_a_larger_cache_are_a_grid() {
    for (name, model, rows) in models() {
        for cache in caches(&model, 4, rows[0].len()) {
            let mut all = Sequences { name: &name, model: &model, cache };
            let (mut a, mut b) = (all.admit(&rows[0]), all.admit(&rows[1]));
            all.read(vec![&mut a, &mut b], &[6, 6]);
            all.read(vec![&mut a, &mut b], &[1, 1]);
        }
    }
}

#[test]
#[should_panic(expected = "slot 0 twice in a batch")]
fn a_slot_that_occurs_twice_in_a_batch_is_refused() {
    let (_, model, rows) = models().remove(0);
    let mut cache = KvCache::new(model.config(), 2, 8, &model.device());
    let slot = cache.admit().unwrap();
    let batch = [1, 1].map(|tokens| NewTokens { slot, tokens });
    let ids = Tensor::<1, Int>::from_ints([rows[0][0] as i32, 1], &model.device());
    let _ = model.forward_cached(ids, &batch, &mut cache);
}
