//! Prefix reuse: a sequence does not read the first tokens of its prompt again if a slot holds
//! their keys and values, of a sequence that has ended or of one that is active.
//!
//! Keys and values of a token follow from the tokens up to it, from when they leave the loop, and
//! from the model. So they are reused by sequences with the same first tokens, the same exits and
//! the same salt; tokens are compared themselves. A free slot is taken over where all that it holds
//! is reused, else they are copied into the slot that has been free for longest.
//!
//! This is for caches that have rows for each slot; those in blocks share the blocks (`held`).

use crate::{
    Engine, EngineError, Request, SequenceId, exits,
    held::{HeldIndex, Salt},
    memory::{Demand, Wanted},
    sequence::Sequence,
};
use retie_model::{ExitLimit, Slot};

/// Fewest tokens that are reused: fewer are read as fast, and a slot may hold many for another
/// sequence.
const FEWEST: usize = 16;

/// What free slots hold.
#[derive(Debug)]
pub(crate) struct Prefixes {
    slots: Vec<Option<Held>>,
    /// Number of sequences that have ended.
    clock: u64,
    counts: PrefixCounts,
}

/// Tokens of prompts, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixCounts {
    /// Tokens of the prompts of all sequences.
    pub asked: u64,
    /// Those of them that were not read again.
    pub reused: u64,
}

#[derive(Debug)]
struct Held {
    tokens: Vec<u32>,
    exits: ExitLimit,
    salt: String,
    since: u64,
}

/// Where the first tokens of a sequence come from.
#[derive(Clone, Copy, Debug)]
struct Found {
    slot: Slot,
    len: usize,
}

impl Engine {
    /// Lets sequences reuse the keys and values of first tokens. Log-probabilities and recursion
    /// counts of the tokens of a prompt are read: sequences that ask for them reuse nothing, and
    /// neither do those of a model whose caches cannot be cut back.
    #[must_use]
    pub fn with_prefix_reuse(mut self) -> Self {
        let slots = (0..self.options.num_slots).map(|_| None).collect();
        let is_possible = self.cache.holds_prefixes();
        match (&mut self.memory, self.cache.blocks()) {
            (Some(memory), Some(sizes)) => memory.held = is_possible.then(|| HeldIndex::new(sizes)),
            _ => self.prefixes = is_possible.then(|| Prefixes { slots, clock: 0, counts: PrefixCounts::default() }),
        }
        self
    }

    /// Counts of prefix reuse, if it is on.
    #[must_use]
    pub fn prefix_counts(&self) -> Option<PrefixCounts> {
        let of_blocks = self.memory.as_ref().and_then(|memory| memory.held.as_ref());
        of_blocks.map(|held| held.counts).or(self.prefixes.as_ref().map(|prefixes| prefixes.counts))
    }

    /// Number of tokens that an active sequence did not have to read.
    #[must_use]
    pub fn num_reused(&self, id: SequenceId) -> usize {
        let sequence = self.active().find(|sequence| sequence.id == id);
        sequence.map_or(0, |sequence| sequence.num_reused)
    }

