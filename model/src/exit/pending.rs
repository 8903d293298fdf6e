//! Tokens that left the loop and are made up for when a later token of their sequence reaches the
//! recursion that they skipped: its keys and values are then those of the whole stack.
//!
//! A token waits in front of one recursion, with the state that enters it. When the recursion has
//! run, it waits in front of the next one.

use super::policy::selected;
use crate::{
    cache::KvCache,
    causal_lm::CausalLm,
    kernels::{self, Layout, RowSet, Segment},
    recursion::RecursionCall,
};
use burn::tensor::Tensor;
use std::ops::Range;

/// Tokens that wait in front of a recursion.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    tokens: Vec<Token>,
    /// Their states, `[n, D]`; `None` without tokens.
    states: Option<Tensor<2>>,
}

/// Place of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Token {
    pub slot: usize,
    pub position: usize,
}

impl Token {
    /// True if `next` is the next token of the same sequence.
    pub fn is_before(&self, next: &Self) -> bool {
        self.slot == next.slot && self.position + 1 == next.position
    }
}

impl Pending {
    /// Drops the tokens of a sequence from position `len` on.
    pub fn crop(&mut self, slot: usize, len: usize) {
        self.retain(|token| token.slot != slot || token.position < len);
    }

    /// Number of tokens that wait.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Copies of the tokens of a sequence at some positions.
    pub fn copies(&self, slot: usize, positions: &Range<usize>) -> Self {
        let is_there = |token: &Token| token.slot == slot && positions.contains(&token.position);
        let found: Vec<usize> = (0..self.len()).filter(|i| is_there(&self.tokens[*i])).collect();
        let tokens = found.iter().map(|i| self.tokens[*i]).collect();
        let states = self.states.as_ref().filter(|_| !found.is_empty());
        Self { tokens, states: states.map(|states| kernels::gather(states.clone(), &found.into())) }
    }

    /// Adds copies of tokens before position `len`, to the sequence in `slot`.
    pub fn add_copies(&mut self, copies: &Self, slot: usize, len: usize) {
        let mut own = Self { tokens: copies.tokens.clone(), states: copies.states.clone() };
        own.retain(|token| token.position < len);
        if let (tokens, Some(states)) = own.into_parts() {
            self.add(tokens.into_iter().map(|token| Token { slot, ..token }).collect(), states);
        }
    }

    fn retain(&mut self, keeps: impl Fn(&Token) -> bool) {
        let kept: Vec<usize> = (0..self.len()).filter(|i| keeps(&self.tokens[*i])).collect();
        if kept.len() < self.len() {
            self.states = self
                .states
                .take()
                .filter(|_| !kept.is_empty())
                .map(|states| kernels::gather(states, &RowSet::from(kept.clone())));
            self.tokens = kept.iter().map(|i| self.tokens[*i]).collect();
        }
    }

    /// The tokens, and their states `[n, D]` if there are any.
    pub(super) fn into_parts(self) -> (Vec<Token>, Option<Tensor<2>>) {
        (self.tokens, self.states)
    }

    /// Takes out the tokens of `slots`.
    pub(super) fn take(&mut self, slots: &[usize]) -> Self {
        let taken: Vec<usize> = (0..self.len()).filter(|i| slots.contains(&self.tokens[*i].slot)).collect();
        let tokens = taken.iter().map(|i| self.tokens[*i]).collect();
        let states = self.states.as_ref().filter(|_| !taken.is_empty());
        let states = states.map(|states| kernels::gather(states.clone(), &RowSet::from(taken.clone())));
        self.retain(|token| !slots.contains(&token.slot));
        Self { tokens, states }
    }

    pub(super) fn add(&mut self, tokens: Vec<Token>, states: Tensor<2>) {
        if tokens.is_empty() {
            return;
        }
        self.tokens.extend(tokens);
        self.states = Some(match self.states.take() {
            Some(before) => Tensor::cat(vec![before, states], 0),
            None => states,
        });
    }
}

