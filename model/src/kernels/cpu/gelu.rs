//! GELU as it is defined, `x·Φ(x)` (Hendrycks and Gimpel, <https://arxiv.org/abs/1606.08415>),
//! elementwise; the approximation by tanh is among the gated activations.

use super::{
    simd::{erf, exp, vectorised},
    tensor::{from_values, values, zeros_like},
};
use burn::backend::{TensorMetadata, flex::FlexTensor};
use rayon::prelude::*;
use std::f32::consts::FRAC_1_SQRT_2;

const CHUNK: usize = 1 << 14;

/// `1/√(2π)`.
const DENSITY: f32 = 0.398_942_3;

#[inline(always)]
fn distribution(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * FRAC_1_SQRT_2))
}

/// GELU of a dense tensor.
pub fn forward(x: &FlexTensor) -> FlexTensor {
    let mut out = zeros_like(x);
    out.par_chunks_mut(CHUNK).zip(values(x).par_chunks(CHUNK)).for_each(|(out, x)| {
        vectorised(
            #[inline(always)]
            || {
                let x = &x[..out.len()];
                for i in 0..out.len() {
                    out[i] = x[i] * distribution(x[i]);
                }
            },
        );
    });
    from_values(out, x.shape())
}

/// Gradient: `dx = dy·(Φ(x) + x·φ(x))`, with `φ` the density.
pub fn backward(x: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    let mut out = zeros_like(x);
    let inputs = values(x).par_chunks(CHUNK).zip(values(grad).par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (x, grad))| {
        vectorised(
            #[inline(always)]
            || {
                let (x, grad) = (&x[..out.len()], &grad[..out.len()]);
                for i in 0..out.len() {
                    out[i] = grad[i] * (distribution(x[i]) + x[i] * DENSITY * exp(-0.5 * x[i] * x[i]));
                }
            },
        );
    });
    from_values(out, x.shape())
}
