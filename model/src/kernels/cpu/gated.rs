//! Gated activations `y = act(gate) · up` (Shazeer, <https://arxiv.org/abs/2002.05202>), for
//! activations of the form `x·σ(z(x))`.

use super::{
    simd::{exp, vectorised},
    tensor::{dense, from_values, values, zeros_like},
};
use burn::backend::{TensorMetadata, flex::FlexTensor};
use rayon::prelude::*;
use retie_config::Activation;

const CHUNK: usize = 1 << 14;

/// Activation of the form `x·σ(z(x))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// SiLU: `z = x`.
    Silu,
    /// GELU by tanh: `½x(1 + tanh u) = x·σ(2u)` with `u = √(2/π)·(x + 0.044715·x³)`.
    GeluTanh,
}

impl Gate {
    /// The activation in this form; `None` if it does not have it.
    pub fn for_activation(activation: Activation) -> Option<Self> {
        match activation {
            Activation::Silu => Some(Self::Silu),
            Activation::GeluTanh => Some(Self::GeluTanh),
            Activation::Gelu => None,
        }
    }
}

/// Function `z` and its derivative.
trait Form {
    fn z(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

struct Silu;
struct GeluTanh;

impl Form for Silu {
    #[inline(always)]
    fn z(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn slope(_: f32) -> f32 {
        1.0
    }
}

/// `2·√(2/π)`.
const TWICE_ROOT: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

impl Form for GeluTanh {
    #[inline(always)]
    fn z(x: f32) -> f32 {
        TWICE_ROOT * x * (1.0 + CUBIC * x * x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        TWICE_ROOT * (1.0 + 3.0 * CUBIC * x * x)
    }
}

/// Gated activation of two dense tensors of equal shape.
pub fn forward(gate: &FlexTensor, up: &FlexTensor, kind: Gate) -> FlexTensor {
    match kind {
        Gate::Silu => forward_as::<Silu>(gate, up),
        Gate::GeluTanh => forward_as::<GeluTanh>(gate, up),
    }
}

fn forward_as<F: Form>(gate: &FlexTensor, up: &FlexTensor) -> FlexTensor {
    let mut out = zeros_like(gate);
    let inputs = values(gate).par_chunks(CHUNK).zip(values(up).par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (gate, up))| {
        vectorised(
            #[inline(always)]
            || {
                let (gate, up) = (&gate[..out.len()], &up[..out.len()]);
                for i in 0..out.len() {
                    out[i] = gate[i] * sigmoid(F::z(gate[i])) * up[i];
                }
            },
        );
    });
    from_values(out, gate.shape())
}

/// Gradients of `gate` and `up`. With `s = σ(z(g))`: `dgate = dy·up·(s + g·s·(1 − s)·z'(g))`,
/// `dup = dy·g·s`.
pub fn backward(gate: &FlexTensor, up: &FlexTensor, kind: Gate, grad: Option<FlexTensor>) -> [Option<FlexTensor>; 2] {
    let Some(grad) = grad.map(dense) else { return [None, None] };
    match kind {
        Gate::Silu => backward_as::<Silu>(gate, up, &grad),
        Gate::GeluTanh => backward_as::<GeluTanh>(gate, up, &grad),
    }
}

fn backward_as<F: Form>(gate: &FlexTensor, up: &FlexTensor, grad: &FlexTensor) -> [Option<FlexTensor>; 2] {
    let (mut grad_gate, mut grad_up) = (zeros_like(gate), zeros_like(up));
    grad_gate
        .par_chunks_mut(CHUNK)
        .zip(grad_up.par_chunks_mut(CHUNK))
        .zip(values(gate).par_chunks(CHUNK).zip(values(up).par_chunks(CHUNK)))
        .zip(values(grad).par_chunks(CHUNK))
        .for_each(|(((grad_gate, grad_up), (gate, up)), grad)| {
            vectorised(
                #[inline(always)]
                || {
                    let len = grad_gate.len();
                    let (grad_up, gate, up, grad) = (&mut grad_up[..len], &gate[..len], &up[..len], &grad[..len]);
                    for i in 0..len {
                        let s = sigmoid(F::z(gate[i]));
                        let act = gate[i] * s;
                        grad_up[i] = grad[i] * act;
                        grad_gate[i] = grad[i] * up[i] * (s + act * (1.0 - s) * F::slope(gate[i]));
                    }
                },
            );
        });
    [(grad_gate, gate), (grad_up, up)].map(|(grad, input)| Some(from_values(grad, input.shape())))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
