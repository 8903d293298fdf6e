//! Recursions over coarse tokens (`retie_config::ResolutionConfig`).
//!
//! In a cache a recursion keeps for each slot the tokens of the coarse token that is not complete,
//! in the place that they have in it, and what the last complete one got. Keys and values are those
//! of coarse tokens.

use crate::{
    cache::KvCache,
    causal_lm::CausalLm,
    kernels::{self, Layout, RowCopy, RowSet, Segment},
    row_context::RowContext,
};
use burn::tensor::Tensor;
use std::{collections::BTreeMap, ops::Range};

/// A recursion over coarse tokens of `factor` tokens.
pub(crate) struct CoarseCall<'a> {
    pub recursion: usize,
    /// All depths of the recursion.
    pub depths: Range<usize>,
    /// Rows of the tokens.
    pub rows: &'a RowContext,
    pub factor: usize,
}

/// Sizes of a cache.
#[derive(Clone, Copy, Debug)]
struct Slots {
    count: usize,
    /// Tokens and coarse tokens in a slot.
    capacity: usize,
    room: usize,
}

/// Rows of the coarse tokens of a pass.
#[derive(Debug, Default)]
struct Plan {
    /// Rows of their tokens, by the place in the coarse token: those of the cache, then those of
    /// the pass.
    members: Vec<Vec<usize>>,
    /// Their positions.
    positions: Vec<usize>,
    /// Their attention layout.
    segments: Vec<Segment>,
    /// For each token the row of what it gets: zeros, those of the cache, then those of the pass.
    reads: Vec<usize>,
    /// Rows of tokens that wait for the rest of their coarse token.
    waiting: Vec<RowCopy>,
    /// Rows of the last coarse token of each sequence.
    last: Vec<RowCopy>,
}

impl Plan {
    fn new(layout: &Layout, factor: usize, slots: Option<Slots>) -> Self {
        let mut plan = Self { members: vec![Vec::new(); factor], ..Self::default() };
        let (held, latest) = slots.map_or((0, 0), |slots| (slots.count * factor, slots.count));
        // First coarse tokens of sequences, by the first row of these.
        let mut firsts = BTreeMap::new();
        for segment in layout.segments() {
            let from = segment.position(0);
            let to = from + segment.queries.len();
            let (before, after) = (from / factor, to / factor);
            let start = plan.positions.len();
            firsts.insert(segment.queries.start, start);
            let prefix = firsts.get(&segment.prefix.start).filter(|_| !segment.prefix.is_empty()).copied().unwrap_or(0);
            let slot = slots.map(|slots| segment.keys.start / slots.capacity);
            for coarse in before..after {
                plan.positions.push((coarse + 1) * factor - 1);
                for (place, rows) in plan.members.iter_mut().enumerate() {
                    let position = coarse * factor + place;
                    rows.push(match (position.checked_sub(from), slot) {
                        (Some(index), _) => held + segment.queries.start + index,
                        (None, Some(slot)) => slot * factor + place,
                        (None, None) => segment.prefix.start + position,
                    });
                }
            }
            plan.reads.extend((from..to).map(|position| match ((position + 1) / factor).checked_sub(1) {
                None => 0,
                Some(coarse) => match (coarse.checked_sub(before), slot) {
                    (Some(index), _) => 1 + latest + start + index,
                    (None, Some(slot)) => 1 + slot,
                    (None, None) => 1 + prefix + coarse,
                },
            }));
            let made = start..start + after - before;
            if let Some((slot, room)) = slot.zip(slots.map(|slots| slots.room)) {
                let waits = from.max(after * factor);
                if waits < to {
                    let rows = segment.queries.start + waits - from..segment.queries.end;
                    plan.waiting.push(RowCopy { rows, at: slot * factor + waits % factor });
                }
                if !made.is_empty() {
                    plan.last.push(RowCopy { rows: made.end - 1..made.end, at: slot });
                    plan.segments.push(Segment::last(made, 0..0, slot * room..slot * room + after));
                }
            } else if !made.is_empty() {
                plan.segments.push(Segment::last(made.clone(), prefix..prefix + before, made));
            }
        }
        plan
    }
}

impl CausalLm {
    /// Runs a recursion over the coarse tokens of `x [M, D]`, the states of the tokens → `[M, D]`.
    pub(crate) fn run_coarse(&self, x: Tensor<2>, call: CoarseCall<'_>, mut cache: Option<&mut KvCache>) -> Tensor<2> {
        let CoarseCall { recursion, depths, rows, factor } = call;
        let slots = cache.as_ref().map(|cache| Slots {
            count: cache.num_slots(),
            capacity: cache.capacity(),
            room: cache.room(depths.start),
        });
        let Plan { members, positions, segments, reads, waiting, last } = Plan::new(&rows.layout, factor, slots);
        let held = cache.as_ref().and_then(|cache| cache.coarse(recursion));
        let (held, latest) = held.map_or((None, None), |[members, latest]| (Some(members), Some(latest)));
        let change = (!positions.is_empty()).then(|| {
            let all = Tensor::cat(held.into_iter().chain([x.clone()]).collect(), 0);
            let parts = members.into_iter().map(|rows| kernels::gather(all.clone(), &RowSet::from(rows)));
            let Some(sum) = parts.reduce(|sum, part| sum + part) else { unreachable!("a coarse token has tokens") };
            let z = sum / factor as f32;
            let device = x.device().inner();
            let angles = self.spec.ropes.iter().map(|rope| rope.angles(&positions, &device)).collect();
            let context = RowContext { layout: Layout::ragged(segments), batch: 1, angles };
            let y = match cache.as_deref_mut() {
                Some(cache) => self.run_cached_depths(z.clone(), depths, &context, cache),
                None => self.run_depths(z.clone(), depths, &context),
            };
            y - z
        });
        let [_, hidden] = x.dims();
        let none = Tensor::zeros([1, hidden], &x.device());
        let all = Tensor::cat([Some(none), latest, change.clone()].into_iter().flatten().collect(), 0);
        let out = kernels::add(x.clone(), kernels::gather(all, &RowSet::from(reads)));
        if let Some(cache) = cache {
            cache.write_coarse(recursion, [Some((x, waiting)), change.map(|change| (change, last))]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_tokens_are_those_that_are_complete() {
        // Two sequences, of which the second goes on behind the first five tokens of the first.
        let plan = Plan::new(&Layout::packed([(7, 0..0), (3, 0..5)]), 3, None);
        assert_eq!(plan.positions, [2, 5, 5]);
        assert_eq!(plan.members, [[0, 3, 3], [1, 4, 4], [2, 5, 7]]);
        assert_eq!(plan.reads, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]);
        let segment = |rows: Range<usize>, prefix| Segment::last(rows.clone(), prefix, rows);
        assert_eq!(plan.segments, [segment(0..2, 0..0), segment(2..3, 0..1)]);
    }
}
