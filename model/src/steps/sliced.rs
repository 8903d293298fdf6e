//! Sliced attention (`retie_config::SlicedConfig`): the attention of the kernels on slices of the
//! sequences.
//!
//! Slices of consecutive tokens are ranges of key rows, so that only the layout changes. Slices of
//! every `g`-th token are gathered: queries, keys and values are put in the order of the slices,
//! and the result is put back.

use super::descriptor::take;
use crate::kernels::{self, Layout, Scoring, Segment};
use burn::tensor::Tensor;
use retie_config::{SliceOrder, SlicedConfig};

/// Slices of one depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slices {
    /// Number of slices.
    pub groups: usize,
    /// Tokens of a slice of consecutive ones; `None` for every `groups`-th.
    pub chunk: Option<usize>,
}

impl Slices {
    /// Slices as configured; `None` for one slice, which is the whole attention.
    pub fn new(config: &SlicedConfig) -> Option<Self> {
        let chunk = config.chunk().filter(|_| config.order == SliceOrder::Chunk);
        (config.groups > 1 || chunk.is_some()).then_some(Self { groups: config.groups, chunk })
    }
}

/// Layout in which queries attend within runs of `chunk` consecutive tokens.
fn chunks(layout: &Layout, chunk: usize) -> Layout {
    let mut segments = Vec::new();
    for segment in layout.segments() {
        let positions: Vec<usize> = segment.positions().collect();
        let before = segment.prefix.len();
        let mut start = segment.queries.start;
        for members in positions.chunk_by(|a, b| a / chunk == b / chunk) {
            let first = members[0] / chunk * chunk;
            let last = members[members.len() - 1];
            let prefix = segment.prefix.start + first.min(before)..segment.prefix.end;
            let keys = segment.keys.start + first.saturating_sub(before)..segment.keys.start + last + 1 - before;
            let own = members.iter().map(|position| position - first).collect();
            segments.push(Segment { queries: start..start + members.len(), prefix, keys, own: Some(own) });
            start += members.len();
        }
    }
    Layout::ragged(segments).in_pages(layout.pages().cloned())
}

/// Rows of an attention within slices that are gathered.
#[derive(Debug, PartialEq)]
struct Gathered {
    /// Query rows in the order of the slices.
    queries: Vec<usize>,
    /// Key rows in the order of the slices.
    keys: Vec<usize>,
    segments: Vec<Segment>,
}

impl Gathered {
    /// Slices of every `groups`-th token.
    fn strides(layout: &Layout, groups: usize) -> Self {
        let mut plan = Self { queries: Vec::new(), keys: Vec::new(), segments: Vec::new() };
        for segment in layout.segments() {
            let key_row = |index: usize| match index.checked_sub(segment.prefix.len()) {
                None => segment.prefix.start + index,
                Some(index) => layout.key_row(segment.keys.start + index),
            };
            let positions: Vec<usize> = segment.positions().collect();
            for slice in 0..groups {
                let members: Vec<usize> = (0..positions.len()).filter(|i| positions[*i] % groups == slice).collect();
                let Some(last) = members.last().map(|i| positions[*i]) else { continue };
                let own = members.iter().map(|i| positions[*i] / groups).collect();
                let (first_query, first_key) = (plan.queries.len(), plan.keys.len());
                plan.queries.extend(members.iter().map(|i| segment.queries.start + i));
                plan.keys.extend((slice..=last).step_by(groups).map(key_row));
                plan.segments.push(Segment {
                    queries: first_query..plan.queries.len(),
                    prefix: 0..0,
                    keys: first_key..plan.keys.len(),
                    own: Some(own),
                });
            }
        }
        plan
    }

    fn attend(self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, scoring: Scoring) -> Tensor<3> {
        let Self { queries, keys, segments } = self;
        let mut back = vec![0; queries.len()];
        queries.iter().enumerate().for_each(|(at, row)| back[*row] = at);
        let (q, k, v) = (take(q, &queries), take(k, &keys), take(v, &keys));
        take(kernels::attention(q, k, v, &Layout::ragged(segments), scoring), &back)
    }
}

/// Attention within slices; arguments and result are those of [`kernels::attention`].
pub(crate) fn attend_sliced(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    (layout, slices): (&Layout, Slices),
    scoring: Scoring,
) -> Tensor<3> {
    if let Some(chunk) = slices.chunk {
        return kernels::attention(q, k, v, &chunks(layout, chunk), scoring);
    }
    Gathered::strides(layout, slices.groups).attend(q, k, v, scoring)
}

/// Attention within slices without an order: each row attends to all rows of its slice, in which it
/// is. `slices` has every row once, in any order. Arguments and result are those of
/// [`kernels::attention`].
#[must_use]
pub fn attend_slices(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    slices: &[impl AsRef<[usize]>],
    scoring: Scoring,
) -> Tensor<3> {
    let mut plan = Gathered { queries: Vec::new(), keys: Vec::new(), segments: Vec::new() };
    for slice in slices.iter().map(AsRef::as_ref).filter(|slice| !slice.is_empty()) {
        let start = plan.queries.len();
        let rows = start..start + slice.len();
        plan.queries.extend_from_slice(slice);
        plan.keys.extend_from_slice(slice);
        let own = Some(vec![slice.len() - 1; slice.len()].into());
        plan.segments.push(Segment { queries: rows.clone(), prefix: 0..0, keys: rows, own });
    }
    plan.attend(q, k, v, scoring)
}
