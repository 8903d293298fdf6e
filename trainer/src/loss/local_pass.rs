//! Single depths of the student, each run forward and backward on its own, for one term.

use super::TermScale;
use crate::{optim::Gradients, pass::backward};
use burn::tensor::Tensor;
use retie_model::{CausalLm, RowContext};
use std::collections::BTreeMap;

/// Depths of the student and hidden states of the teacher. The scale of the term is applied to the
/// gradients that the loss gives.
#[derive(Debug)]
pub struct LocalPass<'a> {
    student: &'a CausalLm,
    rows: &'a RowContext,
    teacher: &'a BTreeMap<usize, Tensor<2>>,
    grads: &'a mut Gradients,
    scale: TermScale,
}

impl<'a> LocalPass<'a> {
    /// Depths of `student` on `rows`; gradients of their parameters go to `grads`.
    pub fn new(
        student: &'a CausalLm,
        rows: &'a RowContext,
        teacher: &'a BTreeMap<usize, Tensor<2>>,
        grads: &'a mut Gradients,
        scale: TermScale,
    ) -> Self {
        Self { student, rows, teacher, grads, scale }
    }

    /// The teacher's hidden states after `end` of its depths, `[M, D]`.
    ///
    /// # Panics
    /// When they were not required.
    pub fn teacher(&self, end: usize) -> Tensor<2> {
        self.teacher[&end].clone()
    }

    /// Output of the student's `depth` on `x [M, D]`, with its graph.
    pub fn run_depth(&self, depth: usize, x: Tensor<2>) -> Tensor<2> {
        self.student.run_depths(Tensor::from_inner(x), depth..depth + 1, self.rows)
    }

    /// Adds the gradients of the depth whose output is `out` and has the gradient `grad`; the loss
    /// is a mean of `count` such summands.
    pub fn backward(&mut self, out: Tensor<2>, grad: Tensor<2>, count: usize) {
        let grad = grad * (self.scale.gradient(1.0) / count as f64);
        self.grads.add(self.student, backward([(out, grad)]));
    }
}
