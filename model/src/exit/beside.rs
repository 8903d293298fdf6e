//! Tokens that wait in front of recursions (`recompute`), beside those of a pass over the shared
//! block: a token that reaches a recursion takes along the waiting ones of its sequence.

use super::pending::Token;
use crate::{
    block_pass::InRecursion,
    cache::{KvCache, Slot, Span},
    kernels::{self, RowSet},
};
use burn::tensor::Tensor;
use std::ops::Range;

/// A pass that tokens have been added to.
#[derive(Debug)]
pub(crate) struct BesideWaiting {
    /// All tokens of the pass, sorted by recursion.
    pub tokens: Vec<InRecursion>,
    /// Rows of the tokens that it was made for, in their order.
    own_rows: Vec<usize>,
    /// Tokens that waited, with their recursion and their rows.
    waited: Vec<(usize, Vec<Token>, Range<usize>)>,
}

impl BesideWaiting {
    /// Takes out of the cache the tokens that wait for those of the pass, which have the states `x
    /// [M, D]`. Gives the states of all of them, by recursion.
    pub fn join(x: Tensor<2>, tokens: &[InRecursion], cache: &mut KvCache) -> (Tensor<2>, Self) {
        let mut beside = Self { tokens: Vec::new(), own_rows: Vec::new(), waited: Vec::new() };
        let (mut parts, mut read, mut row) = (Vec::new(), 0, 0);
        for group in tokens.chunk_by(|a, b| a.recursion == b.recursion) {
            let recursion = group[0].recursion;
            let rows = group.iter().map(|tokens| tokens.span.tokens).sum::<usize>();
            parts.push(x.clone().narrow(0, read, rows));
            read += rows;
            beside.own_rows.extend(row..row + rows);
            row += rows;
            beside.tokens.extend(group);
            let slots: Vec<usize> = group.iter().map(|tokens| tokens.span.slot.index()).collect();
            let (waiting, states) = cache.pending(recursion).take(&slots).into_parts();
            if let Some(states) = states {
                parts.push(states);
                let spans = waiting.chunk_by(Token::is_before).map(|run| Span {
                    slot: Slot::at(run[0].slot),
                    start: run[0].position,
                    tokens: run.len(),
                });
                beside.tokens.extend(spans.map(|span| InRecursion { recursion, span }));
                let rows = row..row + waiting.len();
                row = rows.end;
                beside.waited.push((recursion, waiting, rows));
            }
        }
        (if parts.len() == 1 { x } else { Tensor::cat(parts, 0) }, beside)
    }

    /// Rows of the tokens that the pass was made for, of its result `x`. Those that waited wait in
    /// front of the next recursion, if it is one of the `num_recursions`.
    pub fn split(self, x: Tensor<2>, num_recursions: usize, cache: &mut KvCache) -> Tensor<2> {
        if self.waited.is_empty() {
            return x;
        }
        for (recursion, tokens, rows) in self.waited {
            if recursion + 1 < num_recursions {
                let states = x.clone().narrow(0, rows.start, rows.len());
                cache.pending(recursion + 1).add(tokens, states);
            }
        }
        kernels::gather(x, &RowSet::from(self.own_rows))
    }

    /// Lets tokens with the states `x [M, D]` wait in front of the recursions that they name.
    pub fn wait(x: &Tensor<2>, tokens: &[InRecursion], cache: &mut KvCache) {
        let mut start = 0;
        for InRecursion { recursion, span } in tokens {
            let states = x.clone().narrow(0, start, span.tokens);
            start += span.tokens;
            let positions = span.start..span.start + span.tokens;
            let tokens = positions.map(|position| Token { slot: span.slot.index(), position }).collect();
            cache.pending(*recursion).add(tokens, states);
        }
    }
}
