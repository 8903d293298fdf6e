//! Self-speculative decoding: the exit after the first recursion drafts tokens, and the rest of the
//! stack verifies them in one pass ([`retie_model::CausalLm::verify`]).
//!
//! The sequence's own sampler draws from the verified logits, and a draft is right if it is the
//! token that was drawn. So the text is that of plain decoding with the same seed, greedy or
//! sampled, with every penalty: drafts decide how many tokens a pass yields, never which. Drafts
//! are drawn by a copy of the sampler, with the same random numbers, so that equal distributions
//! give equal tokens.
//!
//! Speculation is for one sequence that decodes. With more of them, while a prompt is read, and
//! where it does not pay, steps are plain.

mod tuner;

use crate::{Engine, EngineError, Progress};
use burn::tensor::{Int, Tensor};
use retie_model::{
    Drafted, Slot,
    kernels::{Head, f32_slice, f32_slice_mut, linear},
};
use std::time::Instant;
pub use tuner::MOST_DRAFTS;
use tuner::Tuner;

/// Options of self-speculative decoding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpeculationOptions {
    /// Tokens to draft at a time, 1 to 7; `None` for as many as pay, by measurement.
    pub num_drafts: Option<usize>,
    /// Tokens that can be drafted; empty for the whole vocabulary. Fewer make drafts cheaper.
    pub draft_tokens: Vec<u32>,
}

/// Counts of speculative decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpeculationCounts {
    /// Passes that verified drafts.
    pub cycles: usize,
    /// Drafted tokens.
    pub drafted: usize,
    /// Drafted tokens that were right.
    pub accepted: usize,
    /// Tokens decoded without drafts.
    pub plain: usize,
}

/// State of speculative decoding.
#[derive(Debug)]
pub(crate) struct Speculation {
    tuner: Tuner,
    head: Option<DraftHead>,
    counts: SpeculationCounts,
}

/// Rows of the head for some tokens.
#[derive(Debug)]
struct DraftHead {
    weight: Tensor<2>,
    tokens: Vec<u32>,
}

