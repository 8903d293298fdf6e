//! Rotary embedding: channel `i` of a head is rotated with channel `i + R/2`. Its backward pass is
//! the rotation back.

use super::launch::{Bound, cubes_for_units, dense, dims, empty_like, position, units};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

#[cube(launch)]
fn rope_kernel(
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    out: &mut [f32],
    count: usize,
    tokens: usize,
    heads: usize,
    head_dim: usize,
    half: usize,
    turn: f32,
) {
    let at = position();
    if at < count {
        let channel = at % head_dim;
        let token = at / (head_dim * heads) % tokens;
        if channel < half {
            let angle = token * half + channel;
            out[at] = x[at] * cos[angle] - x[at + half] * sin[angle] * turn;
        } else if channel < 2 * half {
            let angle = token * half + channel - half;
            out[at] = x[at] * cos[angle] + x[at - half] * sin[angle] * turn;
        } else {
            out[at] = x[at];
        }
    }
}

/// Rotates the first `R` channels of each head of `x [B, T, N, H]` by the angles whose `cos` and
/// `sin` are `[T, R/2]`; `turn` is 1, or −1 to rotate back.
pub fn rotate(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, turn: f32) -> CubeTensor {
    let (x, cos, sin) = (dense(x), dense(cos), dense(sin));
    let [batch, tokens, heads, head_dim] = dims(&x);
    let [_, half] = dims(&cos);
    let count = batch * tokens * heads * head_dim;
    let out = empty_like(&x);
    let client = x.client.clone();
    rope_kernel::launch(
        &client,
        cubes_for_units(count),
        units(),
        x.bound(),
        cos.bound(),
        sin.bound(),
        out.clone().bound(),
        count,
        tokens,
        heads,
        head_dim,
        half,
        turn,
    );
    out
}
