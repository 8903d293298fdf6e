//! Sources of the keys and values that a depth attends to (Mixture-of-Recursions, §2.2.2,
//! <https://arxiv.org/abs/2507.10524>): computed from the depth's rows and appended to the cache;
//! reused from the first recursion; or reused, with those of the selected rows replaced.

use crate::{
    cache::{DepthCache, KvCache},
    kernels::{Layout, Merge, RowSet, merge},
};
use burn::tensor::Tensor;
use retie_config::{Gating, LayerIndex};
use std::collections::BTreeMap;

/// Keys and values of all rows, `[S, K·H]` each.
pub type KeysValues = [Tensor<2>; 2];

/// Keys and values of the first recursion by stored layer, over all rows, for later recursions to
/// read.
#[derive(Clone, Debug, Default)]
pub struct FirstRecursionKv(BTreeMap<LayerIndex, KeysValues>);

impl FirstRecursionKv {
    pub(crate) fn insert(&mut self, layer: LayerIndex, kv: KeysValues) {
        self.0.insert(layer, kv);
    }

    pub(crate) fn get(&self, layer: LayerIndex) -> KeysValues {
        match self.0.get(&layer) {
            Some(kv) => kv.clone(),
            None => unreachable!("the first recursion ran layer {layer} before a later one"),
        }
    }

    /// Keys and values by layer, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (LayerIndex, &KeysValues)> {
        self.0.iter().map(|(layer, kv)| (*layer, kv))
    }

    /// Copy with `change` applied to each tensor.
    #[must_use]
    pub fn map(&self, change: impl Fn(Tensor<2>) -> Tensor<2>) -> Self {
        Self(self.iter().map(|(layer, kv)| (layer, kv.clone().map(&change))).collect())
    }
}

/// Source of a depth's keys and values, and the places that store them.
#[derive(Debug)]
pub(crate) enum KvSource<'a> {
    /// Computed from the depth's rows. They are appended to `cache`, if there is one, and stored in
    /// `kept`, if later recursions read them.
    Computed { cache: Option<DepthCache<'a>>, kept: Option<&'a mut Option<KeysValues>> },
    /// Taken as they are; the depth computes none.
    Reused(KeysValues),
    /// `first`, which has all rows of the forward pass, with the depth's `rows` replaced by
    /// computed ones; the result is appended to `cache`, if there is one, and stored in `kept`, if
    /// later recursions read it.
    Overlaid {
        first: KeysValues,
        rows: RowSet,
        cache: Option<DepthCache<'a>>,
        kept: Option<&'a mut Option<KeysValues>>,
    },
    /// Computed from the rows of several depths, and appended to the cache of each; or read from
    /// the cache.
    OfDepths(DepthCaches<'a>),
}

/// The cache of rows that belong to several depths of one layer.
#[derive(Debug)]
pub(crate) struct DepthCaches<'a> {
    pub cache: &'a mut KvCache,
    /// Consecutive rows of each depth, in their order.
    pub groups: Vec<DepthRows<'a>>,
}

/// Rows of one depth.
#[derive(Debug)]
pub(crate) struct DepthRows<'a> {
    /// Depth with the buffers that they attend to.
    pub depth: usize,
    /// Their attention layout, with keys in these buffers.
    pub layout: &'a Layout,
    /// True if they have keys and values of their own, which are appended to the buffers; those of
    /// the first recursion are there already.
    pub computes: bool,
    /// Depths that hold the same keys and values until they compute their own.
    pub later: Vec<usize>,
}

