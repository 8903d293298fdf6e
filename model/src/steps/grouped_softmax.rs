//! Fusion of exits (`retie_config::GroupedSoftmaxConfig`).

use super::{StepLoader, dense::EnteredStates};
use crate::kernels::{self, RowSet};
use burn::{
    module::{Module, Param},
    tensor::{Tensor, activation::softmax},
};
use retie_checkpoint::CheckpointError;

/// Weights of the exit after one recursion.
#[derive(Module, Debug)]
pub struct GroupedSoftmax {
    /// Scores of the channels of each state, `W [r + 1, D]`.
    pub weight: Param<Tensor<2>>,
    /// `b [r + 1, groups]`.
    pub bias: Param<Tensor<2>>,
    /// `γ [D]`.
    pub scale: Param<Tensor<1>>,
}

impl GroupedSoftmax {
    pub(super) fn load(from: &StepLoader<'_>) -> Result<Option<Self>, CheckpointError> {
        let Some(weight) = from.optional("fuse.weight")? else { return Ok(None) };
        Ok(Some(Self { weight, bias: from.param("fuse.bias")?, scale: from.param("fuse.scale")? }))
    }

    /// Fuses `left [k, D]`, the state of `rows` after the recursion (of all, if `None`), with what
    /// has left the earlier recursions: the states that entered those after the first.
    pub(crate) fn forward(
        &self,
        left: Tensor<2>,
        (entered, rows): (&EnteredStates, Option<&RowSet>),
        eps: f32,
    ) -> Tensor<2> {
        let of_rows = |x: Tensor<2>| match rows {
            Some(rows) => kernels::gather(x, rows),
            None => x,
        };
        let [count, groups] = self.bias.dims();
        let mut states: Vec<Tensor<2>> = entered.later(count - 1).map(|state| of_rows(state.clone())).collect();
        states.push(left.clone());
        assert_eq!(states.len(), count, "states of an exit after {count} recursions");
        let [num_rows, hidden] = left.dims();
        let grouped = |x: Tensor<2>| x.reshape([num_rows, groups, hidden / groups]);
        let score = |(index, state): (usize, &Tensor<2>)| {
            let scale = (state.clone().square().mean_dim(1) + eps).sqrt();
            let weight = self.weight.val().narrow(0, index, 1);
            let bias = self.bias.val().narrow(0, index, 1).reshape([1, groups, 1]);
            grouped(state.clone() / scale * weight).sum_dim(2) + bias // [k, groups, 1]
        };
        let scores = Tensor::cat(states.iter().enumerate().map(score).collect(), 2);
        let change = fuse(states, scores) - left.clone();
        kernels::add(left, change * self.scale.val().unsqueeze())
    }
}

/// Mean of `states`, `[k, D]` each, in which every row and group of channels has its own shares:
/// the softmax of `scores [k, groups, states]` → `[k, D]`.
///
/// # Panics
/// When there is no state.
#[must_use]
pub fn fuse(states: Vec<Tensor<2>>, scores: Tensor<3>) -> Tensor<2> {
    let [num_rows, groups, _] = scores.dims();
    let shares = softmax(scores, 2);
    let part = |(index, state): (usize, Tensor<2>)| {
        let [_, hidden] = state.dims();
        let part = state.reshape([num_rows, groups, hidden / groups]) * shares.clone().narrow(2, index, 1);
        part.reshape([num_rows, hidden])
    };
    let Some(fused) = states.into_iter().enumerate().map(part).reduce(|sum, part| sum + part) else {
        panic!("fusion of no states")
    };
    fused
}