impl Engine {
    /// Decodes single sequences speculatively.
    ///
    /// # Errors
    /// When the exit after the model's first recursion cannot draft, an option is out of its range,
    /// or the engine has early exits or a scheduler other than `full`.
    pub fn with_speculation(mut self, options: SpeculationOptions) -> Result<Self, EngineError> {
        if let Some(looped) = &self.looped {
            return Err(EngineError::no_drafts_with(looped.scheduler));
        }
        if self.exits.is_some() {
            return Err(EngineError::NoDrafts { reason: "its tokens leave the loop early".to_owned() });
        }
        self.model.check_drafts().map_err(|reason| EngineError::NoDrafts { reason })?;
        let SpeculationOptions { num_drafts, draft_tokens } = options;
        if let Some(found) = num_drafts.filter(|found| !(1..=MOST_DRAFTS).contains(found)) {
            let expected = format!("1 to {MOST_DRAFTS}");
            return Err(EngineError::OutOfRange { name: "num_drafts", found: found.to_string(), expected });
        }
        let vocab_size = self.config().vocab_size;
        let unknown = draft_tokens.iter().find(|token| **token as usize >= vocab_size);
        if let Some(token) = unknown {
            let expected = format!("0 to {}, the vocabulary of the model", vocab_size - 1);
            return Err(EngineError::OutOfRange { name: "draft_tokens", found: token.to_string(), expected });
        }
        let head = (!draft_tokens.is_empty()).then(|| {
            let ids: Vec<i32> = draft_tokens.iter().map(|token| *token as i32).collect();
            let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &self.device);
            DraftHead { weight: self.model.head().weight.select(0, ids), tokens: draft_tokens }
        });
        self.speculation =
            Some(Speculation { tuner: Tuner::new(num_drafts), head, counts: SpeculationCounts::default() });
        Ok(self)
    }

    /// Counts of speculative decoding, if it is on.
    #[must_use]
    pub fn speculation_counts(&self) -> Option<SpeculationCounts> {
        self.speculation.as_ref().map(|speculation| speculation.counts)
    }

    /// Slot of the only sequence, if the next step can be speculative.
    pub(crate) fn speculative_slot(&self) -> Option<Slot> {
        self.speculation.as_ref()?;
        let mut active = self.sequences.iter().flatten().filter(|sequence| !sequence.paused);
        let sequence = active.next().filter(|_| active.next().is_none())?;
        sequence.takes_drafts().then_some(sequence.slot)
    }

    /// A step of the only sequence: drafts and verifies tokens, or runs plainly if that is faster.
    pub(crate) fn step_speculatively(&mut self, slot: Slot) -> Vec<Progress> {
        let start = Instant::now();
        let room = self.options.context.saturating_sub(self.cache.len(slot) + 1);
        let wanted = self.sequences[slot.index()].as_ref().map_or(0, |sequence| sequence.num_wanted());
        let most = room.min(wanted).saturating_sub(1);
        let num_drafts = self.speculation.as_mut().map_or(0, |speculation| speculation.tuner.choose(most));
        if num_drafts > 0 && self.has_blocks(slot, num_drafts + 1) {
            return self.run_cycle(slot, num_drafts);
        }
        let progress = self.step_plainly();
        if let Some(speculation) = &mut self.speculation {
            speculation.tuner.saw_plain(start.elapsed().as_secs_f64());
            speculation.counts.plain += 1;
        }
        progress
    }

    /// True if the sequence in `slot` has blocks for `tokens` more tokens, or gets them: drafts are
    /// no reason to preempt another one.
    fn has_blocks(&mut self, slot: Slot, tokens: usize) -> bool {
        let len = self.cache.len(slot) + tokens;
        self.memory.as_mut().is_none_or(|memory| memory.reserve(&mut self.cache, slot, len))
    }

    /// Drafts `num_drafts` tokens of the sequence in `slot` and verifies them.
    fn run_cycle(&mut self, slot: Slot, num_drafts: usize) -> Vec<Progress> {
        let Some((mut drafter, mut token)) =
            self.sequences[slot.index()].as_ref().and_then(|sequence| Some((sequence.drafter(), sequence.last()?)))
        else {
            return Vec::new();
        };
        let (start, held) = (Instant::now(), self.cache.len(slot));
        let (mut states, mut drafts) = (Vec::new(), Vec::new());
        for _ in 0..num_drafts {
            let Drafted { state, hidden } = self.model.draft(token, slot, &mut self.cache, true);
            states.push(state);
            let mut logits = hidden.map(|hidden| self.draft_logits(hidden)).unwrap_or_default();
            // Logits that are no numbers draft nothing: the verified ones tell.
            token = drafter.next(&mut logits, held + drafts.len() + 1).unwrap_or_default();
            drafts.push(token);
        }
        let drafting = start.elapsed().as_secs_f64();
        states.push(self.model.draft(token, slot, &mut self.cache, false).state);
        let hidden = self.model.verify(Tensor::cat(states, 0), slot, &mut self.cache);
        let mut logits = self.model.logits(hidden).into_data(); // [num_drafts + 1, V]
        let verifying = start.elapsed().as_secs_f64() - drafting;

        let (context, vocab_size) = (self.options.context, self.config().vocab_size);
        let num_recursions = self.model.share_map().num_recursions();
        let Some(sequence) = &mut self.sequences[slot.index()] else { return Vec::new() };
        let mut progress = Vec::with_capacity(num_drafts + 1);
        let mut right = 0;
        for logits in f32_slice_mut(&mut logits).chunks_exact_mut(vocab_size) {
            let (choice, failed) = match sequence.choose(logits, context) {
                Ok(choice) => (Some(choice), None),
                Err(error) => (None, Some(error)),
            };
            let token = choice.as_ref().map(|choice| choice.token);
            let reason = choice.as_ref().and_then(|choice| choice.reason);
            progress.push(Progress {
                sequence: sequence.id,
                recursion_counts: Vec::new(),
                token,
                recursions: num_recursions,
                logprobs: choice.and_then(|choice| choice.logprobs),
                prompt_logprobs: Vec::new(),
                finish: reason,
                failed,
            });
            if token.is_none() || drafts.get(progress.len() - 1).copied() != token {
                break;
            }
            right += 1;
            if reason.is_some() {
                break;
            }
        }
        sequence.num_read = held + progress.len();
        sequence.num_started = sequence.num_read;
        self.cache.crop(slot, sequence.num_read);
        let id = sequence.id;
        if progress.last().is_some_and(|progress| progress.finish.is_some() || progress.failed.is_some()) {
            self.evict(id);
        }
        if let Some(Speculation { tuner, counts, .. }) = &mut self.speculation {
            // Drafts behind the end of the text were not compared.
            let compared = num_drafts.min(progress.len());
            tuner.saw_cycle(num_drafts, if right == compared { num_drafts } else { right }, [drafting, verifying]);
            counts.cycles += 1;
            counts.drafted += compared;
            counts.accepted += right;
        }
        progress
    }

    /// Logits `[V]` of the exit's hidden state `[1, D]`; tokens without a row in the draft head
    /// have −∞.
    fn draft_logits(&self, hidden: Tensor<2>) -> Vec<f32> {
        let Some(DraftHead { weight, tokens }) = self.speculation.as_ref().and_then(|found| found.head.as_ref()) else {
            return f32_slice(&self.model.logits(hidden).into_data()).to_vec();
        };
        let Head { softcap, .. } = self.model.head();
        let found = linear(hidden, weight.clone()).into_data();
        let mut logits = vec![f32::NEG_INFINITY; self.config().vocab_size];
        for (token, logit) in tokens.iter().zip(f32_slice(&found)) {
            logits[*token as usize] = softcap.map_or(*logit, |cap| (logit / cap).tanh() * cap);
        }
        logits
    }
}
