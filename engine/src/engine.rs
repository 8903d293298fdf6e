//! The engine: a model, its KV cache and the active sequences.

use crate::{
    EngineError, ExitTrace, Progress, Request, Scheduler, SequenceId,
    exits::{self, ExitOptions, row_exits},
    held::{HeldIndex, Salt},
    looped::{Finished, Looped, Passes},
    memory::{KvUsage, Memory},
    pipeline::Unit,
    prefixes::{Prefixes, wanted},
    report::Computed,
    schedule::schedule,
    sequence::Sequence,
    speculation::Speculation,
};
use burn::tensor::{Device, Tensor};
use retie_config::{ModelConfig, SkippedKv};
use retie_model::{
    CapturedDecoding, CausalLm, KvBlocks, KvCache, NewTokens, RoutingTrace, Slot, Span, TokenIds, is_host,
};

/// Tokens of a block of the KV cache, where nothing else is said: half of a last block is empty in
/// the mean, and whole ones are shared.
pub const BLOCK_TOKENS: usize = 32;

/// Sizes of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Number of KV-cache slots: the most sequences that run at once.
    pub num_slots: usize,
    /// Maximum length of a sequence in tokens, prompt and new tokens together; at most the model's
    /// context.
    pub context: usize,
    /// Token budget of a step, at least `num_slots`: longer prompts are read in chunks.
    pub max_step_tokens: usize,
}

/// Generates many sequences in one batch.
#[derive(Debug)]
pub struct Engine {
    pub(crate) model: CausalLm,
    pub(crate) device: Device,
    pub(crate) cache: KvCache,
    pub(crate) options: EngineOptions,
    /// The sequence of each slot.
    pub(crate) sequences: Vec<Option<Sequence>>,
    num_admitted: u64,
    /// The parts of the stack, unless the scheduler is `full`.
    pub(crate) looped: Option<Looped>,
    pub(crate) speculation: Option<Speculation>,
    pub(crate) exits: Option<ExitOptions>,
    /// What free slots hold, if sequences reuse it.
    pub(crate) prefixes: Option<Prefixes>,
    /// Decoding of single tokens, if it is captured.
    captured: Option<CapturedDecoding>,
    /// Who has the blocks of the cache, if it is in blocks.
    pub(crate) memory: Option<Memory>,
    /// Policy for skipped recursions that the cache was made for.
    policy: Option<SkippedKv>,
}

impl Engine {
    /// An engine without sequences, on the device of `model`.
    ///
    /// # Errors
    /// When an option is out of its range.
    pub fn new(model: CausalLm, options: EngineOptions) -> Result<Self, EngineError> {
        let EngineOptions { num_slots, context, max_step_tokens } = options;
        let positions = model.config().max_position_embeddings;
        let check = |name, found: usize, least: usize, most: usize, expected: String| {
            let found_text = found.to_string();
            let wrong = EngineError::OutOfRange { name, found: found_text, expected };
            if (least..=most).contains(&found) { Ok(()) } else { Err(wrong) }
        };
        check("num_slots", num_slots, 1, usize::MAX, "at least 1".to_owned())?;
        check("context", context, 1, positions, format!("1 to {positions}, the context of the model"))?;
        let one_each = format!("at least {num_slots}, one for each slot");
        check("max_step_tokens", max_step_tokens, num_slots, usize::MAX, one_each)?;
        let device = model.device();
        let cache = KvCache::new(model.config(), num_slots, context, &device);
        let captured = CapturedDecoding::new(&model);
        let sequences = (0..num_slots).map(|_| None).collect();
        Ok(Self {
            model,
            device,
            cache,
            options,
            sequences,
            num_admitted: 0,
            looped: None,
            speculation: None,
            exits: None,
            prefixes: None,
            captured,
            memory: None,
            policy: None,
        })
    }

    /// The engine with a KV cache in blocks that all sequences share, in place of one with rows for
    /// `context` tokens in each slot. Where they do not suffice, the youngest sequence gives up its
    /// blocks and reads its tokens again later.
    ///
    /// # Errors
    /// When the cache would be on a device, or a block has no token, or there are fewer blocks than
    /// a sequence of `context` tokens needs.
    ///
    /// # Panics
    /// When sequences have been admitted.
    pub fn with_kv_blocks(mut self, sizes: KvBlocks) -> Result<Self, EngineError> {
        assert!(self.is_idle(), "an engine gets its blocks before its sequences");
        if !is_host(&self.device) {
            return Err(EngineError::NoBlocks);
        }
        let wrong = |name, found: usize, expected| EngineError::OutOfRange { name, found: found.to_string(), expected };
        if sizes.tokens == 0 {
            return Err(wrong("block_tokens", 0, "at least 1".to_owned()));
        }
        let context = self.options.context;
        let least = sizes.of(context);
        if sizes.count < least {
            let expected =
                format!("at least {least} of {} tokens, for a sequence of the context of {context}", sizes.tokens);
            return Err(wrong("num_blocks", sizes.count, expected));
        }
        let mut memory = Memory::new(sizes);
        memory.held = self.prefixes.take().map(|_| HeldIndex::new(sizes));
        memory.holds_prompts = self.looped.as_ref().is_some_and(|looped| looped.trace.is_some());
        self.memory = Some(memory);
        self.make_cache(Some(sizes));
        Ok(self)
    }

