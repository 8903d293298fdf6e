//! AdamW (Loshchilov and Hutter, <https://arxiv.org/abs/1711.05101>) of a module of burn, with
//! gradients clipped by their norm over all parameters. It takes what PyTorch takes:
//! `torch.optim.AdamW` and `torch.nn.utils.clip_grad_norm_`.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::{Gradients, Tensor, TensorData},
};
use std::collections::HashMap;

/// Settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// β₁.
    pub beta1: f32,
    /// β₂.
    pub beta2: f32,
    /// ε.
    pub epsilon: f32,
    /// Decoupled weight decay of every parameter.
    pub weight_decay: f32,
    /// Largest norm of the gradient over all parameters; longer ones are scaled to it.
    pub max_norm: Option<f32>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, max_norm: Some(1.0) }
    }
}

/// The optimizer: running means of gradients and of their squares.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    steps: i32,
    moments: HashMap<ParamId, [Vec<f32>; 2]>,
}

impl AdamW {
    /// An optimizer that has made no step.
    #[must_use]
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, steps: 0, moments: HashMap::new() }
    }

    /// The module after a step of `learning_rate`; parameters without a gradient stay as they are.
    #[must_use]
    pub fn step<M: Module>(&mut self, module: M, gradients: Gradients, learning_rate: f64) -> M {
        let mut norm = SquaredNorm { gradients: &gradients, sum: 0.0 };
        module.visit(&mut norm);
        let norm = norm.sum.sqrt() as f32;
        let clip = self.config.max_norm.filter(|most| norm > *most).map_or(1.0, |most| most / (norm + 1e-6));
        self.steps += 1;
        module.map(&mut Update { optimizer: self, gradients, clip, learning_rate: learning_rate as f32 })
    }

    fn update(&mut self, id: ParamId, values: &mut [f32], gradient: &[f32], clip: f32, learning_rate: f32) {
        let AdamWConfig { beta1, beta2, epsilon, weight_decay, .. } = self.config;
        let step_size = learning_rate / (1.0 - beta1.powi(self.steps));
        let inverse_root = (1.0 - beta2.powi(self.steps)).sqrt().recip();
        let zeros = || [vec![0.0; values.len()], vec![0.0; values.len()]];
        let [means, squares] = self.moments.entry(id).or_insert_with(zeros);
        for (((value, gradient), mean), square) in values.iter_mut().zip(gradient).zip(means).zip(squares) {
            let gradient = gradient * clip;
            *mean = beta1 * *mean + (1.0 - beta1) * gradient;
            *square = beta2 * *square + (1.0 - beta2) * gradient * gradient;
            *value = *value * (1.0 - learning_rate * weight_decay)
                - step_size * *mean / (square.sqrt() * inverse_root + epsilon);
        }
    }
}

/// Elements of `tensor`; tensors of this crate are f32.
fn elements<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

struct SquaredNorm<'a> {
    gradients: &'a Gradients,
    sum: f64,
}

impl ModuleVisitor for SquaredNorm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            self.sum += elements(gradient).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        }
    }
}

struct Update<'a> {
    optimizer: &'a mut AdamW,
    gradients: Gradients,
    clip: f32,
    learning_rate: f32,
}

impl ModuleMapper for Update<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let Some(gradient) = tensor.grad_remove(&mut self.gradients) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let (shape, device) = (tensor.dims(), tensor.device());
        let mut values = elements(tensor.detach());
        self.optimizer.update(id, &mut values, &elements(gradient), self.clip, self.learning_rate);
        let updated = Tensor::<D>::from_data(TensorData::new(values, shape), &device).require_grad();
        Param::from_mapped_value(id, updated, mapper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[derive(Module, Debug)]
    struct Pair {
        weight: Param<Tensor<1>>,
    }

    fn after(gradients: [[f32; 2]; 2], config: AdamWConfig) -> Vec<f32> {
        let device = Device::flex().autodiff();
        let weight = Tensor::from_floats([1.0, -2.0], &device);
        let mut module = Pair { weight: Param::from_tensor(weight) };
        let mut optimizer = AdamW::new(config);
        for gradient in gradients {
            // The gradient of a product with a constant is that constant.
            let loss = (module.weight.val() * Tensor::from_floats(gradient, &device)).sum();
            module = optimizer.step(module, loss.backward(), 0.1);
        }
        elements(module.weight.val())
    }

    // torch.optim.AdamW(lr=0.1) in f64 on the same numbers: tasks/tests/golden/make_adamw.py.
    #[test]
    fn two_steps_are_those_of_pytorch() {
        let found = after([[0.5, -3.0], [0.1, 1.0]], AdamWConfig { max_norm: None, ..AdamWConfig::default() });
        let expected = [0.817_797, -1.856_08];
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn long_gradients_are_scaled() {
        let config = |max_norm| AdamWConfig { max_norm, epsilon: 1.0, ..AdamWConfig::default() };
        let scaled = after([[1.5, 2.0], [1.5, 2.0]], config(Some(1.0)));
        let unit = after([[0.6, 0.8], [0.6, 0.8]], config(None));
        assert!(scaled.iter().zip(&unit).all(|(a, b)| (a - b).abs() < 1e-5), "{scaled:?} {unit:?}");
    }
}
