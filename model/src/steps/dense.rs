//! Dense feedback (`retie_config::DenseConfig`), and the hidden states that it reads.

use crate::kernels;
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// Hidden states that entered the recursions so far, `[M, D]` each, by recursion, with the number
/// of depths before it. Empty in a model that does not read them.
#[derive(Clone, Debug, Default)]
pub struct EnteredStates(BTreeMap<usize, (usize, Tensor<2>)>);

impl EnteredStates {
    /// Adds the state that enters `recursion` after `depth` depths.
    pub fn insert(&mut self, recursion: usize, depth: usize, state: Tensor<2>) {
        self.0.insert(recursion, (depth, state));
    }

    /// Numbers of depths before the states, and the states.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Tensor<2>)> {
        self.0.values().map(|(depth, state)| (*depth, state))
    }

    /// Copy with `change` applied to each state.
    #[must_use]
    pub fn map(&self, change: impl Fn(Tensor<2>) -> Tensor<2>) -> Self {
        Self(self.0.iter().map(|(recursion, (depth, state))| (*recursion, (*depth, change(state.clone())))).collect())
    }

    /// States that entered the recursions 1 to `last`, in their order: what left those before them.
    pub(super) fn later(&self, last: usize) -> impl Iterator<Item = &Tensor<2>> {
        self.0.range(1..=last).map(|(_, (_, state))| state)
    }

    /// `x + Σ_{q ≤ r} a_q·h_q` with `h_q` the state that entered recursion `q`, `a [r + 1]`.
    #[must_use]
    pub fn feed_back(&self, x: Tensor<2>, recursion: usize, factors: &Tensor<1>) -> Tensor<2> {
        let states = self.0.range(..=recursion);
        let one: Tensor<1> = Tensor::ones([1], &x.device());
        states.fold(x, |sum, (q, (_, state))| {
            kernels::mix([sum, state.clone()], [one.clone(), factors.clone().narrow(0, *q, 1)])
        })
    }
}
