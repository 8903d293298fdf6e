//! Hidden states of student and teacher for one term, and gradients of the student's.

use super::TermScale;
use crate::{
    optim::{Gradients, Projections, projection_gradient},
    pass::{Pass, StateGradients, add_state},
};
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// Hidden states by the number of depths before them, `[M, D]`, before the final norm, without a
/// graph. The scale of the term is applied to the gradients that the loss gives.
#[derive(Debug)]
pub struct HiddenStates<'a> {
    student: &'a Pass,
    teacher: &'a BTreeMap<usize, Tensor<2>>,
    grads: &'a mut StateGradients,
    projections: &'a Projections,
    projection_grads: &'a mut Gradients,
    scale: TermScale,
}

impl<'a> HiddenStates<'a> {
    /// States of a student's pass and of a teacher, with the maps between them; gradients of the
    /// maps go to `projection_grads`.
    pub fn new(
        (student, grads): (&'a Pass, &'a mut StateGradients),
        teacher: &'a BTreeMap<usize, Tensor<2>>,
        (projections, projection_grads): (&'a Projections, &'a mut Gradients),
        scale: TermScale,
    ) -> Self {
        Self { student, teacher, grads, projections, projection_grads, scale }
    }

    /// The student's after `end` depths.
    pub fn student(&self, end: usize) -> Tensor<2> {
        self.student.state(end)
    }

    /// The teacher's after `end` depths.
    ///
    /// # Panics
    /// When it was not required.
    pub fn teacher(&self, end: usize) -> Tensor<2> {
        self.teacher[&end].clone()
    }

    /// The map `[D_t, D_s]` of the pair `index`, if there is one.
    pub fn projection(&self, index: usize) -> Option<Tensor<2>> {
        self.projections.weight(index)
    }

    /// Adds the gradient of a map; the loss is a mean of `count` such summands.
    pub fn add_projection_grad(&mut self, index: usize, grad: Tensor<2>, count: usize) {
        let grad = grad * self.factor(count);
        let elements = grad.shape().num_elements();
        self.projection_grads.add_one(&projection_gradient(index), grad.reshape([elements]));
    }

    /// Adds the gradient of the student's state after `end` depths; the loss is a mean of `count`
    /// such summands.
    pub fn add_grad(&mut self, end: usize, grad: Tensor<2>, count: usize) {
        add_state(self.grads, end, grad * self.factor(count));
    }

    fn factor(&self, count: usize) -> f64 {
        self.scale.gradient(1.0) / count as f64
    }
}
