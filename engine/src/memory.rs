//! Memory of an engine whose KV cache is in blocks: who gets them, and who gives them up.
//!
//! A sequence gets a slot when there are blocks for its prompt, beside one for each sequence that
//! runs and can still grow. It gets further blocks as it decodes. When there are none, the tokens
//! that are held for later sequences are given up first, those that have not been used for longest;
//! then the youngest sequence is preempted: it waits, before all requests that have not begun, and
//! reads its tokens again (vLLM's recomputation, <https://arxiv.org/abs/2309.06180>, §4.5). Paused
//! sequences are preempted before others. So the oldest that is not paused always goes on, as the
//! cache has blocks for one sequence of any length.

use crate::{
    held::{Found, HeldIndex, Salt},
    sequence::Sequence,
};
use retie_model::{KvBlocks, KvCache, Slot};

/// Blocks of the KV cache of an engine, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvUsage {
    /// Number of blocks.
    pub blocks: usize,
    /// Blocks that sequences have.
    pub occupied: usize,
    /// Other blocks, which hold tokens for later sequences.
    pub held: usize,
    /// Blocks that nobody has.
    pub free: usize,
    /// Number of times that a sequence gave up its blocks for another one.
    pub preemptions: u64,
}

/// Sequences without a slot, and the tokens that are held beside those with one.
#[derive(Debug)]
pub(crate) struct Memory {
    sizes: KvBlocks,
    /// Held tokens, if sequences reuse them.
    pub held: Option<HeldIndex>,
    /// Sequences that gave up their slot, the oldest first.
    pub preempted: Vec<Sequence>,
    num_preemptions: u64,
    /// True if new tokens are forced to leave the loop early: only those of prompts are held.
    pub holds_prompts: bool,
}

/// What a sequence needs to get a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub salt: &'a Salt,
    pub tokens: &'a [u32],
    /// Number of first tokens that it may reuse.
    pub reusable: usize,
}

/// Blocks that a sequence needs to get a slot, and those that it can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    pub needed: usize,
    pub available: usize,
}

/// Sequences by slot.
type Running = [Option<Sequence>];

impl Memory {
    pub fn new(sizes: KvBlocks) -> Self {
        Self { sizes, held: None, preempted: Vec::new(), num_preemptions: 0, holds_prompts: false }
    }

    /// Blocks of `cache`.
    pub fn usage(&self, cache: &KvCache) -> KvUsage {
        let (blocks, occupied, free) = (self.sizes.count, cache.num_occupied_blocks(), cache.num_free_blocks());
        KvUsage { blocks, occupied, held: blocks - occupied - free, free, preemptions: self.num_preemptions }
    }

    /// True if a sequence that is not paused waits for a slot.
    pub fn has_waiting(&self) -> bool {
        self.preempted.iter().any(|sequence| !sequence.paused)
    }

    fn find(&self, wanted: &Wanted<'_>) -> Found {
        let most = wanted.reusable.min(wanted.tokens.len());
        self.held.as_ref().map(|held| held.find(wanted.salt, &wanted.tokens[..most])).unwrap_or_default()
    }

    /// Blocks for a sequence and its next token, of those that are there for it.
    pub fn demand(&self, cache: &KvCache, running: &Running, wanted: &Wanted<'_>) -> Demand {
        self.demand_with(cache, running, (wanted, &self.find(wanted)))
    }

