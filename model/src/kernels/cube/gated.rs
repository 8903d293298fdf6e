//! Gated activation `act(gate) · up`, elementwise. The backward pass needs nothing but its inputs.

use super::launch::{Bound, cubes_for_units, dense, dims, empty, empty_like, position, units};
use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use retie_config::Activation;

/// `act(x)` of an activation by its number: see [`number`].
#[cube]
pub fn activate(x: f32, #[comptime] kind: u32) -> f32 {
    if comptime!(kind == SILU) {
        x * sigmoid(x)
    } else if comptime!(kind == GELU_TANH) {
        0.5f32 * x * (1.0f32 + tanh_of(gelu_angle(x)))
    } else {
        0.5f32 * x * (1.0f32 + Erf::erf(x * comptime!(std::f32::consts::FRAC_1_SQRT_2)))
    }
}

/// Derivative of [`activate`].
#[cube]
fn slope(x: f32, #[comptime] kind: u32) -> f32 {
    if comptime!(kind == SILU) {
        let s = sigmoid(x);
        s * (1.0f32 + x * (1.0f32 - s))
    } else if comptime!(kind == GELU_TANH) {
        let t = tanh_of(gelu_angle(x));
        let angle = comptime!(SQRT_2_OVER_PI) * (1.0f32 + comptime!(3.0 * GELU_CUBE) * x * x);
        0.5f32 * (1.0f32 + t) + 0.5f32 * x * (1.0f32 - t * t) * angle
    } else {
        let cumulative = 0.5f32 * (1.0f32 + Erf::erf(x * comptime!(std::f32::consts::FRAC_1_SQRT_2)));
        cumulative + x * (-0.5f32 * x * x).exp() * comptime!(0.5 * SQRT_2_OVER_PI)
    }
}

#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}

#[cube]
fn gelu_angle(x: f32) -> f32 {
    comptime!(SQRT_2_OVER_PI) * (x + comptime!(GELU_CUBE) * x * x * x)
}

/// `tanh`, of which shaders may overflow beyond the range where it is ±1.
#[cube]
fn tanh_of(x: f32) -> f32 {
    2.0f32 * sigmoid(2.0f32 * x) - 1.0f32
}

/// `√(2/π)`, and the factor of the cube in the tanh approximation of GELU
/// (<https://arxiv.org/abs/1606.08415>).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;

const SILU: u32 = 0;
const GELU_TANH: u32 = 1;
const GELU: u32 = 2;

/// Number of an activation in the kernels.
pub fn number(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => SILU,
        Activation::GeluTanh => GELU_TANH,
        Activation::Gelu => GELU,
    }
}

#[cube(launch)]
fn gated_kernel(gate: &[f32], up: &[f32], out: &mut [f32], count: usize, #[comptime] kind: u32) {
    let at = position();
    if at < count {
        out[at] = activate(gate[at], kind) * up[at];
    }
}

#[cube(launch)]
fn gated_backward_kernel(
    gate: &[f32],
    up: &[f32],
    grad: &[f32],
    grad_gate: &mut [f32],
    grad_up: &mut [f32],
    count: usize,
    #[comptime] kind: u32,
) {
    let at = position();
    if at < count {
        let g = gate[at];
        grad_gate[at] = grad[at] * up[at] * slope(g, kind);
        grad_up[at] = grad[at] * activate(g, kind);
    }
}

#[cube(launch)]
fn gated_halves_kernel(gate_up: &[f32], out: &mut [f32], count: usize, width: usize, #[comptime] kind: u32) {
    let at = position();
    if at < count {
        let gate = at / width * 2 * width + at % width;
        out[at] = activate(gate_up[gate], kind) * gate_up[gate + width];
    }
}

#[cube(launch)]
fn gated_halves_backward_kernel(
    gate_up: &[f32],
    grad: &[f32],
    grads: &mut [f32],
    count: usize,
    width: usize,
    #[comptime] kind: u32,
) {
    let at = position();
    if at < count {
        let gate = at / width * 2 * width + at % width;
        let g = gate_up[gate];
        grads[gate] = grad[at] * gate_up[gate + width] * slope(g, kind);
        grads[gate + width] = grad[at] * activate(g, kind);
    }
}

/// [`forward`] of gate and up beside one another, `[M, 2·F]` → `[M, F]`.
pub fn forward_halves(gate_up: &CubeTensor, activation: Activation) -> CubeTensor {
    let gate_up = dense(gate_up.clone());
    let [rows, width] = dims(&gate_up);
    let (out, count, width) = (empty(&gate_up, [rows, width / 2]), rows * width / 2, width / 2);
    let (client, cubes) = (gate_up.client.clone(), cubes_for_units(count));
    let out_arg = out.clone().bound();
    gated_halves_kernel::launch(&client, cubes, units(), gate_up.bound(), out_arg, count, width, number(activation));
    out
}

/// Gradient of gate and up, `[M, 2·F]`.
pub fn backward_halves(gate_up: CubeTensor, grad: CubeTensor, activation: Activation) -> CubeTensor {
    let (gate_up, grad) = (dense(gate_up), dense(grad));
    let [rows, width] = dims(&grad);
    let grads = empty_like(&gate_up);
    let (client, count) = (grad.client.clone(), rows * width);
    gated_halves_backward_kernel::launch(
        &client,
        cubes_for_units(count),
        units(),
        gate_up.bound(),
        grad.bound(),
        grads.clone().bound(),
        count,
        width,
        number(activation),
    );
    grads
}

/// `act(gate) · up`, `[M, F]` each.
pub fn forward(gate: &CubeTensor, up: &CubeTensor, activation: Activation) -> CubeTensor {
    let (gate, up) = (dense(gate.clone()), dense(up.clone()));
    let (out, count) = (empty_like(&gate), gate.shape().num_elements());
    let client = gate.client.clone();
    gated_kernel::launch(
        &client,
        cubes_for_units(count),
        units(),
        gate.bound(),
        up.bound(),
        out.clone().bound(),
        count,
        number(activation),
    );
    out
}

/// Gradients of `gate` and `up`.
pub fn backward(gate: CubeTensor, up: CubeTensor, grad: CubeTensor, activation: Activation) -> [CubeTensor; 2] {
    let (gate, up, grad) = (dense(gate), dense(up), dense(grad));
    let grads = [empty_like(&gate), empty_like(&gate)];
    let [grad_gate, grad_up] = grads.clone();
    let (client, count) = (gate.client.clone(), gate.shape().num_elements());
    gated_backward_kernel::launch(
        &client,
        cubes_for_units(count),
        units(),
        gate.bound(),
        up.bound(),
        grad.bound(),
        grad_gate.bound(),
        grad_up.bound(),
        count,
        number(activation),
    );
    grads
}
