//! Attention of few queries a sequence, as in decoding, in one launch. A cube has a query and a
//! head, and goes over its keys in tiles, with running maximum and sum (Milakov & Gimelshein,
//! <https://arxiv.org/abs/1805.02867>).

use super::{
    attention::Attended,
    launch::{Bound, UNITS, cubes, dense, dims, empty_like, max_of_cube, sum_of_cube, units},
    softmax::{Keys, LOWEST, capped, first_key},
};
use crate::kernels::Grid;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The most queries of a sequence that are few.
pub const MOST_TOKENS: usize = 8;

/// Longest head that the units of a cube can hold.
pub const LONGEST_HEAD: usize = UNITS;

/// Sizes of a launch.
#[derive(CubeLaunch, CubeType, Clone, Copy)]
struct Sizes {
    queries: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    keys: usize,
    capacity: usize,
    window: usize,
}

#[cube]
fn attend(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    sizes: Sizes,
    last: usize,
    scale: f32,
    cap: f32,
    #[comptime] has_cap: bool,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(UNITS));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(UNITS));
    let unit = UNIT_POS as usize;
    let head_dim = sizes.head_dim;
    let query = CUBE_POS / sizes.heads;
    let head = CUBE_POS % sizes.heads;
    let batch = query / sizes.tokens;
    let kv_head = head / (sizes.heads / sizes.kv_heads);
    let q_start = (query * sizes.heads + head) * head_dim;
    let stride = sizes.kv_heads * head_dim;
    let kv_start = batch * sizes.capacity * stride + kv_head * head_dim;
    // Units share the keys of a channel.
    let parts = comptime!(UNITS).runtime() / head_dim;
    let channel = unit % head_dim;
    let part = unit / head_dim;
    let first = first_key(0usize, last, sizes.window);
    let mut largest = comptime!(LOWEST).runtime();
    let mut total = 0.0f32;
    let mut sum = 0.0f32;
    let mut tile = first;
    while tile <= last {
        let key = tile + unit;
        let mut score = comptime!(LOWEST).runtime();
        if key <= last {
            let mut dot = 0.0f32;
            for i in 0..head_dim {
                dot += q[q_start + i] * k[kv_start + key * stride + i];
            }
            score = capped(dot * scale, cap, has_cap);
        }
        let mut new_largest = max_of_cube(score, &mut scratch);
        if largest > new_largest {
            new_largest = largest;
        }
        let mut weight = 0.0f32;
        if key <= last {
            weight = (score - new_largest).exp();
        }
        weights[unit] = weight;
        let of_tile = sum_of_cube(weight, &mut scratch);
        let keep = (largest - new_largest).exp();
        total = total * keep + of_tile;
        sum *= keep;
        if part < parts {
            let mut i = part;
            while i < comptime!(UNITS) && tile + i <= last {
                sum += weights[i] * v[kv_start + (tile + i) * stride + channel];
                i += parts;
            }
        }
        largest = new_largest;
        tile += comptime!(UNITS);
        sync_cube();
    }
    scratch[unit] = sum;
    sync_cube();
    if unit < head_dim {
        let mut sum = 0.0f32;
        for part in 0..parts {
            sum += scratch[part * head_dim + unit];
        }
        out[q_start + unit] = sum / total;
    }
}

#[cube(launch)]
fn attend_few_kernel(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    sizes: Sizes,
    scale: f32,
    cap: f32,
    #[comptime] has_cap: bool,
) {
    if CUBE_POS >= sizes.queries * sizes.heads {
        terminate!();
    }
    let last = sizes.keys - sizes.tokens + CUBE_POS / sizes.heads % sizes.tokens;
    attend(q, k, v, out, sizes, last, scale, cap, has_cap);
}

#[cube(launch)]
fn attend_few_up_to_kernel(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    up_to: &[i32],
    out: &mut [f32],
    sizes: Sizes,
    scale: f32,
    cap: f32,
    #[comptime] has_cap: bool,
) {
    if CUBE_POS >= sizes.queries * sizes.heads {
        terminate!();
    }
    let last = up_to[CUBE_POS / sizes.heads] as usize;
    attend(q, k, v, out, sizes, last, scale, cap, has_cap);
}

/// Whether [`attend_few`] takes these queries.
pub fn takes(q: &CubeTensor, attended: &Attended) -> bool {
    let [_, _, head_dim] = dims(q);
    attended.grid.tokens <= MOST_TOKENS && head_dim <= LONGEST_HEAD && !matches!(attended.keys, Keys::From(_))
}

/// `q [M, N, H]`; `k`, `v` `[S, K, H]` → `[M, N, H]`, for what [`takes`] says.
pub fn attend_few(q: CubeTensor, k: CubeTensor, v: CubeTensor, attended: &Attended) -> CubeTensor {
    let (q, k, v) = (dense(q), dense(k), dense(v));
    let ([queries, heads, head_dim], [_, kv_heads, _]) = (dims(&q), dims(&k));
    let Grid { tokens, kv_len, capacity, .. } = attended.grid;
    let scoring = attended.scoring;
    let out = empty_like(&q);
    let client = q.client.clone();
    let window = scoring.window.unwrap_or(0);
    let sizes = SizesLaunch::new(queries, tokens, heads, kv_heads, head_dim, kv_len, capacity, window);
    let (q, k, v) = (q.bound(), k.bound(), v.bound());
    let (count, cap, has_cap) = (cubes(queries * heads), scoring.softcap.unwrap_or(1.0), scoring.softcap.is_some());
    match &attended.keys {
        Keys::UpTo(last) => attend_few_up_to_kernel::launch(
            &client,
            count,
            units(),
            q,
            k,
            v,
            last.clone().bound(),
            out.clone().bound(),
            sizes,
            scoring.scale,
            cap,
            has_cap,
        ),
        _ => attend_few_kernel::launch(
            &client,
            count,
            units(),
            q,
            k,
            v,
            out.clone().bound(),
            sizes,
            scoring.scale,
            cap,
            has_cap,
        ),
    }
    out
}
