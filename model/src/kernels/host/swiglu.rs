//! SwiGLU: `y = silu(gate) · up`, `silu(g) = g·σ(g)` (Shazeer, <https://arxiv.org/abs/2002.05202>).

use super::{
    simd::{exp, vectorised},
    tensor::{dense, from_values, values, zeros_like},
};
use burn::backend::{TensorMetadata, flex::FlexTensor};
use rayon::prelude::*;

const CHUNK: usize = 1 << 14;

/// Of two dense tensors of one shape.
pub fn forward(gate: &FlexTensor, up: &FlexTensor) -> FlexTensor {
    let mut out = zeros_like(gate);
    let inputs = values(gate).par_chunks(CHUNK).zip(values(up).par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (gate, up))| {
        vectorised(
            #[inline(always)]
            || {
                let (gate, up) = (&gate[..out.len()], &up[..out.len()]);
                for i in 0..out.len() {
                    out[i] = gate[i] * sigmoid(gate[i]) * up[i];
                }
            },
        );
    });
    from_values(out, gate.shape())
}

/// Gradients of `gate` and `up`. With `s = σ(g)`: `dgate = dy·up·(s + g·s·(1 − s))`, `dup = dy·g·s`.
pub fn backward(gate: &FlexTensor, up: &FlexTensor, grad: Option<FlexTensor>) -> [Option<FlexTensor>; 2] {
    let Some(grad) = grad.map(dense) else { return [None, None] };
    let (mut grad_gate, mut grad_up) = (zeros_like(gate), zeros_like(up));
    grad_gate
        .par_chunks_mut(CHUNK)
        .zip(grad_up.par_chunks_mut(CHUNK))
        .zip(values(gate).par_chunks(CHUNK).zip(values(up).par_chunks(CHUNK)))
        .zip(values(&grad).par_chunks(CHUNK))
        .for_each(|(((grad_gate, grad_up), (gate, up)), grad)| {
            vectorised(
                #[inline(always)]
                || {
                    let len = grad_gate.len();
                    let (grad_up, gate, up, grad) = (&mut grad_up[..len], &gate[..len], &up[..len], &grad[..len]);
                    for i in 0..len {
                        let s = sigmoid(gate[i]);
                        let silu = gate[i] * s;
                        grad_up[i] = grad[i] * silu;
                        grad_gate[i] = grad[i] * up[i] * (s + silu * (1.0 - s));
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
