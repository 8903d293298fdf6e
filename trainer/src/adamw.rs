//! AdamW with decoupled weight decay (Loshchilov & Hutter, <https://arxiv.org/abs/1711.05101>), the arithmetic of
//! `torch.optim.AdamW`; one fused pass over each parameter on the CPU.
//!
//! Rate and decay are those of a parameter's group. A parameter without a gradient is left as it is.

use crate::gradients::Gradients;
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Tensor, TensorData},
};
use rayon::prelude::*;
use retie_config::{Group, OptimizerConfig, ShareMap};
use retie_model::{
    CausalLm,
    kernels::{f32_slice, f32_slice_mut, is_cpu},
};
use std::collections::BTreeMap;

/// Moments of one parameter, flat.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Running mean of the gradients.
    pub mean: Tensor<1>,
    /// Running mean of their squares.
    pub square: Tensor<1>,
}

/// The optimizer with its state.
#[derive(Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    share_map: ShareMap,
    steps: u64,
    moments: BTreeMap<String, Moments>,
}

/// Factors of one step.
#[derive(Clone, Copy)]
pub struct Factors {
    beta1: f32,
    beta2: f32,
    eps: f32,
    /// `lr / (1 − β₁ᵗ)`.
    step_size: f32,
    /// `1 / √(1 − β₂ᵗ)`.
    inverse_root: f32,
    /// `1 − lr · weight_decay`, or 1.
    keep: f32,
    /// Clipping factor of the gradient.
    scale: f32,
}

impl AdamW {
    /// An optimizer after `steps` steps; without moments it is one before its first step.
    #[must_use]
    pub fn restore(
        config: OptimizerConfig,
        share_map: ShareMap,
        steps: u64,
        moments: BTreeMap<String, Moments>,
    ) -> Self {
        Self { config, share_map, steps, moments }
    }

    /// The moments by parameter name.
    #[must_use]
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Gives the moments away.
    pub fn take_moments(&mut self) -> BTreeMap<String, Moments> {
        std::mem::take(&mut self.moments)
    }

    /// Which layer each depth runs.
    pub fn share_map(&self) -> &ShareMap {
        &self.share_map
    }

    /// Counts a step with gradients whose norms are `norms`, and gives the factors that clip them.
    pub fn begin_step(&mut self, norms: Norms) -> Scales {
        self.steps += 1;
        let clip = |norm: f64| (self.config.max_grad_norm / (norm + CLIP_EPS)).min(1.0) as f32;
        Scales { model: clip(norms.model), auxiliary_routers: clip(norms.auxiliary_routers) }
    }

    /// One step with gradients whose norms are `norms`.
    #[must_use]
    pub fn step(&mut self, model: CausalLm, grads: Gradients, norms: Norms, lr: f64) -> CausalLm {
        let scales = self.begin_step(norms);
        let mut mapper = Mapper { optimizer: self, grads, lr, scales, path: Vec::new() };
        model.map(&mut mapper)
    }

    /// The factors of the step that has begun, for a parameter of `rank` dimensions.
    pub fn factors(&self, lr: f64, scale: f32, group: Group, rank: usize) -> Factors {
        self.factors_at(lr * self.config.groups.get(group).lr, scale, self.config.weight_decay_of(group, rank))
    }

    /// Those of a matrix of no group.
    pub fn factors_of_matrix(&self, lr: f64, scale: f32) -> Factors {
        self.factors_at(lr, scale, self.config.weight_decay)
    }

    fn factors_at(&self, lr: f64, scale: f32, weight_decay: f64) -> Factors {
        let &OptimizerConfig { beta1, beta2, eps, .. } = &self.config;
        let steps: f64 = self.steps as f64;
        Factors {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            eps: eps as f32,
            step_size: (lr / (1.0 - beta1.powf(steps))) as f32,
            inverse_root: (1.0 - beta2.powf(steps)).sqrt().recip() as f32,
            keep: (1.0 - lr * weight_decay) as f32,
            scale,
        }
    }
}

/// Norms of the gradients. Auxiliary routers only read the model, and what they learn is not to change how it is clipped.
#[derive(Clone, Copy, Debug)]
pub struct Norms {
    /// Of everything else.
    pub model: f64,
    /// Of the auxiliary routers.
    pub auxiliary_routers: f64,
}

