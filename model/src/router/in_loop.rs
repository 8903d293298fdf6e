//! Routers of tokens that go through the loop at their own pace (`block_pass`): the decision in
//! front of each recursion, and the gate after it. A decision is made of the token alone, so it is
//! the one of a pass over the whole text. What the gate needs of it goes along with the token.

use super::{
    loop_entry::LoopEntry,
    selector::{ActiveRows, Origin, Passage, SelectionRule},
    selector_of,
    trace::{Logits, RoutingDecision},
};
use crate::{
    block_pass::InRecursion,
    cache::KvCache,
    causal_lm::CausalLm,
    kernels::{self, RowSet},
    row_context::RowContext,
    token_ids::TokenIds,
};
use burn::tensor::Tensor;
use std::ops::Range;

/// What a router keeps of tokens in the loop, row by row.
#[derive(Clone, Debug)]
pub struct RoutedRows {
    /// Token ids, of which random routers draw.
    ids: Vec<u32>,
    /// Logits in front of the recursion that the rows go through next, `[M, 1]`; of expert choice.
    logits: Option<Tensor<2>>,
    /// Of token choice, once the tokens have selected their recursion counts.
    entry: Option<LoopEntry>,
}

impl RoutedRows {
    /// Tokens in front of the loop.
    #[must_use]
    pub fn new(ids: &TokenIds) -> Self {
        Self { ids: ids.host().to_vec(), logits: None, entry: None }
    }

    /// The given rows; `None` for no rows.
    #[must_use]
    pub fn chosen(&self, rows: &[usize]) -> Option<Self> {
        let set = RowSet::from(rows);
        (!rows.is_empty()).then(|| Self {
            ids: rows.iter().map(|row| self.ids[*row]).collect(),
            logits: self.logits.as_ref().map(|logits| kernels::gather(logits.clone(), &set)),
            entry: self.entry.as_ref().map(|entry| entry.chosen(&set)),
        })
    }

    /// These rows, then the others.
    #[must_use]
    pub fn joined(mut self, others: Self) -> Self {
        self.ids.extend(others.ids);
        let cat = |(a, b): (Tensor<2>, Tensor<2>)| Tensor::cat(vec![a, b], 0);
        Self {
            ids: self.ids,
            logits: self.logits.zip(others.logits).map(cat),
            entry: self.entry.zip(others.entry).map(|(a, b)| a.joined(&b)),
        }
    }

    /// Consecutive rows.
    fn part(&self, rows: &Range<usize>) -> Self {
        let narrow = |x: &Tensor<2>| x.clone().narrow(0, rows.start, rows.len());
        Self {
            ids: self.ids[rows.clone()].to_vec(),
            logits: self.logits.as_ref().map(narrow),
            entry: self.entry.as_ref().map(|entry| entry.chosen(&rows.clone().collect())),
        }
    }
}

impl CausalLm {
    /// For each row of the hidden states `x [M, D]`, true if the router selects it for the
    /// recursion that its token is in front of; and what it keeps of all of them. `tokens` are
    /// sorted by recursion.
    ///
    /// # Panics
    /// When the model has no router.
    #[must_use]
    pub fn select_in_loop(
        &self,
        x: &Tensor<2>,
        tokens: &[InRecursion],
        kept: &RoutedRows,
        cache: &KvCache,
    ) -> (Vec<bool>, RoutedRows) {
        let (mut selects, mut after) = (Vec::new(), None::<RoutedRows>);
        for Group { recursion, tokens, rows } in groups(tokens) {
            let part = kept.part(&rows);
            let ids = TokenIds::upload(part.ids.iter().copied(), &self.device());
            // Routers read positions, and no rotary embeddings.
            let layout = cache.layout_of(tokens.iter().map(|tokens| tokens.span));
            let context = RowContext { layout, batch: 1, angles: Vec::new() };
            let entry = part.entry.map(Box::new);
            let origin = Origin::Tokens { ids: &ids, rows: &context, rule: SelectionRule::Causal, entry };
            let Some(mut selector) = selector_of(self, origin) else { panic!("a model without a router") };
            let active =
                ActiveRows::new(x.clone().narrow(0, rows.start, rows.len()), (0..rows.len()).collect::<RowSet>());
            let decision = selector.select(&active, recursion, context.layout.segments());
            selects.extend(decision.mask());
            let entry = selector.entry().cloned();
            let logits = decision.logits.filter(|_| entry.is_none()).map(|logits| logits.tensor);
            let part = RoutedRows { ids: part.ids, logits, entry };
            after = Some(match after.take() {
                Some(before) => before.joined(part),
                None => part,
            });
        }
        (selects, after.unwrap_or_else(|| kept.clone()))
    }

    /// Hidden states `[M, D]` of selected rows after the recursion of each, of those before and
    /// after the shared block. `tokens` are sorted by recursion.
    ///
    /// # Panics
    /// When the model has no router.
    #[must_use]
    pub fn merge_in_loop(
        &self,
        [before, after]: [&Tensor<2>; 2],
        tokens: &[InRecursion],
        kept: &RoutedRows,
    ) -> Tensor<2> {
        let merge = |Group { recursion, rows, .. }: Group<'_>| {
            let part = kept.part(&rows);
            let all: RowSet = (0..rows.len()).collect();
            let decision = RoutingDecision {
                active_rows: all.clone(),
                selected_rows: all,
                logits: part.logits.map(Logits::new),
                ..RoutingDecision::without_rows(recursion)
            };
            let origin = Origin::Replay { decision: Box::new(decision.clone()), entry: part.entry.map(Box::new) };
            let Some(selector) = selector_of(self, origin) else { panic!("a model without a router") };
            let of_group = |x: &Tensor<2>| x.clone().narrow(0, rows.start, rows.len());
            let (all, leaving) = (of_group(before), of_group(after));
            selector.merge(Passage { entering: all.clone(), all, leaving }, &decision)
        };
        let mut parts: Vec<Tensor<2>> = groups(tokens).map(merge).collect();
        if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) }
    }
}

/// Tokens in one recursion, and their rows.
struct Group<'a> {
    recursion: usize,
    tokens: &'a [InRecursion],
    rows: Range<usize>,
}

fn groups(tokens: &[InRecursion]) -> impl Iterator<Item = Group<'_>> {
    let mut end = 0;
    tokens.chunk_by(|a, b| a.recursion == b.recursion).map(move |tokens| {
        let start = end;
        end += tokens.iter().map(|tokens| tokens.span.tokens).sum::<usize>();
        Group { recursion: tokens[0].recursion, tokens, rows: start..end }
    })
}
