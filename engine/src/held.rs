//! Tokens that are held in blocks of the KV cache, for sequences that begin with them.
//!
//! Keys and values of a token follow from the tokens up to it, from when they leave the loop, and
//! from the model. So a block is found by what is before it and by its own tokens: the block
//! before, or what sequences have in common from the start (exits and salt). A hash map finds it,
//! and compares all of that: two blocks with one hash are two blocks.

use crate::prefixes::PrefixCounts;
use retie_model::{ExitLimit, HeldTokens, KvBlocks, KvCache, Slot};
use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

/// Fewest tokens that are reused: fewer are read as fast.
const FEWEST: usize = 16;

/// What sequences that share tokens have in common, beside these.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Salt {
    /// Bits of the exit threshold.
    threshold: u32,
    max_recursions: usize,
    salt: String,
}

impl Salt {
    pub fn new(exits: ExitLimit, salt: &str) -> Self {
        let ExitLimit { threshold, max_recursions } = exits;
        Self { threshold: threshold.to_bits(), max_recursions, salt: salt.to_owned() }
    }
}

/// What is before a block.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Before {
    Start(Salt),
    Block(u64),
}

/// A block of tokens.
#[derive(Debug)]
struct Held {
    before: Before,
    tokens: Vec<u32>,
    block: HeldTokens,
    /// Number of blocks before it.
    depth: usize,
    /// When it was used last.
    used: u64,
}

/// Held tokens that a sequence begins with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// The blocks, of which the last may have further tokens.
    blocks: Vec<u64>,
    /// Number of tokens.
    pub len: usize,
}

/// Held tokens.
#[derive(Debug)]
pub(crate) struct HeldIndex {
    sizes: KvBlocks,
    blocks: HashMap<u64, Held>,
    /// Whole blocks by what is before them and their tokens.
    whole: HashMap<(Before, Vec<u32>), u64>,
    /// Blocks that follow one another, whole and in part.
    after: HashMap<Before, Vec<u64>>,
    /// By their last use; of equal ones later blocks first.
    by_use: BTreeSet<(u64, Reverse<usize>, u64)>,
    clock: u64,
    num_inserted: u64,
    pub counts: PrefixCounts,
}

impl HeldIndex {
    pub fn new(sizes: KvBlocks) -> Self {
        Self {
            sizes,
            blocks: HashMap::new(),
            whole: HashMap::new(),
            after: HashMap::new(),
            by_use: BTreeSet::new(),
            clock: 0,
            num_inserted: 0,
            counts: PrefixCounts::default(),
        }
    }

    /// Held tokens that `tokens` begin with.
    pub fn find(&self, salt: &Salt, tokens: &[u32]) -> Found {
        let (mut found, mut before) = (Found::default(), Before::Start(salt.clone()));
        for part in tokens.chunks(self.sizes.tokens) {
            if let Some(id) = self.whole_block(&before, part) {
                found.blocks.push(id);
                found.len += part.len();
                before = Before::Block(id);
                continue;
            }
            let common = |id: &u64| part.iter().zip(&self.blocks[id].tokens).take_while(|(a, b)| a == b).count();
            let longest = self.following(&before).iter().max_by_key(|id| common(id));
            if let Some((id, common)) = longest.map(|id| (*id, common(id))).filter(|(_, common)| *common > 0) {
                found.blocks.push(id);
                found.len += common;
            }
            break;
        }
        if found.len < FEWEST { Found::default() } else { found }
    }

    fn following(&self, before: &Before) -> &[u64] {
        self.after.get(before).map_or(&[], Vec::as_slice)
    }

    fn whole_block(&self, before: &Before, tokens: &[u32]) -> Option<u64> {
        let is_whole = tokens.len() == self.sizes.tokens;
        is_whole.then(|| self.whole.get(&(before.clone(), tokens.to_vec())).copied()).flatten()
    }

    /// Number of blocks that are found whole, and of these that no sequence has.
    pub fn num_whole(&self, cache: &KvCache, found: &Found) -> [usize; 2] {
        let whole = &found.blocks[..found.len / self.sizes.tokens];
        [whole.len(), whole.iter().filter(|id| cache.is_last_holder(&self.blocks[id].block)).count()]
    }