impl Norms {
    /// Of gradients with these squared norms by name, of a model whose depths run layers as `share_map` says.
    pub fn of(squares: &BTreeMap<String, f64>, share_map: &ShareMap) -> Self {
        let is_auxiliary = |name: &str| Group::of(name, share_map) == Group::AuxiliaryRouters;
        let norm = |auxiliary: bool| {
            let of = squares.iter().filter(|(name, _)| is_auxiliary(name) == auxiliary);
            of.map(|(_, squares)| squares).sum::<f64>().sqrt()
        };
        Self { model: norm(false), auxiliary_routers: norm(true) }
    }

    /// That of the model, or one that is not finite.
    pub fn reported(self) -> f64 {
        if self.auxiliary_routers.is_finite() { self.model } else { self.auxiliary_routers }
    }
}

/// What clips the gradients of a step.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    model: f32,
    auxiliary_routers: f32,
}

impl Scales {
    /// The factor of the gradients of everything but auxiliary routers.
    pub fn of_model(self) -> f32 {
        self.model
    }

    /// The factor of a group's gradients.
    pub fn of(self, group: Group) -> f32 {
        if group == Group::AuxiliaryRouters { self.auxiliary_routers } else { self.model }
    }
}

/// What `torch.nn.utils.clip_grad_norm_` adds to the norm.
const CLIP_EPS: f64 = 1e-6;

struct Mapper<'a> {
    optimizer: &'a mut AdamW,
    grads: Gradients,
    lr: f64,
    scales: Scales,
    path: Vec<String>,
}

impl ModuleMapper for Mapper<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        let Some(grad) = self.grads.take(&name) else { return param };
        let (id, value, mapper) = param.consume();
        let wants_grad = value.is_require_grad();
        let (shape, device) = (value.dims(), value.device());
        let value = value.inner();
        let zeros = || Tensor::zeros([shape.iter().product::<usize>()], &grad.device());
        let moments =
            self.optimizer.moments.remove(&name).unwrap_or_else(|| Moments { mean: zeros(), square: zeros() });
        let group = Group::of(&name, &self.optimizer.share_map);
        let factors = self.optimizer.factors(self.lr, self.scales.of(group), group, D);
        let (value, moments) = factors.apply(value, grad, moments);
        self.optimizer.moments.insert(name, moments);
        let value = if device.is_autodiff() { Tensor::from_inner(value) } else { value };
        let value = if wants_grad { value.require_grad() } else { value };
        Param::from_mapped_value(id, value, mapper)
    }

    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
}

impl Factors {
    /// The parameter and its moments after the step; all four tensors without autodiff.
    pub fn apply<const D: usize>(self, value: Tensor<D>, grad: Tensor<1>, moments: Moments) -> (Tensor<D>, Moments) {
        if is_cpu(&value.device()) { self.on_host(value, grad, moments) } else { self.on_device(value, grad, moments) }
    }

    /// In place: the buffers of all four tensors are taken out, changed and put back.
    fn on_host<const D: usize>(self, value: Tensor<D>, grad: Tensor<1>, moments: Moments) -> (Tensor<D>, Moments) {
        let device: Device = value.device();
        let mut value: TensorData = value.into_data();
        let grad = grad.into_data();
        let mut mean = moments.mean.into_data();
        let mut square = moments.square.into_data();
        self.slices(f32_slice_mut(&mut value), f32_slice(&grad), f32_slice_mut(&mut mean), f32_slice_mut(&mut square));
        let moments = Moments { mean: Tensor::from_data(mean, &device), square: Tensor::from_data(square, &device) };
        (Tensor::from_data(value, &device), moments)
    }

    /// Updates a stretch of a parameter and its moments.
    pub fn slices(self, value: &mut [f32], grad: &[f32], mean: &mut [f32], square: &mut [f32]) {
        const CHUNK: usize = 1 << 16;
        let Self { beta1, beta2, eps, step_size, inverse_root, keep, scale } = self;
        value
            .par_chunks_mut(CHUNK)
            .zip(grad.par_chunks(CHUNK))
            .zip(mean.par_chunks_mut(CHUNK).zip(square.par_chunks_mut(CHUNK)))
            .for_each(|((value, grad), (mean, square))| {
                for (((value, grad), mean), square) in value.iter_mut().zip(grad).zip(mean).zip(square) {
                    let grad = grad * scale;
                    *mean = beta1 * *mean + (1.0 - beta1) * grad;
                    *square = beta2 * *square + (1.0 - beta2) * grad * grad;
                    *value = *value * keep - step_size * *mean / (square.sqrt() * inverse_root + eps);
                }
            });
    }