/// A row of the pass, or a token that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    token: Token,
    /// Index among the states of the selected rows, followed by those that waited.
    at: usize,
}

/// Runs the selected rows of `all [M, D]`, and beside them the tokens of their sequences that wait.
/// Rows of `just_left` begin to wait here.
pub(super) fn run(
    model: &CausalLm,
    all: &Tensor<2>,
    call: &RecursionCall<'_>,
    just_left: &[usize],
    cache: &mut KvCache,
) -> Option<Tensor<2>> {
    let RecursionCall { recursion, depths, rows, selected_rows } = call;
    let tokens = tokens(&rows.layout, cache.capacity());
    let at = |some: &[usize]| some.iter().map(|row| tokens[*row]).collect::<Vec<_>>();
    if !just_left.is_empty() {
        cache.pending(*recursion).add(at(just_left), kernels::gather(all.clone(), &RowSet::from(just_left)));
    }
    let x = selected(all, call)?;
    let selected_tokens = at(selected_rows.host());
    let mut slots: Vec<usize> = selected_tokens.iter().map(|token| token.slot).collect();
    slots.dedup();
    let Pending { tokens: waited, states } = cache.pending(*recursion).take(&slots);
    let Some(states) = states else {
        if call.selects_all() {
            return Some(model.run_cached_depths(x, depths.clone(), rows, cache));
        }
        let layout = layout(&selected_tokens, cache.capacity()).in_pages(cache.pages());
        return Some(model.run_cached_depths(x, depths.clone(), &model.row_context(layout), cache));
    };
    let num_selected = selected_tokens.len();
    let together = selected_tokens.into_iter().chain(waited.iter().copied());
    let mut entries: Vec<Entry> = together.enumerate().map(|(at, token)| Entry { token, at }).collect();
    entries.sort_unstable();
    let order: Vec<usize> = entries.iter().map(|entry| entry.at).collect();
    let sorted: Vec<Token> = entries.iter().map(|entry| entry.token).collect();
    let x = kernels::gather(Tensor::cat(vec![x, states], 0), &RowSet::from(order.clone()));
    let layout = layout(&sorted, cache.capacity()).in_pages(cache.pages());
    let context = model.row_context(layout);
    let x = model.run_cached_depths(x, depths.clone(), &context, cache);
    let mut places = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, at)| places[*at] = place);
    if recursion + 1 < model.share_map().num_recursions() {
        cache.pending(recursion + 1).add(waited, kernels::gather(x.clone(), &RowSet::from(&places[num_selected..])));
    }
    Some(kernels::gather(x, &RowSet::from(&places[..num_selected])))
}

/// Slot and position of each row of a cached pass.
fn tokens(layout: &Layout, capacity: usize) -> Vec<Token> {
    let of_segment = |segment: &Segment| {
        let slot = segment.keys.start / capacity;
        segment.positions().map(move |position| Token { slot, position }).collect::<Vec<_>>()
    };
    layout.segments().iter().flat_map(of_segment).collect()
}

/// Layout in which `tokens`, ascending, attend to all tokens of their slots up to themselves.
/// Consecutive ones are a segment.
fn layout(tokens: &[Token], capacity: usize) -> Layout {
    let mut start = 0;
    let segments = tokens.chunk_by(Token::is_before).map(|run| {
        let queries = start..start + run.len();
        start = queries.end;
        let first = run[0].slot * capacity;
        Segment::last(queries, 0..0, first..first + run[run.len() - 1].position + 1)
    });
    Layout::ragged(segments.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_tokens_of_a_slot_are_a_segment() {
        let token = |slot, position| Token { slot, position };
        let tokens = [token(0, 2), token(0, 3), token(0, 5), token(2, 6)];
        let found = layout(&tokens, 40);
        let segment = |queries: std::ops::Range<usize>, keys| Segment::last(queries, 0..0, keys);
        assert_eq!(found.segments(), [segment(0..2, 0..4), segment(2..3, 0..6), segment(3..4, 80..87)]);
        assert_eq!(super::tokens(&found, 40), tokens);
    }
}
