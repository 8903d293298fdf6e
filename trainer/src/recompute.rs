//! Backward passes of a stack that keeps little: gradient checkpointing (Chen et al., <https://arxiv.org/abs/1604.06174>) with
//! one recursion as the unit.
//!
//! The forward pass runs without a graph and keeps the hidden states that enter each part of the stack. The backward pass takes
//! the parts from the last to the first, runs each again with a graph, and hands the gradient of its input to the part before. So
//! the activations of one part are in memory at a time. The gradients are those of one graph over the whole stack, but for the
//! order in which the uses of a shared weight are summed.

use crate::gradients::Gradients;
use burn::{
    module::Module,
    tensor::{Int, Tensor},
};
use retie_config::ShareMap;
use retie_model::{CausalLm, Rows, kernels::Layout};
use std::ops::Range;

/// A forward pass that can be taken back part by part.
#[derive(Debug)]
pub struct Checkpointed {
    ids: Tensor<1, Int>,
    rows: Rows,
    /// Depths, and the hidden states `[M, D]` that enter them.
    parts: Vec<(Range<usize>, Tensor<2>)>,
    /// What the last part left, a leaf of its own graph.
    last: Tensor<2>,
    /// After the final norm.
    hidden: Tensor<2>,
}

impl Checkpointed {
    /// Runs `student` over `ids [M]`.
    pub fn forward(student: &CausalLm, ids: Tensor<1, Int>, layout: Layout) -> Self {
        let plain = student.valid();
        let rows = plain.rows(layout);
        let mut x = plain.embed(ids.clone());
        let mut parts = Vec::new();
        for depths in passes(student.share_map()) {
            let entering = x.clone();
            x = plain.run_depths(x, depths.clone(), &rows, None);
            parts.push((depths, entering));
        }
        let last = Tensor::from_inner(x).require_grad();
        let hidden = student.norm(last.clone());
        Self { ids, rows, parts, last, hidden }
    }

    /// Hidden states after the final norm, `[M, D]`.
    pub fn hidden(&self) -> Tensor<2> {
        self.hidden.clone().inner()
    }

    /// Adds the gradients of everything below the head, given that of [`Checkpointed::hidden`].
    pub fn backward(self, student: &CausalLm, grad_hidden: Tensor<2>, grads: &mut Gradients) {
        let Self { ids, rows, parts, last, hidden } = self;
        let mut grad = take_back(student, hidden, &last, grad_hidden, grads);
        for (depths, entering) in parts.into_iter().rev() {
            let entering = Tensor::from_inner(entering).require_grad();
            let left = student.run_depths(entering.clone(), depths, &rows, None);
            grad = take_back(student, left, &entering, grad, grads);
        }
        grads.add(student, with_gradient(student.embed(ids), grad).backward());
    }
}

/// Adds the gradients of the parameters between `input` and `output`; gives the gradient of `input`.
fn take_back(
    student: &CausalLm,
    output: Tensor<2>,
    input: &Tensor<2>,
    grad_output: Tensor<2>,
    grads: &mut Gradients,
) -> Tensor<2> {
    let mut graph = with_gradient(output, grad_output).backward();
    let grad = match input.grad_remove(&mut graph) {
        Some(grad) => grad,
        None => unreachable!("a leaf that the output depends on has a gradient"),
    };
    grads.add(student, graph);
    grad
}

/// A scalar whose gradient for `x` is `grad`: d(Σ x·g)/dx = g.
pub fn with_gradient(x: Tensor<2>, grad: Tensor<2>) -> Tensor<1> {
    (x * Tensor::from_inner(grad)).sum()
}

/// Runs of depths of one recursion, in order; depths of the unshared ends are runs of their own.
fn passes(map: &ShareMap) -> Vec<Range<usize>> {
    let mut passes: Vec<(Option<usize>, Range<usize>)> = Vec::new();
    for step in map.depths() {
        match passes.last_mut() {
            Some((recursion, depths)) if *recursion == step.recursion => depths.end = step.depth.0 + 1,
            _ => passes.push((step.recursion, step.depth.0..step.depth.0 + 1)),
        }
    }
    passes.into_iter().map(|(_, depths)| depths).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::Sharing;

    #[test]
    fn a_pass_is_one_recursion_or_an_unshared_end() {
        let of = |n, r, sharing| passes(&ShareMap::new(n, r, sharing).unwrap());
        assert_eq!(of(6, 2, Sharing::Cycle), [0..3, 3..6]);
        assert_eq!(of(8, 2, Sharing::MiddleCycle), [0..1, 1..4, 4..7, 7..8]);
        assert_eq!(of(4, 2, Sharing::Sequence), [0..1, 1..2, 2..3, 3..4]);
    }
}
