//! Activations with periodic terms, `y = act(gate)·up` ([`Wave`] has the formulas), and their
//! gradients in one pass over the rows each.

use super::{
    simd::{LANES, exp, fold, sin_cos, vectorised},
    tensor::{from_values, values, zeros_like},
};
use crate::kernels::Wave;
use burn::backend::{TensorMetadata, flex::FlexTensor};
use rayon::prelude::*;

const CHUNK: usize = 1 << 14;

/// Scalars of an activation, those that it does not have at 0.
#[derive(Clone, Copy)]
struct Scalars {
    height: f32,
    rate: f32,
    turn: f32,
    turn_rate: f32,
    bound: f32,
    bound_rate: f32,
}

impl Scalars {
    fn of(scalars: &[f32]) -> Self {
        let at = |index: usize| scalars.get(index).copied().unwrap_or(0.0);
        Self { height: at(0), rate: at(1), turn: at(2), turn_rate: at(3), bound: at(4), bound_rate: at(5) }
    }
}

/// An activation as constants of its loops: whether its first term is SiLU, and whether it has
/// cosine and tanh.
trait Form {
    const SILU: bool;
    const FULL: bool;
}

struct Snake;
struct Dra;
struct SiluDra;

impl Form for Snake {
    const SILU: bool = false;
    const FULL: bool = false;
}

impl Form for Dra {
    const SILU: bool = false;
    const FULL: bool = true;
}

impl Form for SiluDra {
    const SILU: bool = true;
    const FULL: bool = true;
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn value<F: Form>(x: f32, by: Scalars) -> f32 {
    let first = if F::SILU { x * sigmoid(x) } else { x };
    let (sine, _) = sin_cos(x * by.rate);
    let waved = by.height * sine * sine;
    if !F::FULL {
        return first + waved;
    }
    let (_, cosine) = sin_cos(x * by.turn_rate);
    first + (waved + by.turn * cosine + by.bound * (2.0 * sigmoid(2.0 * x * by.bound_rate) - 1.0))
}

/// An activation, its slope, and its derivatives by the scalars in their order.
#[inline(always)]
fn derivatives<F: Form>(x: f32, by: Scalars) -> (f32, f32, [f32; 6]) {
    let s = sigmoid(x);
    let (first, first_slope) = if F::SILU { (x * s, s + x * s * (1.0 - s)) } else { (x, 1.0) };
    let (sine, cosine) = sin_cos(x * by.rate);
    let double = 2.0 * sine * cosine;
    let waved = by.height * sine * sine;
    let slope = first_slope + by.height * by.rate * double;
    let by_wave = [sine * sine, by.height * x * double];
    if !F::FULL {
        return (first + waved, slope, [by_wave[0], by_wave[1], 0.0, 0.0, 0.0, 0.0]);
    }
    let (sine, cosine) = sin_cos(x * by.turn_rate);
    let tanh = 2.0 * sigmoid(2.0 * x * by.bound_rate) - 1.0;
    let bound_slope = by.bound * (1.0 - tanh * tanh);
    (
        first + (waved + by.turn * cosine + by.bound * tanh),
        slope - by.turn * by.turn_rate * sine + bound_slope * by.bound_rate,
        [by_wave[0], by_wave[1], cosine, -by.turn * x * sine, tanh, bound_slope * x],
    )
}

/// Activation of two dense tensors of equal shape.
pub fn forward(gate: &FlexTensor, up: &FlexTensor, scalars: &FlexTensor, wave: Wave) -> FlexTensor {
    let by = Scalars::of(values(scalars));
    match wave {
        Wave::Snake => forward_as::<Snake>(gate, up, by),
        Wave::Dra => forward_as::<Dra>(gate, up, by),
        Wave::SiluDra => forward_as::<SiluDra>(gate, up, by),
    }
}

fn forward_as<F: Form>(gate: &FlexTensor, up: &FlexTensor, by: Scalars) -> FlexTensor {
    let mut out = zeros_like(gate);
    let inputs = values(gate).par_chunks(CHUNK).zip(values(up).par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (gate, up))| {
        vectorised(
            #[inline(always)]
            || {
                let (gate, up) = (&gate[..out.len()], &up[..out.len()]);
                for i in 0..out.len() {
                    out[i] = value::<F>(gate[i], by) * up[i];
                }
            },
        );
    });
    from_values(out, gate.shape())
}