    /// Gives a free slot the tokens that were found.
    pub fn admit(&mut self, cache: &mut KvCache, found: &Found) -> Option<Slot> {
        self.clock += 1;
        found.blocks.iter().for_each(|id| self.touch(*id));
        let held: Vec<&HeldTokens> = found.blocks.iter().map(|id| &self.blocks[id].block).collect();
        cache.admit_holding(&held, found.len)
    }

    fn touch(&mut self, id: u64) {
        let clock = self.clock;
        if let Some(held) = self.blocks.get_mut(&id) {
            self.by_use.remove(&(held.used, Reverse(held.depth), id));
            held.used = clock;
            self.by_use.insert((held.used, Reverse(held.depth), id));
        }
    }

    /// Holds the first `tokens` of the sequence in a slot: its whole blocks, and with `rest` what
    /// is behind them.
    pub fn hold(&mut self, cache: &mut KvCache, slot: Slot, salt: &Salt, (tokens, rest): (&[u32], bool)) {
        self.clock += 1;
        let (mut before, mut start) = (Before::Start(salt.clone()), 0);
        for part in tokens.chunks(self.sizes.tokens) {
            let is_whole = part.len() == self.sizes.tokens;
            let id = match self.whole_block(&before, part) {
                Some(id) => Some(id),
                None if is_whole || rest => self.insert(cache, slot, &before, (start, part)),
                None => None,
            };
            let Some(id) = id else { return };
            self.touch(id);
            before = Before::Block(id);
            start += part.len();
        }
    }

    /// Holds a block of a slot that is not held yet. `None` if what is held has all of it, or was
    /// read otherwise.
    fn insert(
        &mut self,
        cache: &mut KvCache,
        slot: Slot,
        before: &Before,
        (start, tokens): (usize, &[u32]),
    ) -> Option<u64> {
        let others = self.following(before);
        if others.iter().any(|id| self.blocks[id].tokens.starts_with(tokens)) {
            return None;
        }
        let begins: Vec<u64> =
            others.iter().copied().filter(|id| tokens.starts_with(&self.blocks[id].tokens)).collect();
        let block = cache.hold(slot, start..start + tokens.len());
        let last = match before {
            Before::Start(_) => None,
            Before::Block(id) => self.blocks.get(id),
        };
        if !block.follows(last.map(|last| &last.block)) {
            cache.drop_held(block);
            return None;
        }
        let (id, depth) = (self.num_inserted, last.map_or(0, |last| last.depth + 1));
        self.num_inserted += 1;
        // What was held of it in part is not needed any more.
        begins.into_iter().for_each(|id| self.remove(cache, id));
        if tokens.len() == self.sizes.tokens {
            self.whole.insert((before.clone(), tokens.to_vec()), id);
        }
        self.after.entry(before.clone()).or_default().push(id);
        self.by_use.insert((self.clock, Reverse(depth), id));
        let held = Held { before: before.clone(), tokens: tokens.to_vec(), block, depth, used: self.clock };
        self.blocks.insert(id, held);
        Some(id)
    }

    /// Gives up the block that has not been used for longest, of those that no sequence has; false
    /// if there is none.
    pub fn give_up(&mut self, cache: &mut KvCache) -> bool {
        let is_free = |id: &u64| cache.is_last_holder(&self.blocks[id].block);
        let oldest = self.by_use.iter().map(|(.., id)| *id).find(is_free);
        oldest.map(|id| self.remove(cache, id)).is_some()
    }

    /// Drops a block, and those that follow it, which nothing finds then.
    fn remove(&mut self, cache: &mut KvCache, id: u64) {
        let mut ids = vec![id];
        while let Some(id) = ids.pop() {
            let Some(Held { before, tokens, block, depth, used }) = self.blocks.remove(&id) else { continue };
            ids.extend(self.after.remove(&Before::Block(id)).unwrap_or_default());
            self.by_use.remove(&(used, Reverse(depth), id));
            if let Some(others) = self.after.get_mut(&before) {
                others.retain(|other| *other != id);
                if others.is_empty() {
                    self.after.remove(&before);
                }
            }
            if tokens.len() == self.sizes.tokens {
                self.whole.remove(&(before, tokens));
            }
            cache.drop_held(block);
        }
    }
}
