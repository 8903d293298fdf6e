//! Muon (Jordan et al., <https://kellerjordan.github.io/posts/muon/>): the momentum of a matrix,
//! made orthogonal, is its update; the arithmetic of `torch.optim.Muon`.
//!
//! For a matrix `W [m, n]` with gradient `G`, momentum `M`, rate `η`, decay `λ` and the factor `a`
//! of [`AdjustLr`](retie_config::AdjustLr):
//!
//! - `M ← μ M + (1 − μ) G`, `U = μ M + (1 − μ) G` (Nesterov);
//! - `W ← (1 − η λ) W − η a · orthogonal(U)`.
//!
//! It moves the matrices of the layers. AdamW moves embeddings and head, whose rows are seen one by
//! one, routers, extras and every vector.

use super::{
    parameters::Parameter,
    rule::{Arithmetic, MatrixRule, ParameterState, UpdateFactors, UpdateRule},
};
use burn::tensor::Tensor;
use retie_config::{MuonConfig, OptimizerConfig, ParameterGroup};
use retie_model::kernels::kernels_of;

/// Coefficients `a`, `b`, `c` of the iteration `X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X`. They make
/// small singular values large in few steps, and leave all of them within about 0.7 and 1.2.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// Smallest norm that a matrix is divided by, as in torch: a zero matrix stays zero.
const EPS: f32 = 1e-7;

/// The rule.
#[derive(Debug)]
pub struct Muon {
    config: OptimizerConfig,
    settings: MuonConfig,
}

impl Muon {
    /// With `settings`, and the rates and decays of `config`.
    pub fn new(settings: &MuonConfig, config: &OptimizerConfig) -> Self {
        Self { config: config.clone(), settings: *settings }
    }
}

impl UpdateRule for Muon {
    fn name(&self) -> &'static str {
        "Muon"
    }

    fn buffers(&self) -> &'static [&'static str] {
        &["momentum"]
    }

    fn takes(&self, parameter: &Parameter) -> bool {
        let is_taken = match parameter.group {
            Some(ParameterGroup::Shared | ParameterGroup::Unshared) => true,
            Some(ParameterGroup::Lora) => self.settings.lora,
            _ => false,
        };
        is_taken && parameter.shape.len() == 2
    }

    fn arithmetic(&self) -> Arithmetic<'_> {
        Arithmetic::Matrix(self)
    }
}

impl MatrixRule for Muon {
    fn update(
        &self,
        parameter: Tensor<2>,
        gradient: Tensor<2>,
        state: ParameterState,
        factors: UpdateFactors<'_>,
    ) -> (Tensor<2>, ParameterState) {
        let Ok([momentum]) = <[Tensor<1>; 1]>::try_from(state) else { unreachable!("a momentum") };
        let MuonConfig { momentum: decay, ns_steps, adjust_lr, .. } = self.settings;
        let (shape, decay) = (parameter.dims(), decay as f32);
        let (lr, weight_decay) = factors.rate_and_decay(&self.config);
        let new = gradient * (factors.clip * (1.0 - decay));
        let momentum = momentum.reshape(shape) * decay + new.clone();
        let direction = orthogonal(momentum.clone() * decay + new, ns_steps);
        let step = direction * (lr * adjust_lr.factor(shape)) as f32;
        let parameter = parameter * (1.0 - lr * weight_decay) as f32 - step;
        (parameter, vec![momentum.reshape([shape[0] * shape[1]])])
    }
}

