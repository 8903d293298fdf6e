//! Update rules: how one parameter moves along its gradient. A rule is a file beside this one and a
//! line in [`for_each_update_rule`](retie_config::for_each_update_rule).
//!
//! The optimizer around it sums and clips gradients, counts steps, keeps the state and divides it
//! among ranks, whatever the rule.

use super::parameters::Parameter;
use burn::tensor::{Device, Tensor, TensorData};
use retie_config::OptimizerConfig;
use retie_model::kernels::{ElementwiseUpdate, f32_slice, kernels_of};
use std::fmt::Debug;

/// The buffers of one parameter, flat: those of [`UpdateRule::buffers`] in their order, then the
/// average of the weights, if there is one.
pub type ParameterState = Vec<Tensor<1>>;

/// A rule of an optimizer.
pub trait UpdateRule: Debug + Sync {
    /// Name in reports.
    fn name(&self) -> &'static str;

    /// Names of the buffers that it keeps for each parameter, as checkpoints spell them. They start
    /// at zero.
    fn buffers(&self) -> &'static [&'static str];

    /// Whether it moves `parameter`.
    fn takes(&self, _parameter: &Parameter) -> bool {
        true
    }

    /// Its arithmetic, by what it has to see of a parameter.
    fn arithmetic(&self) -> Arithmetic<'_>;
}

/// The arithmetic of a rule.
pub enum Arithmetic<'a> {
    /// Each element by itself: where the state is divided among ranks, a parameter may be cut
    /// anywhere.
    Elementwise(&'a dyn ElementwiseRule),
    /// A matrix as a whole, which one rank owns.
    Matrix(&'a dyn MatrixRule),
}

/// A rule that moves each element by itself.
pub trait ElementwiseRule: Sync {
    /// Moves a stretch of a parameter in place, with the same stretch of its gradient and of its
    /// buffers.
    fn update(&self, parameter: &mut [f32], gradient: &[f32], state: &mut [&mut [f32]], factors: UpdateFactors<'_>);

    /// As [`ElementwiseRule::update`] in tensor operations, for a whole parameter on a device.
    fn update_on_device(
        &self,
        parameter: Tensor<1>,
        gradient: Tensor<1>,
        state: ParameterState,
        factors: UpdateFactors<'_>,
    ) -> (Tensor<1>, ParameterState);
}

/// A rule that moves a matrix `[rows, columns]` as a whole.
pub trait MatrixRule: Sync {
    /// Moves a matrix, with its gradient and its buffers; all tensors without autodiff.
    fn update(
        &self,
        parameter: Tensor<2>,
        gradient: Tensor<2>,
        state: ParameterState,
        factors: UpdateFactors<'_>,
    ) -> (Tensor<2>, ParameterState);
}

/// Everything that a step says about a parameter besides its gradient.
#[derive(Clone, Copy, Debug)]
pub struct UpdateFactors<'a> {
    /// The parameter, with its group and its whole shape.
    pub parameter: &'a Parameter,
    /// Number of this update of the parameter's group, counted from 1.
    pub step: u64,
    /// Learning rate of the schedule.
    pub lr: f64,
    /// Factor of the gradient that clips it.
    pub clip: f32,
}

impl UpdateFactors<'_> {
    /// Learning rate and weight decay of the parameter: those of its group.
    pub fn rate_and_decay(&self, config: &OptimizerConfig) -> (f64, f64) {
        match self.parameter.group {
            Some(group) => {
                (self.lr * config.groups.get(group).lr, config.weight_decay_of(group, self.parameter.shape.len()))
            }
            None => (self.lr, config.weight_decay),
        }
    }
}

/// The buffers of `rule` for a parameter of `len` elements before its first step.
pub fn zero_state(rule: &dyn UpdateRule, len: usize, device: &Device) -> ParameterState {
    rule.buffers().iter().map(|_| Tensor::zeros([len], device)).collect()
}

/// A parameter and the buffers of its rule after a step; all tensors without autodiff. On the CPU
/// an elementwise rule changes their memory in place.
pub fn apply<const D: usize>(
    rule: &dyn UpdateRule,
    value: Tensor<D>,
    gradient: Tensor<1>,
    state: ParameterState,
    factors: UpdateFactors<'_>,
) -> (Tensor<D>, ParameterState) {
    let (shape, device) = (value.dims(), value.device());
    match rule.arithmetic() {
        Arithmetic::Elementwise(rule) => {
            let mut updated = vec![value.reshape([shape.iter().product::<usize>()])];
            updated.extend(state);
            let mut updated = kernels_of(&device).update(updated, gradient, &RuleStep { rule, factors });
            let value = updated.remove(0);
            (value.reshape(shape), updated)
        }
        Arithmetic::Matrix(rule) => {
            let matrix = factors.parameter.matrix();
            let (value, state) = rule.update(value.reshape(matrix), gradient.reshape(matrix), state, factors);
            (value.reshape(shape), state)
        }
    }
}

/// As [`apply`] in place, on what one rank owns of a parameter: a stretch, or for a rule of
/// matrices, which computes on `device`, all of it.
pub fn apply_in_place(
    rule: &dyn UpdateRule,
    value: &mut [f32],
    gradient: &[f32],
    state: &mut [Vec<f32>],
    factors: UpdateFactors<'_>,
    device: &Device,
) {
    if let Arithmetic::Elementwise(rule) = rule.arithmetic() {
        let mut state: Vec<&mut [f32]> = state.iter_mut().map(Vec::as_mut_slice).collect();
        return rule.update(value, gradient, &mut state, factors);
    }
    let tensor = |values: &[f32]| Tensor::<1>::from_data(TensorData::new(values.to_vec(), [values.len()]), device);
    let buffers = state.iter().map(|buffer| tensor(buffer)).collect();
    let (new, buffers) = apply(rule, tensor(value), tensor(gradient), buffers, factors);
    value.copy_from_slice(f32_slice(&new.into_data()));
    for (buffer, new) in state.iter_mut().zip(buffers) {
        buffer.copy_from_slice(f32_slice(&new.into_data()));
    }
}

/// A rule on the vectors of one parameter: its weights, then its buffers.
struct RuleStep<'a> {
    rule: &'a dyn ElementwiseRule,
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