    /// Forgets what free slots hold.
    pub(crate) fn forget_prefixes(&mut self) {
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.slots.fill_with(|| None);
        }
        if let Some((held, sizes)) =
            self.memory.as_mut().and_then(|memory| memory.held.as_mut()).zip(self.cache.blocks())
        {
            *held = HeldIndex::new(sizes);
        }
    }

    /// A slot for the sequence of `request`, and the number of its tokens that are there already.
    pub(crate) fn place(&mut self, request: &Request) -> Result<(Slot, usize), EngineError> {
        let num_slots = self.options.num_slots;
        let none = EngineError::NoFreeSlot { num_slots };
        if self.memory.is_some() {
            return self.place_in_blocks(request);
        }
        let Some(prefixes) = &self.prefixes else { return Ok((self.cache.admit().ok_or(none)?, 0)) };
        let since = |slot: &Slot| prefixes.slots[slot.index()].as_ref().map_or(0, |held| held.since);
        let mut free: Vec<Slot> = self.cache.free_slots().collect();
        free.sort_by_key(|slot| since(slot));
        let oldest = *free.first().ok_or(none)?;
        let found = self.longest(request).filter(|found| found.len >= FEWEST);
        let (slot, reused) = match found {
            None => (oldest, 0),
            Some(Found { slot, len }) => {
                let copies = self.cache.copies_prefixes();
                let is_free = free.contains(&slot);
                let other = free.iter().copied().find(|other| *other != slot);
                // All of it is reused, or there is no other place.
                let takes_over = is_free && (len == self.cache.held(slot) || other.is_none() || !copies);
                match other.filter(|_| copies && !takes_over) {
                    Some(other) => {
                        self.cache.copy_prefix(slot, other, len);
                        (other, len)
                    }
                    None if takes_over => (slot, len),
                    None => (oldest, 0),
                }
            }
        };
        self.cache.admit_at(slot, reused);
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.slots[slot.index()] = None;
            prefixes.counts.asked += request.prompt.len() as u64;
            prefixes.counts.reused += reused as u64;
        }
        Ok((slot, reused))
    }

    /// [`Engine::place`] in a cache in blocks.
    fn place_in_blocks(&mut self, request: &Request) -> Result<(Slot, usize), EngineError> {
        let num_slots = self.options.num_slots;
        let salt = Salt::new(exits::limit(request), &request.salt);
        let wanted = wanted(request, &salt);
        let none = EngineError::NoFreeSlot { num_slots };
        let (cache, Some(memory)) = (&mut self.cache, &mut self.memory) else { return Err(none) };
        if cache.num_free_slots() == 0 {
            return Err(none);
        }
        let Demand { needed, available } = memory.demand(cache, &self.sequences, &wanted);
        if memory.has_waiting() {
            return Err(EngineError::NoFreeBlocks { needed, available: 0 });
        }
        let placed = memory.place(cache, &self.sequences, &wanted);
        let (slot, reused) = placed.ok_or(EngineError::NoFreeBlocks { needed, available })?;
        if let Some(held) = &mut memory.held {
            held.counts.asked += request.prompt.len() as u64;
            held.counts.reused += reused as u64;
        }
        Ok((slot, reused))
    }

    /// The slot with the most first tokens of `request`; of equal ones a free one.
    fn longest(&self, request: &Request) -> Option<Found> {
        let prefixes = self.prefixes.as_ref()?;
        // The last token is read for its logits.
        let most = request.prompt.len() - 1;
        if request.prompt_logprobs.is_some() || request.recursion_counts {
            return None;
        }
        let (exits, salt) = (exits::limit(request), request.salt.as_str());
        let common = |tokens: &[u32]| {
            let prompt = &request.prompt[..most];
            prompt.iter().zip(tokens).take_while(|(a, b)| a == b).count()
        };
        let free = self.cache.free_slots().filter_map(|slot| {
            let held = prefixes.slots[slot.index()].as_ref()?;
            (held.exits == exits && held.salt == salt).then(|| Found { slot, len: common(&held.tokens) })
        });
        let active = self.sequences.iter().flatten().filter(|_| self.cache.copies_prefixes());
        let active = active.filter(|sequence| sequence.exits == exits && sequence.salt == salt);
        let active = active.map(|sequence| Found { slot: sequence.slot, len: common(self.shared(sequence)) });
        free.chain(active).reduce(|best, found| if found.len > best.len { found } else { best })
    }

    /// The tokens of a sequence whose keys and values others may reuse: those that have been read;
    /// of a trace, which forces exits of new tokens, those of the prompt.
    fn shared<'a>(&self, sequence: &'a Sequence) -> &'a [u32] {
        let is_forced = self.looped.as_ref().is_some_and(|looped| looped.trace.is_some());
        let most = if is_forced { sequence.num_prompt_tokens } else { usize::MAX };
        &sequence.tokens[..sequence.num_read.min(most)]
    }

    /// Frees the slot of a sequence that has ended.
    pub(crate) fn free(&mut self, sequence: &Sequence) {
        if let Some(memory) = &mut self.memory {
            return memory.free(&mut self.cache, sequence);
        }
        let slot = sequence.slot;
        let tokens = self.shared(sequence).to_vec();
        let Some(prefixes) = &mut self.prefixes else { return self.cache.evict(slot) };
        self.cache.release(slot, tokens.len());
        prefixes.clock += 1;
        let (exits, salt, since) = (sequence.exits, sequence.salt.clone(), prefixes.clock);
        prefixes.slots[slot.index()] = Some(Held { tokens, exits, salt, since });
    }
}

/// What a request needs to get a slot.
pub(crate) fn wanted<'a>(request: &'a Request, salt: &'a Salt) -> Wanted<'a> {
    // What is reported about a token of the prompt is known when it is read; the last token is read
    // for its logits.
    let reports = request.prompt_logprobs.is_some() || request.recursion_counts;
    let reusable = if reports { 0 } else { request.prompt.len().saturating_sub(1) };
    Wanted { salt, tokens: &request.prompt, reusable }
}