/// Gradients of `gate`, `up` and the scalars.
pub fn backward(
    gate: &FlexTensor,
    up: &FlexTensor,
    scalars: &FlexTensor,
    wave: Wave,
    grad: &FlexTensor,
) -> [Option<FlexTensor>; 3] {
    let (mut grad_gate, mut grad_up) = (zeros_like(gate), zeros_like(up));
    let by = Scalars::of(values(scalars));
    let slices = [values(gate), values(up), values(grad)];
    let grads = [grad_gate.as_mut_slice(), grad_up.as_mut_slice()];
    let sums = match wave {
        Wave::Snake => backward_as::<Snake>(slices, by, grads),
        Wave::Dra => backward_as::<Dra>(slices, by, grads),
        Wave::SiluDra => backward_as::<SiluDra>(slices, by, grads),
    };
    let grad_scalars = sums[..scalars.layout().num_elements()].to_vec();
    [(grad_gate, gate), (grad_up, up), (grad_scalars, scalars)]
        .map(|(grad, input)| Some(from_values(grad, input.shape())))
}

/// Writes the gradients of gate and up; returns those of the scalars.
fn backward_as<F: Form>([gate, up, grad]: [&[f32]; 3], by: Scalars, [grad_gate, grad_up]: [&mut [f32]; 2]) -> [f32; 6] {
    let partial: Vec<[f32; 6]> = grad_gate
        .par_chunks_mut(CHUNK)
        .zip(grad_up.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(grad.par_chunks(CHUNK)))
        .map(|((grad_gate, grad_up), ((gate, up), grad))| {
            vectorised(
                #[inline(always)]
                || {
                    let mut lanes = [[0.0f32; LANES]; 6];
                    let (gates, gate_rest) = gate.as_chunks::<LANES>();
                    let (ups, up_rest) = up.as_chunks::<LANES>();
                    let (grads, grad_rest) = grad.as_chunks::<LANES>();
                    let (grad_gates, grad_gate_rest) = grad_gate.as_chunks_mut::<LANES>();
                    let (grad_ups, grad_up_rest) = grad_up.as_chunks_mut::<LANES>();
                    let outputs = grad_gates.iter_mut().zip(grad_ups);
                    for ((grad_gate, grad_up), ((gate, up), grad)) in outputs.zip(gates.iter().zip(ups).zip(grads)) {
                        for i in 0..LANES {
                            let (act, slope, by_scalars) = derivatives::<F>(gate[i], by);
                            grad_up[i] = grad[i] * act;
                            grad_gate[i] = grad[i] * up[i] * slope;
                            for (lanes, derivative) in lanes.iter_mut().zip(by_scalars) {
                                lanes[i] += grad[i] * up[i] * derivative;
                            }
                        }
                    }
                    let mut sums = lanes.map(fold);
                    for i in 0..gate_rest.len() {
                        let (act, slope, by_scalars) = derivatives::<F>(gate_rest[i], by);
                        grad_up_rest[i] = grad_rest[i] * act;
                        grad_gate_rest[i] = grad_rest[i] * up_rest[i] * slope;
                        for (sum, derivative) in sums.iter_mut().zip(by_scalars) {
                            *sum += grad_rest[i] * up_rest[i] * derivative;
                        }
                    }
                    sums
                },
            )
        })
        .collect();
    // Added in the order of the rows, so that the result does not depend on the number of threads.
    let mut sums = [0.0f64; 6];
    for part in &partial {
        sums.iter_mut().zip(part).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    sums.map(|sum| sum as f32)
}
