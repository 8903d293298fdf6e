//! Self-speculative decoding (LayerSkip, <https://arxiv.org/abs/2404.16710>): the exit after the
//! first recursion drafts tokens, and the later recursions verify all of them in one pass over the
//! states that the drafts left.
//!
//! A draft writes the keys and values of the prelude and the first recursion, which are those of
//! the whole stack, and those of the coda, which are not: verification writes the coda's again.

use crate::{
    cache::{KvCache, NewTokens, Slot},
    causal_lm::CausalLm,
    kernels::{Layout, Segment},
    router::SelectionRule,
};
use burn::tensor::{Int, Tensor};
use retie_config::KvSharing;
use std::sync::Arc;

/// A token that has gone through the first recursion.
#[derive(Debug)]
pub struct Drafted {
    /// Hidden state after the first recursion, `[1, D]`.
    pub state: Tensor<2>,
    /// Hidden state of the exit after the first recursion, after the final norm, `[1, D]`; `None`
    /// if no token is drafted from it.
    pub hidden: Option<Tensor<2>>,
}

impl CausalLm {
    /// Checks that the exit after the first recursion can draft for the whole stack.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check_drafts(&self) -> Result<(), String> {
        let exits = self.share_map().exits().map_err(|error| error.to_string())?;
        if exits.num_recursions() < 2 {
            return Err("it has one recursion, so that no exit is cheaper than the whole stack".to_owned());
        }
        if self.router().is_some() {
            return Err("its router decides which tokens leave the loop".to_owned());
        }
        self.check_local_steps()?;
        match self.kv_sharing() {
            KvSharing::RecursionWise | KvSharing::Shared => Ok(()),
            KvSharing::Hybrid => Err("`kv_sharing: hybrid` reads the first recursion again in every pass".to_owned()),
        }
    }

    /// Runs the next token of the sequence in `slot` through the first recursion, and through the
    /// coda if `with_exit`. The token is added to the cache.
    ///
    /// # Panics
    /// When the model fails [`CausalLm::check_drafts`], or the slot is free or full.
    #[must_use]
    pub fn draft(&self, token: u32, slot: Slot, cache: &mut KvCache, with_exit: bool) -> Drafted {
        let batch = [NewTokens { slot, tokens: 1 }];
        let layout = cache.layout(&batch);
        let id = Tensor::<1, Int>::from_ints([token as i32], &self.device());
        let mut forward = self.begin(id, layout, SelectionRule::Causal).with_cache(cache);
        forward.advance_to(self.first_end());
        let state = forward.hidden().clone();
        let hidden = with_exit.then(|| forward.exit_after(1).0);
        cache.advance(&batch);
        Drafted { state, hidden }
    }

    /// Runs the rest of the stack over `states [n, D]`, the states after the first recursion of the
    /// last `n` tokens of the sequence in `slot`. Returns hidden states after the final norm, `[n,
    /// D]`, each the one that its token has when it is decoded alone.
    ///
    /// # Panics
    /// As [`CausalLm::draft`].
    #[must_use]
    pub fn verify(&self, states: Tensor<2>, slot: Slot, cache: &mut KvCache) -> Tensor<2> {
        let [rows, _] = states.dims();
        let (end, first) = (cache.len(slot), slot.index() * cache.capacity());
        // A segment for each row: the kernel of decoding.
        let segment = |row: usize| Segment::last(row..row + 1, 0..0, first..first + end - rows + row + 1);
        let layout = Layout::ragged((0..rows).map(segment).collect()).in_pages(cache.pages());
        let context = Arc::new(self.row_context(layout));
        self.forward_at(context, states, self.first_end()).with_cache(cache).finish().0
    }

    fn first_end(&self) -> usize {
        match self.share_map().exits() {
            Ok(exits) => exits.end(1),
            Err(error) => panic!("{error}"),
        }
    }
}