    /// [`Engine::with_kv_blocks`] of [`BLOCK_TOKENS`] tokens: as many as `tokens` tokens need.
    ///
    /// # Errors
    /// When the cache would be on a device, or has less room than a sequence of the context needs.
    pub fn with_kv_tokens(self, tokens: usize) -> Result<Self, EngineError> {
        let context = self.options.context;
        if tokens < context {
            let expected = format!("at least {context}, a sequence of the whole context");
            return Err(EngineError::OutOfRange { name: "kv_tokens", found: tokens.to_string(), expected });
        }
        self.with_kv_blocks(KvBlocks { tokens: BLOCK_TOKENS, count: tokens.div_ceil(BLOCK_TOKENS) })
    }

    /// Replaces the cache, which is empty, by one for a policy for skipped recursions.
    pub(crate) fn make_cache_for(&mut self, kv: SkippedKv) {
        self.policy = Some(kv);
        self.make_cache(self.cache.blocks());
        self.forget_prefixes();
    }

    fn make_cache(&mut self, blocks: Option<KvBlocks>) {
        let (config, EngineOptions { num_slots, context, .. }) = (self.model.config(), self.options);
        self.cache = match (blocks, self.policy) {
            (Some(blocks), policy) => KvCache::in_blocks(config, (num_slots, context), &self.device, policy, blocks),
            (None, Some(kv)) => KvCache::for_exits(config, num_slots, context, &self.device, kv),
            (None, None) => KvCache::new(config, num_slots, context, &self.device),
        };
    }

    /// The engine with another scheduler, and with forced exits of new tokens, if a trace is given.
    ///
    /// # Errors
    /// The model has no parts that tokens could go through at their own pace, or fewer recursions
    /// than the trace; or the engine speculates; or a trace is given to `full`, which runs every
    /// recursion.
    ///
    /// # Panics
    /// When sequences have been admitted.
    pub fn with_scheduler(mut self, scheduler: Scheduler, trace: Option<ExitTrace>) -> Result<Self, EngineError> {
        assert!(self.is_idle(), "an engine gets its scheduler before its sequences");
        self.looped = match scheduler {
            Scheduler::Full if trace.is_some() => return Err(EngineError::TraceInFull),
            Scheduler::Full => None,
            _ => {
                let name = scheduler.name();
                if self.speculation.is_some() {
                    return Err(EngineError::no_drafts_with(scheduler));
                }
                let no_loop = |reason| EngineError::NoLoop { scheduler: name, reason };
                let parts = self.model.loop_parts().map_err(no_loop)?;
                let (found, expected) = (trace.iter().flat_map(ExitTrace::counts).max(), parts.recursions.len());
                if let Some(found) = found.copied().filter(|found| *found > expected) {
                    return Err(EngineError::TraceTooDeep { found, expected });
                }
                if trace.is_some() && self.exits.is_none() {
                    self.make_cache_for(self.model.default_skipped_kv());
                }
                if let Some(memory) = &mut self.memory {
                    memory.holds_prompts = trace.is_some();
                }
                Some(Looped::new(parts, scheduler, trace))
            }
        };
        Ok(self)
    }

    /// Starts a sequence: the next steps read its prompt.
    ///
    /// # Errors
    /// When there is no free slot or too few blocks, the prompt is empty, has unknown tokens or is
    /// too long, or a value of the request is out of its range.
    pub fn admit(&mut self, request: Request) -> Result<SequenceId, EngineError> {
        request.check(self.model.config().vocab_size, self.options.context)?;
        self.check_exits(&request)?;
        let (slot, reused) = self.place(&request)?;
        let id = SequenceId(self.num_admitted);
        self.num_admitted += 1;
        let mut sequence = Sequence::new(id, slot, request);
        (sequence.num_reused, sequence.num_read, sequence.num_started) = (reused, reused, reused);
        self.sequences[slot.index()] = Some(sequence);
        Ok(id)
    }

    /// True if there is a slot for `request`, and memory for its prompt.
    #[must_use]
    pub fn has_room_for(&self, request: &Request) -> bool {
        let has_blocks = self.memory.as_ref().is_none_or(|memory| {
            let salt = Salt::new(exits::limit(request), &request.salt);
            let demand = memory.demand(&self.cache, &self.sequences, &wanted(request, &salt));
            !memory.has_waiting() && demand.needed <= demand.available
        });
        self.num_free_slots() > 0 && has_blocks
    }

