//! Sources of the keys and values that a depth attends to (Mixture-of-Recursions, §2.2.2,
//! <https://arxiv.org/abs/2507.10524>): computed from the depth's rows and appended to the cache;
//! reused from the first recursion; or reused, with those of the selected rows replaced.

use crate::{
    cache::DepthCache,
    kernels::{Merge, RowSet, merge},
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
    /// computed ones; the result is appended to `cache`, if there is one.
    Overlaid { first: KeysValues, rows: RowSet, cache: Option<DepthCache<'a>> },
}

impl KvSource<'_> {
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
            Self::Overlaid { first, rows, cache } => joined(cache, over(first, make(), rows)),
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
    let replace = |all: Tensor<2>, some: Tensor<2>| {
        let gate = Tensor::ones([rows.len(), 1], &all.device());
        // With straight-through gating the forward pass inserts `some` unchanged; the gate is a
        // constant.
        merge(all, some, gate, Merge { rows: rows.clone(), gating: Gating::StraightThrough })
    };
    [replace(first_k, k), replace(first_v, v)]
}
