//! Queries, keys and values that stand beside one another in a row, `[M, (N + 2 K)·H]`, to heads
//! before tokens, `[B, heads, T, H]`, with the rotary embedding, and back.

use super::launch::{Bound, cubes_for_units, dense, dims, empty, position, units};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Sizes of a launch.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Sizes {
    count: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    half: usize,
    /// Rows of the angles, which repeat.
    angles: usize,
}

/// The element of queries or keys at `at`, rotated by the angles of `row`.
#[cube]
fn rotated(x: &[f32], at: usize, channel: usize, half: usize, cos: &[f32], sin: &[f32], row: usize, turn: f32) -> f32 {
    let mut value = x[at];
    if channel < half {
        let angle = row * half + channel;
        value = value * cos[angle] - x[at + half] * sin[angle] * turn;
    } else if channel < 2 * half {
        let angle = row * half + channel - half;
        value = value * cos[angle] + x[at - half] * sin[angle] * turn;
    }
    value
}

#[cube(launch)]
fn split_kernel(qkv: &[f32], cos: &[f32], sin: &[f32], q: &mut [f32], k: &mut [f32], v: &mut [f32], sizes: Sizes) {
    let at = position();
    if at < sizes.count {
        let channel = at % sizes.head_dim;
        let all = sizes.heads + 2 * sizes.kv_heads;
        let head = at / sizes.head_dim % all;
        let row = at / (sizes.head_dim * all);
        let token = row % sizes.tokens;
        let batch = row / sizes.tokens;
        let value = rotated(qkv, at, channel, sizes.half, cos, sin, row % sizes.angles, 1.0f32);
        if head < sizes.heads {
            q[((batch * sizes.heads + head) * sizes.tokens + token) * sizes.head_dim + channel] = value;
        } else {
            let head = head - sizes.heads;
            if head < sizes.kv_heads {
                k[((batch * sizes.kv_heads + head) * sizes.tokens + token) * sizes.head_dim + channel] = value;
            } else {
                let head = head - sizes.kv_heads;
                v[((batch * sizes.kv_heads + head) * sizes.tokens + token) * sizes.head_dim + channel] = qkv[at];
            }
        }
    }
}

#[cube(launch)]
fn join_kernel(q: &[f32], k: &[f32], v: &[f32], cos: &[f32], sin: &[f32], qkv: &mut [f32], sizes: Sizes) {
    let at = position();
    if at < sizes.count {
        let channel = at % sizes.head_dim;
        let all = sizes.heads + 2 * sizes.kv_heads;
        let head = at / sizes.head_dim % all;
        let row = at / (sizes.head_dim * all);
        let token = row % sizes.tokens;
        let batch = row / sizes.tokens;
        if head < sizes.heads {
            let from = ((batch * sizes.heads + head) * sizes.tokens + token) * sizes.head_dim + channel;
            qkv[at] = rotated(q, from, channel, sizes.half, cos, sin, row % sizes.angles, -1.0f32);
        } else {
            let head = head - sizes.heads;
            if head < sizes.kv_heads {
                let from = ((batch * sizes.kv_heads + head) * sizes.tokens + token) * sizes.head_dim + channel;
                qkv[at] = rotated(k, from, channel, sizes.half, cos, sin, row % sizes.angles, -1.0f32);
            } else {
                let head = head - sizes.kv_heads;
                qkv[at] = v[((batch * sizes.kv_heads + head) * sizes.tokens + token) * sizes.head_dim + channel];
            }
        }
    }
}

/// Angles of the rotary embedding, `[P, R/2]`; row `m` has those of `m` modulo `P`.
#[derive(Clone, Debug)]
pub struct Angles {
    pub cos: CubeTensor,
    pub sin: CubeTensor,
}

fn sizes(q: &CubeTensor, k: &CubeTensor, angles: &Angles) -> (usize, SizesLaunch) {
    let ([batch, heads, tokens, head_dim], [_, kv_heads, _, _]) = (dims(q), dims(k));
    let [rows, half] = dims(&angles.cos);
    let count = batch * tokens * (heads + 2 * kv_heads) * head_dim;
    (count, SizesLaunch::new(count, tokens, heads, kv_heads, head_dim, half, rows))
}

/// `qkv [B·T, (N + 2 K)·H]` → queries `[B, N, T, H]` and keys, rotated, and values, `[B, K, T, H]`.
pub fn split(qkv: CubeTensor, angles: Angles, [tokens, heads, kv_heads]: [usize; 3]) -> [CubeTensor; 3] {
    let angles = Angles { cos: dense(angles.cos), sin: dense(angles.sin) };
    let qkv = dense(qkv);
    let [rows, width] = dims(&qkv);
    let (batch, head_dim) = (rows / tokens, width / (heads + 2 * kv_heads));
    let of_kv = || empty(&qkv, [batch, kv_heads, tokens, head_dim]);
    let (q, k, v) = (empty(&qkv, [batch, heads, tokens, head_dim]), of_kv(), of_kv());
    let (count, sizes) = sizes(&q, &k, &angles);
    split_kernel::launch(
        &q.client.clone(),
        cubes_for_units(count),
        units(),
        qkv.clone().bound(),
        angles.cos.bound(),
        angles.sin.bound(),
        q.clone().bound(),
        k.clone().bound(),
        v.clone().bound(),
        sizes,
    );
    [q, k, v]
}

/// [`split`] backwards: the rotation is undone.
pub fn join([q, k, v]: [CubeTensor; 3], angles: Angles) -> CubeTensor {
    let angles = Angles { cos: dense(angles.cos), sin: dense(angles.sin) };
    let (q, k, v) = (dense(q), dense(k), dense(v));
    let ([batch, heads, tokens, head_dim], [_, kv_heads, _, _]) = (dims(&q), dims(&k));
    let qkv = empty(&q, [batch * tokens, (heads + 2 * kv_heads) * head_dim]);
    let (count, sizes) = sizes(&q, &k, &angles);
    join_kernel::launch(
        &qkv.client.clone(),
        cubes_for_units(count),
        units(),
        q.bound(),
        k.bound(),
        v.bound(),
        angles.cos.bound(),
        angles.sin.bound(),
        qkv.clone().bound(),
        sizes,
    );
    qkv
}