    /// Ends a sequence; returns true if it was active.
    pub fn evict(&mut self, id: SequenceId) -> bool {
        if let Some(memory) = &mut self.memory
            && let Some(index) = memory.preempted.iter().position(|sequence| sequence.id == id)
        {
            memory.preempted.remove(index);
            return true;
        }
        let found = self.sequences.iter_mut().find_map(|place| place.take_if(|sequence| sequence.id == id));
        if let Some(sequence) = &found {
            self.free(sequence);
            if let Some(looped) = &mut self.looped {
                looped.drop_slot(sequence.slot);
            }
        }
        found.is_some()
    }

    /// Leaves a sequence out of the next steps, until [`Engine::resume`]. It keeps its slot, and
    /// its tokens are those of a sequence that was never paused. Returns true if it is active.
    pub fn pause(&mut self, id: SequenceId) -> bool {
        self.set_paused(id, true)
    }

    /// Ends the pause of a sequence; returns true if it is active.
    pub fn resume(&mut self, id: SequenceId) -> bool {
        self.set_paused(id, false)
    }

    fn set_paused(&mut self, id: SequenceId, paused: bool) -> bool {
        let preempted = self.memory.iter_mut().flat_map(|memory| &mut memory.preempted);
        let found = self.sequences.iter_mut().flatten().chain(preempted).find(|sequence| sequence.id == id);
        found.map(|sequence| sequence.paused = paused).is_some()
    }

    /// Sequences that have not ended: those with a slot, and those that gave theirs up.
    pub(crate) fn active(&self) -> impl Iterator<Item = &Sequence> {
        let preempted = self.memory.iter().flat_map(|memory| &memory.preempted);
        self.sequences.iter().flatten().chain(preempted)
    }

    /// Sees to it that there are blocks for the tokens that start next. Returns the slots of
    /// sequences that gave up theirs.
    fn make_room(&mut self) -> Vec<Slot> {
        let Some(memory) = &mut self.memory else { return Vec::new() };
        memory.make_room(&mut self.cache, &mut self.sequences)
    }

    /// Runs forward passes over a token of every sequence that decodes and over parts of prompts,
    /// until a sequence makes progress, and samples a token for every sequence that has been read
    /// to its end. Returns the progress of each sequence whose tokens have been read, by slot;
    /// nothing if no sequence is active or all are paused. A speculative step can have several new
    /// tokens of its sequence, in order. A sequence whose logits are no numbers fails, and the
    /// others go on.
    pub fn step(&mut self) -> Vec<Progress> {
        if let Some(looped) = self.looped.take() {
            return self.step_looped(looped);
        }
        self.make_room();
        match self.speculative_slot() {
            Some(slot) => self.step_speculatively(slot),
            None => self.step_plainly(),
        }
    }

    /// [`Engine::step`] in one pass over the whole stack, without speculation.
    pub(crate) fn step_plainly(&mut self) -> Vec<Progress> {
        let batch = schedule(self.sequences.iter().flatten(), self.options.max_step_tokens, 0);
        if batch.is_empty() {
            return Vec::new();
        }
        let ids = self.start(&batch);
        if let Some(logits) = self.decode_captured(&ids, &batch) {
            let counts = self.recursion_counts(&RoutingTrace::default(), 1);
            return self.report(Computed::Logits(logits), &batch, &counts);
        }
        let ids = TokenIds::upload(ids, &self.device).tensor().clone();
        let (hidden, trace) = match &self.exits {
            Some(options) => {
                let exits = row_exits(options, &self.sequences, &batch);
                self.model.forward_exiting(ids, &batch, exits, &mut self.cache)
            }
            None => self.model.forward_cached(ids, &batch, &mut self.cache),
        }; // [M, D]
        let num_rows = batch.iter().map(|new| new.tokens).sum::<usize>();
        let counts = self.recursion_counts(&trace, num_rows);
        self.report(Computed::Hidden(hidden), &batch, &counts)
    }

    /// Logits `[1, V]` of the last token of the only sequence of `batch`, in one launch; `None`,
    /// and nothing is done, for other batches and where it is not captured.
    fn decode_captured(&mut self, ids: &[u32], batch: &[NewTokens]) -> Option<Tensor<2>> {
        let ([id], [new], None) = (ids, batch, &self.exits) else { return None };
        let sequence = self.sequences[new.slot.index()].as_ref()?;
        let is_last = sequence.num_unstarted() == 0;
        self.captured.as_mut().filter(|_| is_last)?.step(*id, *new, &mut self.cache)
    }

