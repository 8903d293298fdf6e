//! Update rules: how one parameter moves along its gradient. A rule is a file beside this one and a
//! line in [`update_rule`](super::update_rule).
//!
//! The optimizer around it sums and clips gradients, counts steps, keeps the state and divides it
//! among ranks, whatever the rule.

use super::parameters::Parameter;
use burn::tensor::{Device, Tensor};
use retie_model::kernels::{ElementwiseUpdate, kernels_of};
use std::fmt::Debug;

/// The buffers of one parameter, flat, in the order of [`UpdateRule::buffers`].
pub type ParameterState = Vec<Tensor<1>>;

/// The arithmetic of an optimizer, elementwise: where the state is divided among ranks, a rule sees
/// a stretch of a parameter.
pub trait UpdateRule: Debug + Sync {
    /// Names of the buffers that it keeps for each parameter, as checkpoints spell them. They start
    /// at zero.
    fn buffers(&self) -> &'static [&'static str];

    /// Moves a stretch of a parameter in place, with the same stretch of its gradient and of its
    /// buffers.
    fn update(&self, parameter: &mut [f32], gradient: &[f32], state: &mut [&mut [f32]], factors: UpdateFactors<'_>);

    /// As [`UpdateRule::update`] in tensor operations, for a whole parameter on a device.
    fn update_on_device(
        &self,
        parameter: Tensor<1>,
        gradient: Tensor<1>,
        state: ParameterState,
        factors: UpdateFactors<'_>,
    ) -> (Tensor<1>, ParameterState);
}

/// Everything that a step says about a parameter besides its gradient.
#[derive(Clone, Copy, Debug)]
pub struct UpdateFactors<'a> {
    /// The parameter, with its group and its whole shape.
    pub parameter: &'a Parameter,
    /// Number of this step, counted from 1.
    pub step: u64,
    /// Learning rate of the schedule.
    pub lr: f64,
    /// Factor of the gradient that clips it.
    pub clip: f32,
}

/// The state of a parameter of `len` elements before its first step.
pub fn zero_state(rule: &dyn UpdateRule, len: usize, device: &Device) -> ParameterState {
    rule.buffers().iter().map(|_| Tensor::zeros([len], device)).collect()
}

/// A parameter and its state after a step; all tensors without autodiff. On the CPU their memory is
/// changed in place.
pub fn apply<const D: usize>(
    rule: &dyn UpdateRule,
    value: Tensor<D>,
    gradient: Tensor<1>,
    state: ParameterState,
    factors: UpdateFactors<'_>,
) -> (Tensor<D>, ParameterState) {
    let (shape, device) = (value.dims(), value.device());
    let mut updated = vec![value.reshape([shape.iter().product::<usize>()])];
    updated.extend(state);
    let mut updated = kernels_of(&device).update(updated, gradient, &RuleStep { rule, factors });
    let value = updated.remove(0);
    (value.reshape(shape), updated)
}

/// A rule on the vectors of one parameter: its weights, then its buffers.
struct RuleStep<'a> {
    rule: &'a dyn UpdateRule,
    factors: UpdateFactors<'a>,
}

impl ElementwiseUpdate for RuleStep<'_> {
    fn slices(&self, updated: &mut [&mut [f32]], gradient: &[f32]) {
        if let Some((parameter, state)) = updated.split_first_mut() {
            self.rule.update(parameter, gradient, state, self.factors);
        }
    }

    fn tensors(&self, mut updated: Vec<Tensor<1>>, gradient: Tensor<1>) -> Vec<Tensor<1>> {
        let parameter = updated.remove(0);
        let (parameter, mut state) = self.rule.update_on_device(parameter, gradient, updated, self.factors);
        state.insert(0, parameter);
        state
    }
}
