//! Rotary position embedding with the rotate-half pairing of Hugging Face (Su et al.,
//! <https://arxiv.org/abs/2104.09864>): `y₁ = x₁·cos − x₂·sin`, `y₂ = x₂·cos + x₁·sin`, where `x₁`
//! and `x₂` are the halves of the rotated channels of a head.

use super::simd::vectorised;
use rayon::prelude::*;

/// Direction of the rotation; the backward pass rotates back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Forward,
    Back,
}

/// Rotates the first `R` channels of each head of `x [B, T, N, H]` into `out`, and copies the
/// others. `cos`, `sin` are `[T, R/2]`.
pub fn rotate(x: &[f32], [tokens, heads, head_dim]: [usize; 3], cos: &[f32], sin: &[f32], turn: Turn, out: &mut [f32]) {
    let half = cos.len() / tokens;
    let row = heads * head_dim;
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    out.par_chunks_mut(row).zip(x.par_chunks(row)).enumerate().for_each(|(index, (out, x))| {
        let token = index % tokens;
        let cos = &cos[token * half..][..half];
        let sin = &sin[token * half..][..half];
        vectorised(
            #[inline(always)]
            || {
                for (out, x) in out.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim)) {
                    let (x1, x2) = x.split_at(half);
                    let (y1, y2) = out.split_at_mut(half);
                    let (x2, kept) = x2.split_at(half);
                    let (y2, rest) = y2.split_at_mut(half);
                    rest.copy_from_slice(kept);
                    for i in 0..half {
                        let s = sin[i] * sign;
                        y1[i] = x1[i] * cos[i] - x2[i] * s;
                        y2[i] = x2[i] * cos[i] + x1[i] * s;
                    }
                }
            },
        );
    });
}