    fn on_device<const D: usize>(self, value: Tensor<D>, grad: Tensor<1>, moments: Moments) -> (Tensor<D>, Moments) {
        let grad = grad * self.scale;
        let mean = moments.mean * self.beta1 + grad.clone() * (1.0 - self.beta1);
        let square = moments.square * self.beta2 + grad.square() * (1.0 - self.beta2);
        let step = mean.clone() / (square.clone().sqrt() * self.inverse_root + self.eps) * self.step_size;
        let shape = value.dims();
        (value * self.keep - step.reshape(shape), Moments { mean, square })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::{GroupConfig, GroupsConfig};
    use safetensors::SafeTensors;
    use std::path::Path;

    /// `golden/adamw.safetensors` of the model crate: three steps of `torch.optim.AdamW` with weight decay 0.1.
    fn golden(name: &str) -> Vec<f32> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/adamw.safetensors");
        let bytes = fs_err::read(path).unwrap();
        let data = SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec();
        retie_checkpoint::widen(&data, retie_checkpoint::Dtype::F32)
    }

    fn optimizer() -> AdamW {
        let config = OptimizerConfig {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            max_grad_norm: 1.0,
            groups: GroupsConfig::default(),
        };
        AdamW::restore(config, ShareMap::identity(1), 0, BTreeMap::new())
    }

    fn run(clip: bool, on_host: bool) {
        let device = Device::flex();
        let vector = |values: Vec<f32>| Tensor::<1>::from_data(TensorData::new(values, [35]), &device);
        let mut optimizer = optimizer();
        let mut value = vector(golden("param"));
        let mut moments = Moments { mean: Tensor::zeros([35], &device), square: Tensor::zeros([35], &device) };
        for step in 0..3 {
            optimizer.steps += 1;
            let mut grads = Gradients::default();
            grads.put("w", vector(golden(&format!("grad.{step}"))));
            let norm = grads.squares().values().sum::<f64>().sqrt();
            let scale = if clip { (1.0 / (norm + CLIP_EPS)).min(1.0) } else { 1.0 };
            assert!((norm - f64::from(golden(&format!("norm.{step}"))[0])).abs() < 1e-5);
            let factors = optimizer.factors(1e-2, scale as f32, Group::Unshared, 2);
            let grad = grads.take("w").unwrap();
            (value, moments) =
                if on_host { factors.on_host(value, grad, moments) } else { factors.on_device(value, grad, moments) };
            let kind = if clip { "clipped" } else { "plain" };
            let expected = golden(&format!("{kind}.param.{step}"));
            let found = value.clone().into_data();
            for (a, b) in f32_slice(&found).iter().zip(&expected) {
                // A step moves a weight by about lr = 1e-2; rounding is some 1e-7 of the weight.
                assert!((a - b).abs() < 1e-6, "step {step}: {a} and {b}");
            }
        }
    }

    #[test]
    fn steps_are_those_of_torch_on_the_host_and_in_plain_operations() {
        for clip in [false, true] {
            run(clip, true);
            run(clip, false);
        }
    }

    #[test]
    fn a_group_has_its_rate_and_its_decay() {
        let mut optimizer = optimizer();
        optimizer.steps = 1;
        let found = |optimizer: &AdamW, group, rank| {
            let Factors { step_size, keep, .. } = optimizer.factors(1e-2, 1.0, group, rank);
            [step_size, keep]
        };
        // The first step divides the rate by 1 − β₁ = 0.1. Vectors, among them the magnitudes of DoRA, do not decay.
        assert_eq!(found(&optimizer, Group::Shared, 2), [0.1, 0.999]);
        assert_eq!(found(&optimizer, Group::Shared, 1), [0.1, 1.0]);
        assert_eq!(found(&optimizer, Group::Norms, 1), [0.1, 1.0]);
        assert_eq!(found(&optimizer, Group::Lora, 1), [0.1, 1.0]);
        optimizer.config.groups.lora = GroupConfig { lr: 0.5, weight_decay: Some(0.2) };
        assert_eq!(found(&optimizer, Group::Lora, 2), [0.05, 0.999]);
    }
}
