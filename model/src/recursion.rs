//! One recursion of a forward pass: runs its depths over the selected rows, on the keys and values
//! of the KV sharing strategy (Mixture-of-Recursions, §2.2.2, <https://arxiv.org/abs/2507.10524>).

use crate::{
    cache::KvCache,
    causal_lm::CausalLm,
    kernels::{Layout, RowSet, Segment, range},
    kv::{FirstRecursionKv, KvSource},
    row_context::RowContext,
};
use burn::tensor::Tensor;
use retie_config::{KvSharing, LayerIndex};
use std::ops::Range;

/// Arguments of one recursion.
#[derive(Clone, Debug)]
pub(crate) struct RecursionCall<'a> {
    /// Index of the recursion.
    pub recursion: usize,
    /// All depths of the recursion, or a part of them.
    pub depths: Range<usize>,
    /// All rows of the forward pass.
    pub rows: &'a RowContext,
    /// Rows that go through the recursion.
    pub selected_rows: RowSet,
}

/// Keys and values that outlive a recursion.
#[derive(Debug)]
pub(crate) struct SharedKv<'a> {
    /// Keys and values of the first recursion, where no cache holds them.
    pub first: &'a mut FirstRecursionKv,
    /// Keys and values of past tokens.
    pub cache: Option<&'a mut KvCache>,
}

impl RecursionCall<'_> {
    pub(crate) fn selects_all(&self) -> bool {
        self.selected_rows.len() == self.rows.num_rows()
    }
}

impl CausalLm {
    /// KV sharing strategy; recursion-wise for a model without recursions.
    #[must_use]
    pub fn kv_sharing(&self) -> KvSharing {
        self.spec.config.recursion.as_ref().map_or(KvSharing::RecursionWise, |recursion| recursion.kv_sharing)
    }

    /// Runs a recursion over the selected rows with hidden states `x [k, D]` → `[k, D]`.
    pub(crate) fn run_recursion(&self, x: Tensor<2>, call: &RecursionCall<'_>, kv: SharedKv<'_>) -> Tensor<2> {
        match (self.kv_sharing(), call.recursion) {
            (KvSharing::RecursionWise, _) => self.run_recursion_wise(x, call, kv.cache),
            (KvSharing::Shared | KvSharing::Hybrid, 0) => self.run_first(x, call, kv),
            (KvSharing::Shared, _) => self.run_shared(x, call, kv),
            (KvSharing::Hybrid, _) => self.run_hybrid(x, call, kv),
        }
    }

    /// Bookkeeping for a recursion that selects no rows: with [`KvSharing::Hybrid`] the cache gets
    /// the keys and values of the first recursion.
    pub(crate) fn skip_recursion(&self, call: &RecursionCall<'_>, kv: SharedKv<'_>) {
        if let Some(cache) = kv.cache.filter(|_| self.kv_sharing() == KvSharing::Hybrid) {
            for depth in call.depths.clone() {
                let _ = cache.depth(depth, &call.rows.layout).append(kv.first.get(self.layer(depth)));
            }
        }
    }

    /// Recursion-wise caching: the selected rows attend to one another.
    fn run_recursion_wise(&self, x: Tensor<2>, call: &RecursionCall<'_>, cache: Option<&mut KvCache>) -> Tensor<2> {
        let RecursionCall { recursion, depths, rows, selected_rows } = call;
        let Some(cache) = cache else {
            if call.selects_all() {
                return self.run_depths(x, depths.clone(), rows);
            }
            let layout = among_selected(&rows.layout, selected_rows);
            return self.run_depths(x, depths.clone(), &rows.only(selected_rows, layout));
        };
        match cache.select(*recursion, depths.clone(), &rows.layout, selected_rows.host()) {
            Some(layout) => self.run_cached_depths(x, depths.clone(), &rows.only(selected_rows, layout), cache),
            None => self.run_cached_depths(x, depths.clone(), rows, cache),
        }
    }

    /// First recursion of `shared` and `hybrid`, over all rows. Later recursions read its keys and
    /// values.
    fn run_first(&self, mut x: Tensor<2>, call: &RecursionCall<'_>, kv: SharedKv<'_>) -> Tensor<2> {
        let SharedKv { first, mut cache } = kv;
        // With `shared`, later recursions read the cache itself.
        let keep = cache.is_none() || self.kv_sharing() == KvSharing::Hybrid;
        for depth in call.depths.clone() {
            let cache = cache.as_deref_mut().map(|cache| cache.depth(depth, &call.rows.layout));
            let mut kept = None;
            x = self.run_depth(x, depth, call.rows, KvSource::Computed { cache, kept: keep.then_some(&mut kept) });
            if let Some(kept) = kept {
                first.insert(self.layer(depth), kept);
            }
        }
        x
    }

    /// Recursive sharing: the selected rows attend to the first recursion's keys and values of all
    /// tokens.
    fn run_shared(&self, mut x: Tensor<2>, call: &RecursionCall<'_>, kv: SharedKv<'_>) -> Tensor<2> {
        let selected = selected_before_all(call);
        let rows = selected.as_ref().unwrap_or(call.rows);
        for depth in call.depths.clone() {
            let reused = match &kv.cache {
                Some(cache) => cache.buffers(self.first_depth(depth)),
                None => kv.first.get(self.layer(depth)),
            };
            x = self.run_depth(x, depth, rows, KvSource::Reused(reused));
        }
        x
    }