impl DepthCaches<'_> {
    /// Number of rows that have keys and values of their own; they come first.
    pub fn num_computed(&self) -> usize {
        self.groups.iter().take_while(|group| group.computes).map(|group| group.layout.num_rows()).sum()
    }

    /// Appends the keys and values `computed`, of the rows that have their own, to the caches, and
    /// runs `attend` with the queries `q [M, N, H]` of each depth.
    pub fn attend(
        self,
        q: Tensor<3>,
        computed: Option<KeysValues>,
        attend: impl Fn(Tensor<3>, KeysValues, &Layout) -> Tensor<3>,
    ) -> Tensor<3> {
        let Self { cache, groups } = self;
        let is_one = groups.len() == 1;
        let mut start = 0;
        let parts = groups.into_iter().map(|DepthRows { depth, layout, computes, later }| {
            let rows = layout.num_rows();
            let of_rows = |x: &Tensor<2>| if is_one { x.clone() } else { x.clone().narrow(0, start, rows) };
            let own = computed.as_ref().filter(|_| computes).map(|kv| kv.each_ref().map(of_rows));
            let q = if is_one { q.clone() } else { q.clone().narrow(0, start, rows) };
            start += rows;
            let Some(own) = own else { return attend(q, cache.buffers(depth), layout) };
            for depth in later {
                let _ = cache.depth(depth, layout).append(own.clone());
            }
            attend(q, cache.depth(depth, layout).append(own), layout)
        });
        let mut parts: Vec<Tensor<3>> = parts.collect();
        match parts.len() {
            1 => parts.remove(0),
            _ => Tensor::cat(parts, 0),
        }
    }
}

impl<'a> KvSource<'a> {
    /// Whether keys and values are those of the depth's rows, which nothing else reads.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Self::Computed { cache: None, kept: None })
    }

    /// Whether keys and values of all `rows` rows are made.
    pub(crate) fn is_made_of(&self, rows: usize) -> bool {
        match self {
            Self::Computed { .. } | Self::Overlaid { .. } => true,
            Self::Reused(_) => false,
            Self::OfDepths(caches) => caches.num_computed() == rows,
        }
    }

    /// The cache, if keys and values are stored.
    pub(crate) fn cache_mut(&mut self) -> Option<&mut DepthCache<'a>> {
        match self {
            Self::Computed { cache, .. } | Self::Overlaid { cache, .. } => cache.as_mut(),
            Self::Reused(_) | Self::OfDepths(_) => None,
        }
    }

    /// The cache alone, for a depth that attends to what it makes of it.
    pub(crate) fn into_cache(self) -> Option<DepthCache<'a>> {
        match self {
            Self::Computed { cache, .. } | Self::Overlaid { cache, .. } => cache,
            Self::Reused(_) | Self::OfDepths(_) => None,
        }
    }

    /// Keys and values to attend to, `[S, K·H]` each. `make` computes those of the depth's rows; it
    /// is called only if they are needed.
    pub(crate) fn keys_values(self, make: impl FnOnce() -> KeysValues) -> KeysValues {
        match self {
            Self::Computed { cache, kept } => {
                let computed = make();
                if let Some(kept) = kept {
                    *kept = Some(computed.clone());
                }
                joined(cache, computed)
            }
            Self::Reused(given) => given,
            Self::Overlaid { first, rows, cache, kept } => {
                let computed = over(first, make(), rows);
                if let Some(kept) = kept {
                    *kept = Some(computed.clone());
                }
                joined(cache, computed)
            }
            Self::OfDepths(_) => unreachable!("rows of several depths attend depth by depth"),
        }
    }
}

fn joined(cache: Option<DepthCache<'_>>, computed: KeysValues) -> KeysValues {
    match cache {
        Some(cache) => cache.append(computed),
        None => computed,
    }
}

/// `first` with the rows `rows` replaced by `computed`.
fn over(first: KeysValues, computed: KeysValues, rows: RowSet) -> KeysValues {
    let ([first_k, first_v], [k, v]) = (first, computed);
    [replace_rows(first_k, k, rows.clone()), replace_rows(first_v, v, rows)]
}

/// `all [M, D]` with the rows `rows` replaced by `some [k, D]`.
pub(crate) fn replace_rows(all: Tensor<2>, some: Tensor<2>, rows: RowSet) -> Tensor<2> {
    let gate = Tensor::ones([rows.len(), 1], &all.device());
    // With straight-through gating the forward pass inserts `some` unchanged; the gate is a
    // constant.
    merge(all, some, gate, Merge { rows, gating: Gating::StraightThrough })
}
