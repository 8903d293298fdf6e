//! The stack's forward pass as parts that can be taken back one by one, from the last to the first.
//!
//! With one part it is plain backpropagation. With one part a recursion it is gradient checkpointing (Chen et al.,
//! <https://arxiv.org/abs/1604.06174>): the forward pass runs without a graph and keeps the hidden states that enter each part; the
//! backward pass runs each part again with a graph, and hands the gradient of its input to the part before. So the activations of
//! one part are in memory at a time. The gradients are those of one graph over the whole stack, but for the order in which the
//! uses of a shared weight are summed.
//!
//! The embeddings are outside of it: their gradient is that of the first part's input, by row.

use crate::gradients::Gradients;
use burn::{
    module::Module,
    tensor::{Int, Tensor},
};
use retie_config::ShareMap;
use retie_model::{CausalLm, Rows, kernels::Layout};
use std::ops::Range;

/// A forward pass that can be taken back.
#[derive(Debug)]
pub struct Pass {
    rows: Rows,
    /// Depths that are not in the graph of `hidden`, and the hidden states `[M, D]` that enter them.
    parts: Vec<(Range<usize>, Tensor<2>)>,
    /// What enters the graph of `hidden`: its leaf.
    entering: Tensor<2>,
    /// After the final norm.
    hidden: Tensor<2>,
}

impl Pass {
    /// Runs `student` over `ids [M]` with one graph.
    pub fn whole(student: &CausalLm, ids: Tensor<1, Int>, layout: Layout) -> Self {
        let rows = student.rows(layout);
        let entering = leaf(student.valid().embed(ids));
        let depths = 0..student.share_map().num_depths();
        let hidden = student.norm(student.run_depths(entering.clone(), depths, &rows, None));
        Self { rows, parts: Vec::new(), entering, hidden }
    }

    /// Runs `student` over `ids [M]` without a graph but for the final norm's.
    pub fn by_recursion(student: &CausalLm, ids: Tensor<1, Int>, layout: Layout) -> Self {
        let plain = student.valid();
        let rows = plain.rows(layout);
        let mut x = plain.embed(ids);
        let mut parts = Vec::new();
        for depths in passes(student.share_map()) {
            let entering = x.clone();
            x = plain.run_depths(x, depths.clone(), &rows, None);
            parts.push((depths, entering));
        }
        let entering = leaf(x);
        let hidden = student.norm(entering.clone());
        Self { rows, parts, entering, hidden }
    }

    /// Hidden states after the final norm, `[M, D]`.
    pub fn hidden(&self) -> Tensor<2> {
        self.hidden.clone().inner()
    }

    /// Adds the gradients of everything between embeddings and head, given that of [`Pass::hidden`]; gives the gradient of the
    /// embeddings' rows, `[M, D]`.
    pub fn backward(self, student: &CausalLm, grad_hidden: Tensor<2>, grads: &mut Gradients) -> Tensor<2> {
        let Self { rows, parts, entering, hidden } = self;
        let mut grad = take_back(student, hidden, &entering, grad_hidden, grads);
        drop(entering);
        for (depths, entering) in parts.into_iter().rev() {
            let entering = leaf(entering);
            let left = student.run_depths(entering.clone(), depths, &rows, None);
            grad = take_back(student, left, &entering, grad, grads);
        }
        grad
    }
}

fn leaf(x: Tensor<2>) -> Tensor<2> {
    Tensor::from_inner(x).require_grad()
}

/// Adds the gradients of the parameters between `input` and `output`; gives the gradient of `input`.
fn take_back(
    student: &CausalLm,
    output: Tensor<2>,
    input: &Tensor<2>,
    grad_output: Tensor<2>,
    grads: &mut Gradients,
) -> Tensor<2> {
    // d(Σ x·g)/dx = g: the gradient goes on into the graph.
    let mut graph = (output * Tensor::from_inner(grad_output)).sum().backward();
    let grad = match input.grad_remove(&mut graph) {
        Some(grad) => grad,
        None => unreachable!("a leaf that the output depends on has a gradient"),
    };
    grads.add(student, graph);
    grad
}

/// Runs of depths of one recursion, in order; depths of the unshared ends are runs of their own.
pub fn passes(map: &ShareMap) -> Vec<Range<usize>> {
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
