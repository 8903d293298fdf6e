//! Telemetry of the model, beside the losses: the size of the hidden states that each
//! recursion leaves, how far the next one turns them, and the gradient of each group of parameters.

use burn::tensor::Tensor;
use retie_config::ParameterGroup;
use retie_model::kernels::read_mean;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Part of a row of `metrics.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// For each recursion the mean norm of the hidden states that it leaves, before the final norm;
    /// nothing where recursions do not run one after the other.
    pub hidden_norm: Vec<f64>,
    /// For each recursion but the last the mean cosine between what it and what the next one
    /// leaves.
    pub cosine: Vec<f64>,
    /// Norm of the gradient of each group, before clipping; their squares add up to that of
    /// `grad_norm`, but for auxiliary routers.
    pub grad_norm: BTreeMap<String, f64>,
}

impl Telemetry {
    /// Adds the part `share` of a step in which the recursions leave `states`, each `[M, D]`.
    pub fn add_states(&mut self, share: f64, states: &[Tensor<2>]) {
        let norms: Vec<Tensor<2>> = states.iter().map(|x| x.clone().square().sum_dim(1).sqrt()).collect(); // [M, 1]
        let mean = |x: Tensor<2>| share * f64::from(read_mean(x));
        add(&mut self.hidden_norm, norms.iter().map(|norm| mean(norm.clone())));
        let pairs = states.windows(2).zip(norms.windows(2));
        let cosines = pairs.filter_map(|(states, norms)| match (states, norms) {
            ([a, b], [of_a, of_b]) => {
                let products = (of_a.clone() * of_b.clone()).clamp_min(PRODUCT_FLOOR);
                Some(mean((a.clone() * b.clone()).sum_dim(1) / products))
            }
            _ => None,
        });
        add(&mut self.cosine, cosines);
    }

    /// Takes the norms of the gradients of the groups.
    pub fn set_gradients(&mut self, norms: &BTreeMap<ParameterGroup, f64>) {
        self.grad_norm = norms.iter().map(|(group, norm)| (group.name().to_owned(), *norm)).collect();
    }
}

/// A hidden state of zeros has no direction; this keeps its cosine at 0.
const PRODUCT_FLOOR: f32 = 1e-24;

fn add(sums: &mut Vec<f64>, values: impl Iterator<Item = f64>) {
    for (index, value) in values.enumerate() {
        match sums.get_mut(index) {
            Some(sum) => *sum += value,
            None => sums.push(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn states(values: [f32; 4]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [2, 2]), &Device::flex())
    }

    #[test]
    fn norms_and_cosines_are_means_over_the_tokens_of_a_step() {
        let mut telemetry = Telemetry::default();
        // Norms 5 and 13, 5 and 0; cosines 24/25 and 0.
        telemetry.add_states(0.25, &[states([3.0, 4.0, 5.0, 12.0]), states([4.0, 3.0, 0.0, 0.0])]);
        telemetry.add_states(0.75, &[states([1.0, 0.0, 0.0, 1.0]), states([-2.0, 0.0, 0.0, 4.0])]);
        // Tokens of f32 with a handful of digits: sums are exact but for the last ones.
        let near = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(&telemetry.hidden_norm, &[0.25 * 9.0 + 0.75, 0.25 * 2.5 + 0.75 * 3.0]), "{telemetry:?}");
        assert!(near(&telemetry.cosine, &[0.25 * 0.48]), "{telemetry:?}");
    }
}