    fn demand_with(&self, cache: &KvCache, running: &Running, (wanted, found): (&Wanted<'_>, &Found)) -> Demand {
        let [shared, unoccupied] = self.held.as_ref().map_or([0, 0], |held| held.num_whole(cache, found));
        let grows = |sequence: &&Sequence| {
            cache.num_blocks(sequence.slot) < self.sizes.of(sequence.most_tokens(cache.capacity()))
        };
        let growing = running.iter().flatten().filter(grows).count();
        let all = self.sizes.of((wanted.tokens.len() + 1).min(cache.capacity()));
        let unavailable = cache.num_occupied_blocks() + unoccupied + growing;
        Demand { needed: all - shared, available: self.sizes.count.saturating_sub(unavailable) }
    }

    /// Gives a sequence a slot and the blocks for its tokens, of which some are there already.
    /// `None` if there is no slot, or too few blocks.
    pub fn place(&mut self, cache: &mut KvCache, running: &Running, wanted: &Wanted<'_>) -> Option<(Slot, usize)> {
        let found = self.find(wanted);
        let Demand { needed, available } = self.demand_with(cache, running, (wanted, &found));
        if needed > available {
            return None;
        }
        let slot = match &mut self.held {
            Some(held) => held.admit(cache, &found)?,
            None => cache.admit()?,
        };
        // The last block that is shared has to be copied, and may be the one that is missing.
        for reused in [found.len, found.len / self.sizes.tokens * self.sizes.tokens] {
            cache.crop(slot, reused);
            if self.reserve(cache, slot, wanted.tokens.len()) {
                return Some((slot, reused));
            }
        }
        cache.evict(slot);
        None
    }

    /// Gives a sequence the blocks for `len` tokens; for them held tokens are given up. False if
    /// there are too few.
    pub fn reserve(&mut self, cache: &mut KvCache, slot: Slot, len: usize) -> bool {
        while !cache.reserve(slot, len) {
            if !self.held.as_mut().is_some_and(|held| held.give_up(cache)) {
                return false;
            }
        }
        true
    }

    /// Frees the slot of a sequence, and goes on to hold its tokens.
    pub fn free(&mut self, cache: &mut KvCache, sequence: &Sequence) {
        self.hold(cache, sequence, true);
        cache.evict(sequence.slot);
    }

    /// Holds the tokens of a sequence that have been read: whole blocks, and with `rest` what is
    /// behind them, which ends it.
    pub fn hold(&mut self, cache: &mut KvCache, sequence: &Sequence, rest: bool) {
        let Some(held) = &mut self.held else { return };
        let most = if self.holds_prompts { sequence.num_prompt_tokens } else { usize::MAX };
        let tokens = &sequence.tokens[..sequence.num_read.min(most)];
        if rest {
            // Tokens on their way are not there as a whole.
            cache.crop(sequence.slot, tokens.len());
        }
        held.hold(cache, sequence.slot, &sequence.whole_salt(), (tokens, rest));
    }

    /// Holds the blocks that `tokens` more tokens of a sequence have filled.
    pub fn hold_filled(&mut self, cache: &mut KvCache, sequence: &Sequence, tokens: usize) {
        if sequence.num_read / self.sizes.tokens > (sequence.num_read - tokens) / self.sizes.tokens {
            self.hold(cache, sequence, false);
        }
    }

    /// Gives preempted sequences their slots back, and every sequence that decodes a block for its
    /// next tokens, the oldest first. Returns the slots of sequences that were preempted for that.
    pub fn make_room(&mut self, cache: &mut KvCache, running: &mut Running) -> Vec<Slot> {
        let mut preempted = Vec::new();
        while let Some(index) = self.preempted.iter().position(|sequence| !sequence.paused) {
            let mut sequence = self.preempted.remove(index);
            let salt = sequence.whole_salt();
            let wanted = Wanted { salt: &salt, tokens: &sequence.tokens, reusable: sequence.num_reusable() };
            if let Some((slot, read)) = self.place(cache, running, &wanted) {
                sequence.continue_at(slot, read);
                running[slot.index()] = Some(sequence);
                continue;
            }
            self.preempted.insert(index, sequence);
            // Paused sequences do not keep all others waiting.
            let only_paused = running.iter().flatten().all(|sequence| sequence.paused);
            match victim(running).filter(|_| only_paused) {
                Some(slot) => preempted.push(self.preempt(cache, running, slot)),
                None => break,
            }
        }
        let decoding = running.iter().flatten().filter(|sequence| !sequence.paused && sequence.decodes());
        let mut decoding: Vec<_> = decoding.map(|sequence| (sequence.id, sequence.slot)).collect();
        decoding.sort_unstable();
        for (id, slot) in decoding {
            // It may have been preempted for an earlier one.
            while let Some(sequence) = running[slot.index()].as_ref().filter(|sequence| sequence.id == id) {
                let len = sequence.tokens.len();
                if self.reserve(cache, slot, len) {
                    break;
                }
                let Some(victim) = victim(running) else { break };
                preempted.push(self.preempt(cache, running, victim));
            }
        }
        preempted
    }

    /// Takes a sequence's slot.
    fn preempt(&mut self, cache: &mut KvCache, running: &mut Running, slot: Slot) -> Slot {
        if let Some(mut sequence) = running[slot.index()].take() {
            self.free(cache, &sequence);
            sequence.give_up();
            let at = self.preempted.partition_point(|other| other.id < sequence.id);
            self.preempted.insert(at, sequence);
            self.num_preemptions += 1;
        }
        slot
    }
}

/// Slot of the sequence that is preempted next: a paused one if there is one, and of these the
/// youngest.
fn victim(running: &Running) -> Option<Slot> {
    running.iter().flatten().max_by_key(|sequence| (sequence.paused, sequence.id)).map(|sequence| sequence.slot)
}
