//! Linear probe: `σ(w·x/rms(x) + b)`, fitted to whether the exit's most probable token is that of
//! the whole stack. It costs one dot product a token.

use super::{Passed, column, norms};
use burn::tensor::{Device, Tensor, TensorData};
use retie_config::ExitProbe;

/// A probe on a device.
#[derive(Clone, Debug)]
pub struct Probe {
    weight: Tensor<2>,
    bias: f32,
}

impl Probe {
    pub fn new(probe: &ExitProbe, device: &Device) -> Self {
        let weight = TensorData::new(probe.weight.clone(), [1, probe.weight.len()]);
        Self { weight: Tensor::from_data(weight, device), bias: probe.bias }
    }
}

pub fn signal(passed: &Passed<'_>) -> Vec<f32> {
    let probe = &passed.rule.probes[passed.recursions - 1];
    let x = passed.after.clone();
    let [_, width] = x.dims();
    let scale = (width as f32).sqrt();
    let dots = (x.clone() * probe.weight.clone()).sum_dim(1) * scale / norms(x);
    column(dots).into_iter().map(|dot| 1.0 / (1.0 + (-dot - probe.bias).exp())).collect()
}
