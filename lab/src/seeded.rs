//! Random numbers of networks, all from one stream: the generator of a backend is shared by all
//! threads of a process, so that what it draws would depend on what else runs.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Tensor, TensorData},
};
use retie_tasks::Random;
use std::f64::consts::TAU;

/// A number of `U(0, 1)`, never 0 or 1.
fn uniform(random: &mut Random) -> f64 {
    ((random.bits() >> 11) as f64 + 0.5) / 2_f64.powi(53)
}

/// A number of `N(0, 1)` (Box and Muller).
fn normal(random: &mut Random) -> f64 {
    let radius = (-2.0 * uniform(random).ln()).sqrt();
    radius * (TAU * uniform(random)).cos()
}

/// Draws the parameters of a module anew: `U(-1/√n, 1/√n)` for linear layers of `n` inputs, and
/// `N(0, 1)` for embeddings, [`Dra`](crate::Dra) and parameters named `token`. Norms and all others
/// keep what they start with.
#[must_use]
pub fn seeded<M: Module>(module: M, random: &mut Random) -> M {
    module.map(&mut Draw { random, path: Vec::new(), bound: 1.0 })
}

struct Draw<'r> {
    random: &'r mut Random,
    /// Names, each with the type that has it.
    path: Vec<(String, String)>,
    /// Of the linear layer whose weight was the last.
    bound: f64,
}

impl ModuleMapper for Draw<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push((name.to_owned(), container.to_owned()));
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some((name, container)) = self.path.last() else { return param };
        let shape: Vec<usize> = param.lazy_shape().to_vec();
        let count = shape.iter().product();
        let values: Vec<f32> = match (container.as_str(), name.as_str()) {
            ("Struct:Linear", name) => {
                if name == "weight" {
                    self.bound = 1.0 / (shape[0] as f64).sqrt();
                }
                (0..count).map(|_| ((2.0 * uniform(self.random) - 1.0) * self.bound) as f32).collect()
            }
            ("Struct:Embedding" | "Struct:Dra", _) | (_, "token") => {
                (0..count).map(|_| normal(self.random) as f32).collect()
            }
            _ => return param,
        };
        let device = param.lazy_device();
        let value = Tensor::from_data(TensorData::new(values, shape), &device);
        Param::initialized(param.id, if device.is_autodiff() { value.require_grad() } else { value })
    }
}

/// Dropout whose masks are of a stream, or none.
#[derive(Debug, Default)]
pub struct Noise<'r> {
    source: Option<(&'r mut Random, f64)>,
}

impl<'r> Noise<'r> {
    /// Puts a part `rate` of the elements to 0, and scales the others by `1 / (1 - rate)`.
    pub fn new(random: &'r mut Random, rate: f64) -> Self {
        Self { source: (rate > 0.0).then_some((random, rate)) }
    }

    /// `x` with or without noise.
    pub fn apply<const D: usize>(&mut self, x: Tensor<D>) -> Tensor<D> {
        let Some((random, rate)) = &mut self.source else { return x };
        let kept = (1.0 / (1.0 - *rate)) as f32;
        let shape: Vec<usize> = x.dims().to_vec();
        let mask: Vec<f32> =
            (0..shape.iter().product()).map(|_| if random.chance(*rate) { 0.0 } else { kept }).collect();
        let mask = Tensor::from_data(TensorData::new(mask, shape), &x.device());
        x * mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use burn_nn::LinearConfig;

    #[test]
    fn a_stream_fixes_every_weight() {
        let device = Device::flex();
        let weights = |seed: u64| {
            let layer = seeded(LinearConfig::new(16, 9).init(&device), &mut Random::new(seed, "test", 0));
            let weight: Vec<f32> = layer.weight.val().into_data().try_to_vec().unwrap();
            let bias: Vec<f32> = layer.bias.unwrap().val().into_data().try_to_vec().unwrap();
            [weight, bias].concat()
        };
        assert_eq!(weights(1), weights(1));
        assert_ne!(weights(1), weights(2));
        // U(-1/4, 1/4): 153 draws come near both ends.
        let (least, most) = weights(1).into_iter().fold((1.0_f32, -1.0_f32), |(a, b), w| (a.min(w), b.max(w)));
        assert!((-0.25..-0.22).contains(&least) && (0.22..0.25).contains(&most), "{least} {most}");
    }

    #[test]
    fn noise_keeps_the_mean() {
        let mut random = Random::new(3, "test", 0);
        let x = Tensor::<2>::ones([100, 100], &Device::flex());
        let noisy: Vec<f32> = Noise::new(&mut random, 0.2).apply(x.clone()).into_data().try_to_vec().unwrap();
        assert!(noisy.iter().all(|value| [0.0, 1.25].contains(value)));
        // 10,000 draws: the mean's deviation is 0.005, four of those.
        assert!((noisy.iter().sum::<f32>() / 1e4 - 1.0).abs() < 0.02);
        let same: Vec<f32> = Noise::default().apply(x).into_data().try_to_vec().unwrap();
        assert!(same.iter().all(|value| *value == 1.0));
    }
}