    /// A step part by part.
    fn step_looped(&mut self, mut looped: Looped) -> Vec<Progress> {
        loop {
            let mut batch = Vec::new();
            if looped.pipeline.may_start() {
                self.make_room().into_iter().for_each(|slot| looped.drop_slot(slot));
                let rows = looped.pipeline.prompt_rows();
                batch = schedule(self.sequences.iter().flatten(), self.options.max_step_tokens, rows);
            }
            if !batch.is_empty() {
                let units = batch.iter().flat_map(|new| self.units(*new, &looped)).collect();
                let ids = TokenIds::upload(self.start(&batch), &self.device);
                looped.start(&self.model, &ids, units, &mut self.cache);
            }
            let sequences = &self.sequences;
            let wanted = |slot: Slot| sequences[slot.index()].as_ref().is_some_and(|sequence| !sequence.paused);
            let is_idle = looped.pipeline.is_empty();
            let mut passes = Passes { model: &self.model, cache: &mut self.cache, exits: self.exits.as_ref() };
            match looped.advance(&mut passes, wanted) {
                Some(Finished { read, counts, hidden }) => {
                    self.looped = Some(looped);
                    return self.report(Computed::Hidden(hidden), &read, &counts);
                }
                None if is_idle => {
                    self.looped = Some(looped);
                    return Vec::new();
                }
                None => {}
            }
        }
    }

    /// Units of tokens that start now: they leave the loop as their request says, and new ones as
    /// the trace does, whichever is earlier.
    fn units(&mut self, new: NewTokens, looped: &Looped) -> Vec<Unit> {
        let Span { slot, start, tokens } = self.cache.extend(new);
        let Some(sequence) = &self.sequences[slot.index()] else { return Vec::new() };
        let exits = sequence.exits;
        let (is_prompt, most) = (!sequence.decodes(), exits.max_recursions.min(looped.pipeline.num_recursions()));
        let unit = |start: usize, tokens: usize, until: usize| {
            let span = Span { slot, start, tokens };
            (tokens > 0).then_some(Unit { span, done: 0, until, threshold: exits.threshold, is_prompt })
        };
        let Some(trace) = &looped.trace else { return unit(start, tokens, most).into_iter().collect() };
        // New tokens that are read again leave where they left before.
        let forced_from = sequence.num_prompt_tokens.clamp(start, start + tokens);
        let forced = (forced_from..start + tokens).filter_map(|position| {
            let count = trace.count(sequence.id.0, position - sequence.num_prompt_tokens);
            unit(position, 1, count.min(most))
        });
        unit(start, forced_from - start, most).into_iter().chain(forced).collect()
    }

    /// True if no sequence is active.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.active().next().is_none()
    }

    /// Number of free slots.
    #[must_use]
    pub fn num_free_slots(&self) -> usize {
        self.cache.num_free_slots()
    }

    /// Number of tokens of prompts that the next steps have to read.
    #[must_use]
    pub fn num_unread_prompt_tokens(&self) -> usize {
        self.active().map(Sequence::num_unread_of_prompt).sum()
    }

    /// Number of sequences that gave up their blocks for others, and wait for a slot.
    #[must_use]
    pub fn num_preempted(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.preempted.len())
    }

    /// Who has the blocks of the KV cache, if it is in blocks.
    #[must_use]
    pub fn kv_usage(&self) -> Option<KvUsage> {
        self.memory.as_ref().map(|memory| memory.usage(&self.cache))
    }

    /// Fraction of the KV cache that sequences occupy: of its blocks, or of the rows of its slots.
    #[must_use]
    pub fn cache_usage(&self) -> f64 {
        let rows = || self.cache.slots().map(|slot| self.cache.len(slot)).sum::<usize>();
        let (occupied, all) = match self.kv_usage() {
            Some(KvUsage { occupied, blocks, .. }) => (occupied, blocks),
            None => (rows(), self.cache.num_slots() * self.cache.capacity()),
        };
        occupied as f64 / all as f64
    }

    /// Bytes of the KV cache.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Sizes of the engine.
    #[must_use]
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    /// Configuration of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Ids `[M]` of the next tokens of the sequences of `batch`, which start now.
    fn start(&mut self, batch: &[NewTokens]) -> Vec<u32> {
        let mut ids: Vec<u32> = Vec::new();
        for NewTokens { slot, tokens } in batch {
            let Some(sequence) = &mut self.sequences[slot.index()] else { continue };
            let end = sequence.num_started + tokens;
            ids.extend(&sequence.tokens[sequence.num_started..end]);
            sequence.num_started = end;
        }
        ids
    }

    /// Recursion count of each row of a forward pass.
    fn recursion_counts(&self, trace: &RoutingTrace, num_rows: usize) -> Vec<usize> {
        match self.model.router().is_some() || self.exits.is_some() {
            true => trace.recursion_counts(num_rows),
            false => vec![self.model.share_map().num_recursions(); num_rows],
        }
    }
}
