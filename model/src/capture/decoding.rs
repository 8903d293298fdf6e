//! Decoding of one sequence: a token through the whole stack to its logits, in one replay.
//!
//! Attention goes over the keys up to the token's position, which it reads from the device, in
//! buffers with room for the whole capacity of the cache. So one recording serves every token, and
//! every sequence in the same slot; another cache, such as a larger one, is recorded anew.

use super::{inputs::Inputs, memory_for, warn};
use crate::{
    CausalLm,
    cache::{KvCache, NewTokens},
    kernels::{Captured, FixedMemory, capture},
    row_context::RowContext,
};
use burn::tensor::Tensor;
use std::sync::Arc;

/// Decoding of the sequence in the first slot of a cache.
#[derive(Debug)]
pub struct CapturedDecoding {
    model: CausalLm,
    memory: &'static dyn FixedMemory,
    inputs: Inputs,
    recorded: Option<Recorded>,
    /// True once the device has refused.
    is_refused: bool,
}

/// A recorded step.
#[derive(Debug)]
struct Recorded {
    /// The logits, `[1, V]`.
    step: Captured<Tensor<2>>,
    /// Keys and values of the cache that it runs on.
    buffers: Vec<Tensor<2>>,
}

impl CapturedDecoding {
    /// Decoding with `model`; `None` if its steps are not captured: the device or this process
    /// captures nothing, or the model has a router or mechanisms of a step.
    #[must_use]
    pub fn new(model: &CausalLm) -> Option<Self> {
        let memory = memory_for(model)?;
        let inputs = Inputs::new(model, memory, 1, vec![0]);
        Some(Self { model: model.clone(), memory, inputs, recorded: None, is_refused: false })
    }

    /// Logits `[1, V]` of the token `id`, which continues the sequence of `new` and is added to the
    /// cache; they stand until the next step. `None`, and nothing is done, for anything but one
    /// token of the sequence in the first slot, or if the device refuses.
    ///
    /// # Panics
    /// When the slot is free or has too little room.
    pub fn step(&mut self, id: u32, new: NewTokens, cache: &mut KvCache) -> Option<Tensor<2>> {
        if self.is_refused || new.slot.index() > 0 || new.tokens != 1 {
            return None;
        }
        let position = cache.len(new.slot);
        assert!(position < cache.capacity(), "{} tokens in a slot for {}", position + 1, cache.capacity());
        self.inputs.set_ids(&[id]);
        self.inputs.set_keys(&[position]);
        self.inputs.set_positions(vec![position]);
        if !self.runs_on(cache) {
            // The memory of the last recording is free for this one.
            self.recorded = None;
            let Self { model, inputs, .. } = &*self;
            let step = capture(&model.device(), || logits(model, inputs, cache));
            let buffers = cache.all_buffers().cloned().collect();
            self.recorded =
                step.inspect_err(|error| warn("decoding", error)).ok().map(|step| Recorded { step, buffers });
        }
        let replayed = self.recorded.as_ref().map(|recorded| recorded.step.replay());
        let logits = replayed.and_then(|logits| logits.inspect_err(|error| warn("decoding", error)).ok().cloned());
        match &logits {
            Some(_) => cache.advance(&[new]),
            None => (self.recorded, self.is_refused) = (None, true),
        }
        logits
    }

    /// Number of kernels of a step that is recorded.
    #[must_use]
    pub fn num_kernels(&self) -> Option<usize> {
        self.recorded.as_ref().map(|recorded| recorded.step.num_kernels())
    }

    fn runs_on(&self, cache: &KvCache) -> bool {
        let Some(Recorded { buffers, .. }) = &self.recorded else { return false };
        let mut of_cache = cache.all_buffers();
        let is_same = |buffer| of_cache.next().is_some_and(|other| self.memory.is_same(buffer, other));
        buffers.iter().all(is_same) && of_cache.next().is_none()
    }
}

/// The step: logits of the token of `inputs`, whose keys and values are written into `cache`.
fn logits(model: &CausalLm, inputs: &Inputs, cache: &mut KvCache) -> Tensor<2> {
    let layout = cache.layout_at(&inputs.keys);
    let rows = RowContext { layout, batch: 1, angles: inputs.angles.clone() };
    let hidden = model.embed(inputs.ids.clone());
    let (hidden, _) = model.forward_at(Arc::new(rows), hidden, 0).with_cache(cache).finish();
    model.logits(hidden)
}
