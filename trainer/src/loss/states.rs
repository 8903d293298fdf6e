//! Hidden states of student and teacher, and gradients of the student's.

use crate::{
    gradients::Gradients,
    pass::{Pass, StateGradients, add_state},
    projection::{self, Projections},
};
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// Hidden states by the number of depths before them, `[M, D]`, before the final norm, without a graph.
#[derive(Debug)]
pub struct States<'a> {
    student: &'a Pass,
    teacher: &'a BTreeMap<usize, Tensor<2>>,
    grads: &'a mut StateGradients,
    projections: &'a Projections,
    projection_grads: &'a mut Gradients,
}

impl<'a> States<'a> {
    /// Of a student's pass and a teacher's states, with the maps between them; gradients of the maps go to `projection_grads`.
    pub fn new(
        student: &'a Pass,
        teacher: &'a BTreeMap<usize, Tensor<2>>,
        grads: &'a mut StateGradients,
        (projections, projection_grads): (&'a Projections, &'a mut Gradients),
    ) -> Self {
        Self { student, teacher, grads, projections, projection_grads }
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

    /// The map `[D_t, D_s]` of the pair `index`, if there is one.
    pub fn projection(&self, index: usize) -> Option<Tensor<2>> {
        self.projections.weight(index)
    }

    /// Adds to its gradient.
    pub fn add_projection_grad(&mut self, index: usize, grad: Tensor<2>) {
        let count = grad.shape().num_elements();
        self.projection_grads.add_one(&projection::name(index), grad.reshape([count]));
    }

    /// Adds to the gradient of the student's after `end` depths.
    pub fn add_grad(&mut self, end: usize, grad: Tensor<2>) {
        add_state(self.grads, end, grad);
    }
}
