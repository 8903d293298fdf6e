//! A network of linear layers with an activation between them, and one output. Its parameters are
//! one list: for each layer the weight, an output a row, the bias, and behind all but the last the
//! scalars of the activation.

use super::activation::{Activation, Scalars};
use crate::Random;

/// Shapes of a network.
#[derive(Clone, Debug)]
pub(super) struct Network {
    hidden: Vec<Layer>,
    last: Layer,
    activation: Activation,
}

#[derive(Clone, Copy, Debug)]
struct Layer {
    inputs: usize,
    outputs: usize,
    /// Where its parameters begin.
    start: usize,
    /// Scalars of the activation behind it.
    scalars: usize,
}

impl Layer {
    fn weight<'p>(&self, parameters: &'p [f64]) -> &'p [f64] {
        &parameters[self.start..][..self.inputs * self.outputs]
    }

    fn bias<'p>(&self, parameters: &'p [f64]) -> &'p [f64] {
        &parameters[self.start + self.inputs * self.outputs..][..self.outputs]
    }

    fn scalars(&self, parameters: &[f64]) -> Scalars {
        let mut scalars = [0.0; 4];
        scalars[..self.scalars].copy_from_slice(&parameters[self.end() - self.scalars..self.end()]);
        scalars
    }

    fn end(&self) -> usize {
        self.start + (self.inputs + 1) * self.outputs + self.scalars
    }

    /// `W x + b`.
    fn forward(&self, parameters: &[f64], x: &[f64]) -> Vec<f64> {
        let rows = self.weight(parameters).chunks_exact(self.inputs);
        rows.zip(self.bias(parameters)).map(|(row, bias)| dot(row, x) + bias).collect()
    }

    /// Adds the gradients of weight and bias to `gradient`; gives that of `x`.
    fn backward(&self, parameters: &[f64], x: &[f64], upstream: &[f64], gradient: &mut [f64]) -> Vec<f64> {
        let mut into = vec![0.0; self.inputs];
        let (weight, rest) = gradient[self.start..].split_at_mut(self.inputs * self.outputs);
        let rows = weight.chunks_exact_mut(self.inputs).zip(self.weight(parameters).chunks_exact(self.inputs));
        for (((by_weight, weight), by_bias), upstream) in rows.zip(rest).zip(upstream) {
            *by_bias += upstream;
            for (((by_weight, weight), x), into) in by_weight.iter_mut().zip(weight).zip(x).zip(&mut into) {
                *by_weight += upstream * x;
                *into += upstream * weight;
            }
        }
        into
    }
}

impl Network {
    pub(super) fn new(inputs: usize, hidden: &[usize], activation: Activation) -> Self {
        let (mut inputs, mut start) = (inputs, 0);
        let layer = |outputs: &usize| {
            let layer = Layer { inputs, outputs: *outputs, start, scalars: activation.num_scalars() };
            (inputs, start) = (*outputs, layer.end());
            layer
        };
        let hidden = hidden.iter().map(layer).collect();
        Self { hidden, last: Layer { inputs, outputs: 1, start, scalars: 0 }, activation }
    }

    /// Parameters to start from.
    pub(super) fn initial(&self, random: &mut Random) -> Vec<f64> {
        let mut parameters = Vec::new();
        for layer in self.hidden.iter().chain([&self.last]) {
            let bound = 1.0 / (layer.inputs as f64).sqrt();
            let uniform = |random: &mut Random| ((random.bits() >> 11) as f64 / 2_f64.powi(52) - 1.0) * bound;
            parameters.extend((0..(layer.inputs + 1) * layer.outputs).map(|_| uniform(random)));
            if layer.scalars > 0 {
                parameters.extend(&self.activation.initial(random)[..layer.scalars]);
            }
        }
        parameters
    }

    /// What the network makes of `x`.
    pub(super) fn output(&self, parameters: &[f64], x: &[f64]) -> f64 {
        self.trace(parameters, x).1
    }

    /// What enters each layer, what each hidden one gives before its activation, and the output.
    fn trace(&self, parameters: &[f64], x: &[f64]) -> (Trace, f64) {
        let (last, hidden) = (self.last, &self.hidden);
        let mut trace = Trace { entered: vec![x.to_vec()], before: Vec::with_capacity(hidden.len()) };
        let mut x = x.to_vec();
        for layer in hidden {
            let before = layer.forward(parameters, &x);
            let scalars = layer.scalars(parameters);
            x = before.iter().map(|value| self.activation.value(scalars, *value)).collect();
            trace.before.push(before);
            trace.entered.push(x.clone());
        }
        (trace, last.forward(parameters, &x).iter().sum())
    }

    /// Adds the gradient of `(output - target)² / count` to `gradient`, and gives the square.
    pub(super) fn add_gradient(
        &self,
        parameters: &[f64],
        x: &[f64],
        target: f64,
        count: usize,
        gradient: &mut [f64],
    ) -> f64 {
        let (Trace { entered, before }, output) = self.trace(parameters, x);
        let error = output - target;
        let mut upstream =
            self.last.backward(parameters, &entered[self.hidden.len()], &[2.0 * error / count as f64], gradient);
        for ((layer, x), before) in self.hidden.iter().zip(&entered).zip(&before).rev() {
            let scalars = layer.scalars(parameters);
            for (upstream, before) in upstream.iter_mut().zip(before) {
                let (by_x, by_scalars) = self.activation.derivatives(scalars, *before);
                let scalars = &mut gradient[layer.end() - layer.scalars..layer.end()];
                scalars.iter_mut().zip(by_scalars).for_each(|(gradient, by)| *gradient += *upstream * by);
                *upstream *= by_x;
            }
            upstream = layer.backward(parameters, x, &upstream, gradient);
        }
        error * error
    }
}

struct Trace {
    entered: Vec<Vec<f64>>,
    before: Vec<Vec<f64>>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_those_of_finite_differences() {
        const STEP: f64 = 1e-6;
        for activation in [Activation::Tanh, Activation::Snake, Activation::DraPackage] {
            let network = Network::new(2, &[4, 3], activation);
            let mut parameters = network.initial(&mut Random::new(7, "network", 0));
            let (x, target) = ([0.4, -1.2], 0.7);
            let mut gradient = vec![0.0; parameters.len()];
            let square = network.add_gradient(&parameters, &x, target, 2, &mut gradient);
            assert_eq!(square, (network.output(&parameters, &x) - target).powi(2));
            for index in 0..parameters.len() {
                let value = parameters[index];
                let mut loss = |moved: f64| {
                    parameters[index] = moved;
                    (network.output(&parameters, &x) - target).powi(2) / 2.0
                };
                let expected = (loss(value + STEP) - loss(value - STEP)) / (2.0 * STEP);
                loss(value);
                let found = gradient[index];
                let name = activation.name();
                assert!((found - expected).abs() < 1e-7, "{name}, parameter {index}: {found}, {expected}");
            }
        }
    }

    #[test]
    fn a_layer_has_weights_biases_and_scalars() {
        let network = Network::new(1, &[64, 32], Activation::DraPaper);
        let parameters = network.initial(&mut Random::new(0, "network", 0));
        assert_eq!(parameters.len(), 64 + 64 + 4 + 64 * 32 + 32 + 4 + 32 + 1);
        // The second layer has 64 inputs.
        let second = &parameters[64 + 64 + 4..][..64 * 32 + 32];
        assert!(second.iter().all(|weight| weight.abs() <= 1.0 / 8.0) && second.iter().any(|w| w.abs() > 0.12));
    }
}
