//! SwiGLU: `y = silu(gate) · up`, `silu(g) = g·σ(g)` (Shazeer, <https://arxiv.org/abs/2002.05202>).

use super::simd::{exp, vectorised};
use rayon::prelude::*;

const CHUNK: usize = 1 << 14;

/// `gate`, `up` and `out` of one length.
pub fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
    out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(|((out, gate), up)| {
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
}

/// With `s = σ(g)`: `dgate = dy·up·(s + g·s·(1 − s))`, `dup = dy·g·s`.
pub fn backward(gate: &[f32], up: &[f32], grad: &[f32], grad_gate: &mut [f32], grad_up: &mut [f32]) {
    grad_gate
        .par_chunks_mut(CHUNK)
        .zip(grad_up.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .zip(grad.par_chunks(CHUNK))
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
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
