//! Which keys and values a depth attends to (Mixture-of-Recursions, §2.2.2, <https://arxiv.org/abs/2507.10524>): those that it makes of
//! its rows, behind what a cache holds; or those that the first recursion made of every token, with its own in their places or without.

use crate::{
    cache::KvSlot,
    kernels::{Merge, merge},
};
use burn::tensor::Tensor;
use retie_config::Gating;
use std::sync::Arc;

/// Keys and values of all rows, `[S, K·H]` each.
pub type KeysValues = [Tensor<2>; 2];

/// Where a depth's keys and values come from and go.
#[derive(Debug)]
pub(crate) enum Kv<'a> {
    /// Those of its rows; they join the slot, if there is one, and are left here too, if later recursions ask for them.
    Own { slot: Option<KvSlot<'a>>, kept: Option<&'a mut Vec<KeysValues>> },
    /// These: none are made.
    Given(KeysValues),
    /// `first`, those of all rows of the forward pass, with those of the depth's `rows` in their places; then as [`Kv::Own`].
    Over { first: KeysValues, rows: Arc<[usize]>, slot: Option<KvSlot<'a>> },
}

impl Kv<'_> {
    /// What is attended to: `[S, K·H]` each. `make` gives those of the depth's rows, if they are needed.
    pub(crate) fn of(self, make: impl FnOnce() -> KeysValues) -> KeysValues {
        match self {
            Self::Own { slot, kept } => {
                let made = make();
                if let Some(kept) = kept {
                    kept.push(made.clone());
                }
                joined(slot, made)
            }
            Self::Given(given) => given,
            Self::Over { first, rows, slot } => joined(slot, over(first, make(), rows)),
        }
    }
}

fn joined(slot: Option<KvSlot<'_>>, made: KeysValues) -> KeysValues {
    match slot {
        Some(slot) => slot.append(made),
        None => made,
    }
}

/// `first` with `made` in place of the rows `rows`.
fn over(first: KeysValues, made: KeysValues, rows: Arc<[usize]>) -> KeysValues {
    let ([first_k, first_v], [k, v]) = (first, made);
    let replace = |all: Tensor<2>, some: Tensor<2>| {
        let gate = Tensor::ones([rows.len(), 1], &all.device());
        // Its forward pass puts `some` in place as it is; the gate is not trained.
        merge(all, some, gate, Merge { rows: rows.clone(), gating: Gating::StraightThrough })
    };
    [replace(first_k, k), replace(first_v, v)]
}