    /// Hybrid of the two: as [`CausalLm::run_shared`], but the recursion's own keys and values
    /// replace those of the selected rows.
    fn run_hybrid(&self, mut x: Tensor<2>, call: &RecursionCall<'_>, mut kv: SharedKv<'_>) -> Tensor<2> {
        let selected = selected_before_all(call);
        let rows = selected.as_ref().unwrap_or(call.rows);
        for depth in call.depths.clone() {
            let cache = kv.cache.as_deref_mut().map(|cache| cache.depth(depth, &call.rows.layout));
            let source = match selected {
                None => KvSource::Computed { cache, kept: None },
                Some(_) => {
                    let first = kv.first.get(self.layer(depth));
                    KvSource::Overlaid { first, rows: call.selected_rows.clone(), cache, kept: None }
                }
            };
            x = self.run_depth(x, depth, rows, source);
        }
        x
    }

    /// Runs depths with a cache, to which the keys and values of `rows` are added.
    pub(crate) fn run_cached_depths(
        &self,
        mut x: Tensor<2>,
        depths: Range<usize>,
        rows: &RowContext,
        cache: &mut KvCache,
    ) -> Tensor<2> {
        for depth in depths {
            let cache = Some(cache.depth(depth, &rows.layout));
            x = self.run_depth(x, depth, rows, KvSource::Computed { cache, kept: None });
        }
        x
    }

    pub(crate) fn layer(&self, depth: usize) -> LayerIndex {
        self.spec.share_map.depths()[depth].layer
    }

    /// First depth that runs the layer of `depth`.
    fn first_depth(&self, depth: usize) -> usize {
        let depths = self.spec.share_map.depths();
        depths.iter().position(|step| step.layer == depths[depth].layer).unwrap_or(depth)
    }
}

/// Attention layout of recursion-wise caching without a cache: `selected` rows attend to one
/// another and to the selected rows of their shared prefix.
fn among_selected(layout: &Layout, selected: &RowSet) -> Layout {
    let Some(selected) = selected.of_host() else {
        // Selected by a device: the sequences are whole, without prefixes.
        let counts = selected.per_sequence(layout.segments());
        return match counts.first().filter(|first| counts.iter().all(|count| count == *first)) {
            Some(tokens) => Layout::batch(counts.len(), *tokens),
            None => Layout::packed(counts.into_iter().map(|count| (count, 0..0))),
        };
    };
    let segments = layout.segments().iter().map(|segment| {
        let queries = range(selected, &segment.queries);
        Segment::last(queries.clone(), range(selected, &segment.prefix), queries)
    });
    Layout::ragged(segments.filter(|segment| !segment.queries.is_empty()).collect())
}

/// Context of the selected rows, which attend to all rows up to their own; `None` if all rows are
/// selected.
pub(crate) fn selected_before_all(call: &RecursionCall<'_>) -> Option<RowContext> {
    (!call.selects_all())
        .then(|| call.rows.only(&call.selected_rows, before_all(&call.rows.layout, &call.selected_rows)))
}

/// Attention layout in which `selected` rows attend to every key that they would in a full pass.
fn before_all(layout: &Layout, selected: &RowSet) -> Layout {
    let Some(rows) = selected.of_host() else {
        let counts = selected.per_sequence(layout.segments());
        let starts: Vec<usize> = layout.segments().iter().map(|segment| segment.queries.start).collect();
        return layout.with_queries(&counts, selected.minus_of_sequence(&starts, &counts));
    };
    let segments = layout.segments().iter().filter_map(|segment| {
        let at = range(rows, &segment.queries);
        (!at.is_empty()).then(|| segment.only(&rows[at.clone()], at.start))
    });
    Layout::ragged(segments.collect()).in_pages(layout.pages().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selected_rows_of_packed_sequences_see_the_selected_rows_of_their_prefix() {
        let layout = Layout::packed([(4, 0..0), (2, 0..4), (3, 0..3)]);
        let selected = [0, 2, 3, 6, 8].into();
        let found = among_selected(&layout, &selected);
        let segment = |queries: Range<usize>, prefix| Segment::last(queries.clone(), prefix, queries);
        assert_eq!(found.segments(), [segment(0..3, 0..0), segment(3..5, 0..2)]);
        let found = before_all(&layout, &selected);
        let summary = |i: usize| {
            let segment = &found.segments()[i];
            (segment.queries.clone(), segment.prefix.clone(), segment.keys.clone(), segment.positions().collect())
        };
        assert_eq!(summary(0), (0..3, 0..0, 0..4, vec![0, 2, 3]));
        assert_eq!(summary(1), (3..5, 0..3, 6..9, vec![3, 5]));
    }

    #[test]
    fn rows_that_a_device_selects_see_what_those_of_the_host_do() {
        let rows = [1, 2, 4, 7];
        let numbers = burn::tensor::Tensor::<1, burn::tensor::Int>::from_ints(
            rows.map(|row| row as i32),
            &burn::tensor::Device::flex(),
        );
        for (layout, per_sequence) in [(Layout::batch(2, 4), [2, 2]), (Layout::packed([(5, 0..0), (3, 0..0)]), [3, 1])]
        {
            let on_device = RowSet::on_device(numbers.clone(), numbers.clone(), per_sequence.into());
            let among = among_selected(&layout, &on_device);
            assert_eq!(among.segments(), among_selected(&layout, &rows.into()).segments());
            let [found, expected] = [&on_device, &rows.into()].map(|rows| before_all(&layout, rows));
            let positions = |layout: &Layout| layout.segments().iter().flat_map(Segment::positions).collect::<Vec<_>>();
            assert_eq!(**found.own_keys().unwrap().host(), *positions(&expected));
            for window in [None, Some(2)] {
                assert_eq!(found.num_pairs(window), expected.num_pairs(window));
            }
            let ranges = |layout: &Layout| {
                layout.segments().iter().map(|s| (s.queries.clone(), s.keys.clone())).collect::<Vec<_>>()
            };
            assert_eq!(ranges(&found), ranges(&expected));
        }
    }
}
