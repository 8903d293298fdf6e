//! AdamW with decoupled weight decay (Loshchilov & Hutter, <https://arxiv.org/abs/1711.05101>), the
//! arithmetic of `torch.optim.AdamW`; one fused pass over each parameter on the CPU.

use super::rule::{Arithmetic, ElementwiseRule, ParameterState, UpdateFactors, UpdateRule};
use burn::tensor::Tensor;
use rayon::prelude::*;
use retie_config::OptimizerConfig;
use retie_model::kernels::{self, AdamWStep};

/// The rule.
#[derive(Debug)]
pub struct AdamW {
    config: OptimizerConfig,
}

impl AdamW {
    /// With the settings of `config`.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self { config: config.clone() }
    }

    /// Rate and decay are those of the parameter's group.
    fn coefficients(&self, factors: UpdateFactors<'_>) -> AdamWStep {
        let &OptimizerConfig { beta1, beta2, eps, .. } = &self.config;
        let (lr, weight_decay) = factors.rate_and_decay(&self.config);
        let UpdateFactors { step, clip, .. } = factors;
        let steps = step as f64;
        AdamWStep {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            eps: eps as f32,
            step_size: (lr / (1.0 - beta1.powf(steps))) as f32,
            inverse_root: (1.0 - beta2.powf(steps)).sqrt().recip() as f32,
            keep: (1.0 - lr * weight_decay) as f32,
            clip,
        }
    }
}

impl UpdateRule for AdamW {
    fn name(&self) -> &'static str {
        "AdamW"
    }

    /// Running means of the gradients and of their squares.
    fn buffers(&self) -> &'static [&'static str] {
        &["mean", "square"]
    }

    fn arithmetic(&self) -> Arithmetic<'_> {
        Arithmetic::Elementwise(self)
    }
}

impl ElementwiseRule for AdamW {
    fn update(&self, parameter: &mut [f32], gradient: &[f32], state: &mut [&mut [f32]], factors: UpdateFactors<'_>) {
        const CHUNK: usize = 1 << 16;
        let AdamWStep { beta1, beta2, eps, step_size, inverse_root, keep, clip } = self.coefficients(factors);
        let [mean, square] = state else { unreachable!("a mean and a square") };
        parameter
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(mean.par_chunks_mut(CHUNK).zip(square.par_chunks_mut(CHUNK)))
            .for_each(|((value, grad), (mean, square))| {
                for (((value, grad), mean), square) in value.iter_mut().zip(grad).zip(mean).zip(square) {
                    let grad = grad * clip;
                    *mean = beta1 * *mean + (1.0 - beta1) * grad;
                    *square = beta2 * *square + (1.0 - beta2) * grad * grad;
                    *value = *value * keep - step_size * *mean / (square.sqrt() * inverse_root + eps);
                }
            });
    }

    fn update_on_device(
        &self,
        parameter: Tensor<1>,
        gradient: Tensor<1>,
        state: ParameterState,
        factors: UpdateFactors<'_>,
    ) -> (Tensor<1>, ParameterState) {
        let Ok(means) = <[Tensor<1>; 2]>::try_from(state) else { unreachable!("a mean and a square") };
        let [parameter, mean, square] = kernels::adamw(parameter, gradient, means, self.coefficients(factors));
        (parameter, vec![mean, square])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::{
        clip::clip_factor,
        parameters::Parameter,
        rule::{apply, zero_state},
    };
    use burn::tensor::{Device, TensorData};
    use retie_config::{GroupConfig, GroupsConfig, OptimizerKind, ParameterGroup};
    use retie_model::kernels::{f32_slice, sum_of_squares};
    use safetensors::SafeTensors;
    use std::path::Path;

    /// `golden/adamw.safetensors` of the model crate: three steps of `torch.optim.AdamW` with
    /// weight decay 0.1.
    fn golden(name: &str) -> Vec<f32> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/adamw.safetensors");
        let bytes = fs_err::read(path).unwrap();
        let data = SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec();
        retie_checkpoint::widen(&data, retie_checkpoint::Dtype::F32)
    }

    fn config() -> OptimizerConfig {
        OptimizerConfig {
            kind: OptimizerKind::AdamW,
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            max_grad_norm: 1.0,
            groups: GroupsConfig::default(),
        }
    }

    fn parameter(group: ParameterGroup, shape: &[usize]) -> Parameter {
        Parameter { name: "w".to_owned(), group: Some(group), shape: shape.to_vec() }
    }

    fn run(clip: bool, on_host: bool) {
        let device = Device::flex();
        let vector = |values: Vec<f32>| Tensor::<1>::from_data(TensorData::new(values, [35]), &device);
        let (rule, matrix) = (AdamW::new(&config()), parameter(ParameterGroup::Unshared, &[5, 7]));
        let mut value = vector(golden("param"));
        let mut state = zero_state(&rule, 35, &device);
        for step in 0..3 {
            let grad = golden(&format!("grad.{step}"));
            let norm = sum_of_squares(&grad).sqrt();
            assert!((norm - f64::from(golden(&format!("norm.{step}"))[0])).abs() < 1e-5);
            let factor = if clip { clip_factor(norm, 1.0) } else { 1.0 };
            let factors = UpdateFactors { parameter: &matrix, step: step + 1, lr: 1e-2, clip: factor };
            let grad = vector(grad);
            (value, state) = match on_host {
                true => apply(&rule, value, grad, state, factors),
                false => rule.update_on_device(value, grad, state, factors),
            };
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
        let found = |config: &OptimizerConfig, parameter: &Parameter| {
            let factors = UpdateFactors { parameter, step: 1, lr: 1e-2, clip: 1.0 };
            let AdamWStep { step_size, keep, .. } = AdamW::new(config).coefficients(factors);
            [step_size, keep]
        };
        let mut config = config();
        let (matrix, vector) = ([2, 2].as_slice(), [2].as_slice());
        // The first step divides the rate by 1 − β₁ = 0.1. Vectors, among them the magnitudes of
        // DoRA, do not decay.
        assert_eq!(found(&config, &parameter(ParameterGroup::Shared, matrix)), [0.1, 0.999]);
        assert_eq!(found(&config, &parameter(ParameterGroup::Shared, vector)), [0.1, 1.0]);
        assert_eq!(found(&config, &parameter(ParameterGroup::Norms, vector)), [0.1, 1.0]);
        assert_eq!(found(&config, &parameter(ParameterGroup::Lora, vector)), [0.1, 1.0]);
        config.groups.lora = GroupConfig { lr: 0.5, weight_decay: Some(0.2), freeze_until: 0 };
        assert_eq!(found(&config, &parameter(ParameterGroup::Lora, matrix)), [0.05, 0.999]);
        let alone = Parameter { group: None, ..parameter(ParameterGroup::Lora, matrix) };
        assert_eq!(found(&config, &alone), [0.1, 0.999]);
    }
}
