//! Hidden states of student and teacher, and gradients of the student's.

use crate::pass::{Pass, StateGradients, add_state};
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// Hidden states by the number of depths before them, `[M, D]`, before the final norm, without a graph.
#[derive(Debug)]
pub struct States<'a> {
    student: &'a Pass,
    teacher: &'a BTreeMap<usize, Tensor<2>>,
    grads: &'a mut StateGradients,
}

impl<'a> States<'a> {
    /// Of a student's pass and a teacher's states.
    pub fn new(student: &'a Pass, teacher: &'a BTreeMap<usize, Tensor<2>>, grads: &'a mut StateGradients) -> Self {
        Self { student, teacher, grads }
    }

    /// The student's after `end` depths.
    pub fn student(&self, end: usize) -> Tensor<2> {
        self.student.state(end)
    }

    /// The teacher's after `end` depths.
    ///
    /// # Panics
    /// When nobody asked for them.
    pub fn teacher(&self, end: usize) -> Tensor<2> {
        self.teacher[&end].clone()
    }

    /// Adds to the gradient of the student's after `end` depths.
    pub fn add_grad(&mut self, end: usize, grad: Tensor<2>) {
        add_state(self.grads, end, grad);
    }
}