/// The orthogonal factor `U Vᵀ` of `x = U Σ Vᵀ`, `[m, n]`, nearly: `steps` Newton–Schulz iterations
/// of fifth order on its shorter side.
fn orthogonal(x: Tensor<2>, steps: u32) -> Tensor<2> {
    let [rows, columns] = x.dims();
    if rows > columns {
        return orthogonal(x.transpose(), steps).transpose();
    }
    let [a, b, c] = COEFFICIENTS;
    let norm = x.clone().square().sum().sqrt().clamp_min(EPS);
    let mut x = x / norm.unsqueeze(); // [m, n], m ≤ n
    let kernels = kernels_of(&x.device());
    for _ in 0..steps {
        let gram = kernels.linear(x.clone(), x.clone()); // X Xᵀ [m, m]
        let square = kernels.linear(gram.clone(), gram.clone());
        let polynomial = gram * b + square * c;
        x = x.clone() * a + kernels.linear(polynomial, x.transpose());
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::rule::{apply, apply_in_place, zero_state};
    use burn::tensor::{Device, TensorData};
    use retie_config::OptimizerKind;
    use retie_model::kernels::f32_slice;
    use safetensors::SafeTensors;
    use std::path::Path;

    /// `golden/muon.safetensors`, which `golden/make_muon.py` made with `torch.optim.Muon`.
    fn golden(name: &str) -> Vec<f32> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/muon.safetensors");
        let bytes = fs_err::read(path).unwrap();
        let data = SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec();
        retie_checkpoint::widen(&data, retie_checkpoint::Dtype::F32)
    }

    fn config(muon: &str) -> OptimizerConfig {
        let kind = format!(r#"{{"lr": 0.02, "weight_decay": 0.1, "kind": {muon}}}"#);
        serde_json::from_str(&kind).unwrap()
    }

    fn muon(config: &OptimizerConfig) -> Muon {
        let OptimizerKind::Muon(settings) = &config.kind else { panic!("{config:?}") };
        Muon::new(settings, config)
    }

    fn parameter(group: Option<ParameterGroup>, shape: &[usize]) -> Parameter {
        Parameter { name: "w".to_owned(), group, shape: shape.to_vec() }
    }

    /// Largest distance of four steps from those of the golden values `kind`.
    fn distance(name: &str, shape: [usize; 2], adjust_lr: &str, kind: &str) -> f32 {
        let device = Device::flex();
        let vector = |values: Vec<f32>| Tensor::<1>::from_data(TensorData::new(values, [shape[0] * shape[1]]), &device);
        let rule = muon(&config(&format!(r#"{{"muon": {{"adjust_lr": "{adjust_lr}"}}}}"#)));
        let matrix = parameter(Some(ParameterGroup::Shared), &shape);
        let mut value = vector(golden(&format!("{name}.param")));
        let mut state = zero_state(&rule, shape[0] * shape[1], &device);
        // The same on what a rank owns.
        let (mut owned, mut buffers) = (golden(&format!("{name}.param")), vec![vec![0.0; shape[0] * shape[1]]]);
        let mut largest = 0.0f32;
        for step in 0..4 {
            let grad = golden(&format!("{name}.grad.{step}"));
            let factors = UpdateFactors { parameter: &matrix, step: step + 1, lr: 0.02, clip: 1.0 };
            apply_in_place(&rule, &mut owned, &grad, &mut buffers, factors, &device);
            (value, state) = apply(&rule, value, vector(grad), state, factors);
            let found = value.clone().into_data();
            assert_eq!(f32_slice(&found), owned);
            let expected = golden(&format!("{name}.{adjust_lr}.{kind}.{step}"));
            let distances = owned.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            largest = distances.fold(largest, f32::max);
        }
        largest
    }

    #[test]
    fn steps_are_those_of_torch_for_wide_tall_and_square_matrices() {
        for (name, shape) in [("wide", [6, 20]), ("tall", [24, 5]), ("square", [8, 8])] {
            for adjust_lr in ["original", "match_rms_adamw"] {
                // Weights of up to 3 are rounded by 1e-7 in each of four steps, on both sides.
                let found = distance(name, shape, adjust_lr, "f32");
                assert!(found < 2e-6, "{name}, {adjust_lr}: {found}");
                // As torch computes it, with the iteration in bf16: it is up to 2.4e-3 away from
                // itself in f32, after steps that add up to 5e-2 and more.
                let found = distance(name, shape, adjust_lr, "bf16");
                assert!(found < 4e-3, "{name}, {adjust_lr}: {found}");
            }
        }
    }

    #[test]
    fn a_matrix_becomes_nearly_orthogonal_and_a_zero_matrix_stays_zero() {
        let device = Device::flex();
        let matrix = Tensor::<1>::from_data(TensorData::new(golden("wide.param"), [120]), &device).reshape([6, 20]);
        let found = orthogonal(matrix * 1e-3, 5);
        let gram = found.clone().matmul(found.transpose()).into_data();
        for (at, x) in f32_slice(&gram).iter().enumerate() {
            // The iteration leaves singular values of about 0.7 to 1.2, so squares of 0.4 to 1.5.
            let expected = if at % 7 == 0 { 0.4..1.5 } else { -0.5..0.5 };
            assert!(expected.contains(x), "element {at} of the Gram matrix is {x}");
        }
        let zero = orthogonal(Tensor::zeros([3, 4], &device), 5).into_data();
        assert!(f32_slice(&zero).iter().all(|x| *x == 0.0));
    }

    #[test]
    fn it_takes_the_matrices_of_layers_and_those_of_lora_on_request() {
        use ParameterGroup::{AuxiliaryRouters, Embeddings, Extras, Lora, Norms, Routers, Shared, Unshared};
        let rule = |kind: &str| muon(&config(kind));
        let taken = |rule: &Muon, group, shape: &[usize]| rule.takes(&parameter(group, shape));
        let plain = rule(r#"{"muon": {}}"#);
        for group in [Shared, Unshared] {
            assert!(taken(&plain, Some(group), &[2, 3]) && !taken(&plain, Some(group), &[2]));
        }
        for group in [Lora, Extras, Routers, AuxiliaryRouters, Norms, Embeddings].map(Some).into_iter().chain([None]) {
            assert!(!taken(&plain, group, &[2, 3]), "{group:?}");
        }
        let with_lora = rule(r#"{"muon": {"lora": true}}"#);
        assert!(taken(&with_lora, Some(Lora), &[2, 3]) && !taken(&with_lora, Some(Lora), &[2]));
    }

    #[test]
    fn a_group_has_its_rate_and_its_decay_and_gradients_are_clipped() {
        let device = Device::flex();
        let mut config = config(r#"{"muon": {"adjust_lr": "original"}}"#);
        config.groups.shared.lr = 0.5;
        config.groups.shared.weight_decay = Some(2.0);
        let step = |config: &OptimizerConfig, clip: f32| {
            let rule = muon(config);
            let matrix = parameter(Some(ParameterGroup::Shared), &[6, 20]);
            let mut value = golden("wide.param");
            let factors = UpdateFactors { parameter: &matrix, step: 1, lr: 0.02, clip };
            let mut state = vec![vec![0.0; 120]];
            apply_in_place(&rule, &mut value, &golden("wide.grad.0"), &mut state, factors, &device);
            (value, state.remove(0))
        };
        let (start, (value, momentum)) = (golden("wide.param"), step(&config, 1.0));
        config.groups.shared.weight_decay = Some(0.0);
        config.groups.shared.lr = 1.0;
        let (undecayed, clipped) = (step(&config, 1.0).0, step(&config, 0.25));
        for at in 0..120 {
            // η λ = 0.02 · 0.5 · 2, and half the update.
            let expected = start[at] * 0.98 + (undecayed[at] - start[at]) / 2.0;
            assert!((value[at] - expected).abs() < 1e-6, "{} and {expected}", value[at]);
            // The first update does not depend on the size of a gradient; the momentum does.
            assert!((clipped.0[at] - undecayed[at]).abs() < 1e-6);
            assert!((clipped.1[at] - momentum[at] / 4.0).abs() < 1e-8);
        }
    }
}
