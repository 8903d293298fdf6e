//! Gradients of the factors of merged LoRA from that of the sum, `dA = Bᵀ·dW` and `dB = dW·Aᵀ`:
//! both of several linears in one launch. A cube makes a tile of 32 × 32 numbers; a unit has 2 × 4
//! of them.

use super::launch::{Bound, UNITS, dense, dims, empty_like, parts_of_a_launch, units};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const TILE: usize = 32;
/// Terms of the sums that are read at a time.
const DEPTH: usize = 16;
const HELD: usize = TILE * DEPTH;

/// A linear in a launch: `[rank, in]` and `[out, rank]`.
#[derive(CubeLaunch, CubeType)]
struct Part {
    a: Box<[f32]>,
    b: Box<[f32]>,
    grad_a: Box<[f32]>,
    grad_b: Box<[f32]>,
    out: usize,
    input: usize,
    rank: usize,
    /// Where its gradient begins.
    first: usize,
}

/// The matrices of a product: of `[m, n]` numbers, each a sum of `depth` terms.
#[derive(CubeType, Clone, Copy)]
struct Sizes {
    rows: usize,
    columns: usize,
    depth: usize,
    /// Distance of the terms, and of the rows, in the left matrix.
    left_term: usize,
    left_row: usize,
    /// Of the terms, and of the columns, in the right one.
    right_term: usize,
    right_column: usize,
    left_start: usize,
    right_start: usize,
}

/// Writes tile `tile` of the product.
#[cube]
fn tile_of_product(left: &[f32], right: &[f32], result: &mut [f32], sizes: Sizes, tile: usize) {
    let mut lefts = Shared::<[f32]>::new_slice(comptime!(HELD));
    let mut rights = Shared::<[f32]>::new_slice(comptime!(HELD));
    let unit = UNIT_POS as usize;
    let rows = sizes.rows;
    let columns = sizes.columns;
    let across = columns.div_ceil(comptime!(TILE));
    let top = tile / across * comptime!(TILE);
    let start = tile % across * comptime!(TILE);
    let row = unit / 8;
    let column = unit % 8 * 4;
    let mut s00 = 0.0f32;
    let mut s01 = 0.0f32;
    let mut s02 = 0.0f32;
    let mut s03 = 0.0f32;
    let mut s10 = 0.0f32;
    let mut s11 = 0.0f32;
    let mut s12 = 0.0f32;
    let mut s13 = 0.0f32;
    let mut term = 0usize.runtime();
    while term < sizes.depth {
        let mut i = unit;
        while i < comptime!(HELD) {
            let (at, own) = (term + i / comptime!(TILE), i % comptime!(TILE));
            let mut value = 0.0f32;
            if at < sizes.depth && top + own < rows {
                value = left[sizes.left_start + at * sizes.left_term + (top + own) * sizes.left_row];
            }
            lefts[i] = value;
            let mut value = 0.0f32;
            if at < sizes.depth && start + own < columns {
                value = right[sizes.right_start + at * sizes.right_term + (start + own) * sizes.right_column];
            }
            rights[i] = value;
            i += comptime!(UNITS);
        }
        sync_cube();
        for k in 0..comptime!(DEPTH) {
            let l0 = lefts[k * comptime!(TILE) + row];
            let l1 = lefts[k * comptime!(TILE) + row + 16];
            let r0 = rights[k * comptime!(TILE) + column];
            let r1 = rights[k * comptime!(TILE) + column + 1];
            let r2 = rights[k * comptime!(TILE) + column + 2];
            let r3 = rights[k * comptime!(TILE) + column + 3];
            s00 += l0 * r0;
            s01 += l0 * r1;
            s02 += l0 * r2;
            s03 += l0 * r3;
            s10 += l1 * r0;
            s11 += l1 * r1;
            s12 += l1 * r2;
            s13 += l1 * r3;
        }
        sync_cube();
        term += comptime!(DEPTH);
    }
    put(result, rows, columns, top + row, start + column, s00);
    put(result, rows, columns, top + row, start + column + 1, s01);
    put(result, rows, columns, top + row, start + column + 2, s02);
    put(result, rows, columns, top + row, start + column + 3, s03);
    put(result, rows, columns, top + row + 16, start + column, s10);
    put(result, rows, columns, top + row + 16, start + column + 1, s11);
    put(result, rows, columns, top + row + 16, start + column + 2, s12);
    put(result, rows, columns, top + row + 16, start + column + 3, s13);
}

#[cube]
fn put(result: &mut [f32], rows: usize, columns: usize, row: usize, column: usize, value: f32) {
    if row < rows && column < columns {
        result[row * columns + column] = value;
    }
}

#[cube(launch)]
fn lora_gradients_kernel(grads: &[f32], parts: &mut Sequence<Part>) {
    let tile = CUBE_POS_X as usize;
    #[unroll]
    for index in 0..parts.len() {
        let part = &mut parts[index];
        if CUBE_POS_Y as usize == 2 * index {
            let sizes = Sizes {
                rows: part.rank,
                columns: part.input,
                depth: part.out,
                left_term: part.rank,
                left_row: 1usize.runtime(),
                right_term: part.input,
                right_column: 1usize.runtime(),
                left_start: 0usize.runtime(),
                right_start: part.first,
            };
            if tile < part.rank.div_ceil(comptime!(TILE)) * part.input.div_ceil(comptime!(TILE)) {
                tile_of_product(&part.b, grads, &mut part.grad_a, sizes, tile);
            }
        }
        if CUBE_POS_Y as usize == 2 * index + 1 {
            let sizes = Sizes {
                rows: part.out,
                columns: part.rank,
                depth: part.input,
                left_term: 1usize.runtime(),
                left_row: part.input,
                right_term: 1usize.runtime(),
                right_column: part.input,
                left_start: part.first,
                right_start: 0usize.runtime(),
            };
            if tile < part.out.div_ceil(comptime!(TILE)) * part.rank.div_ceil(comptime!(TILE)) {
                tile_of_product(grads, &part.a, &mut part.grad_b, sizes, tile);
            }
        }
    }
}

/// Gradients of the factors `[A, B]` of linears whose sums stand one below the other, of that of
/// the sums, `grads [Σ out, in]`.
pub fn gradients(grads: &CubeTensor, factors: &[[CubeTensor; 2]]) -> Vec<[CubeTensor; 2]> {
    let grads = dense(grads.clone());
    let [_, input] = dims(&grads);
    let tiles = |count: usize| count.div_ceil(TILE);
    let (client, size) = (grads.client.clone(), parts_of_a_launch(&grads, 4, 1));
    let (mut first, mut results) = (0, Vec::new());
    for some in factors.chunks(size) {
        let mut most = 1;
        let parts = some.iter().map(|[a, b]| {
            let (a, b) = (dense(a.clone()), dense(b.clone()));
            let ([rank, _], [out, _], start) = (dims(&a), dims(&b), first);
            first += out * input;
            most = most.max(tiles(rank) * tiles(input)).max(tiles(out) * tiles(rank));
            let of_factors = [empty_like(&a), empty_like(&b)];
            results.push(of_factors.clone());
            let [grad_a, grad_b] = of_factors.map(Bound::bound);
            let (a, b) = (a.bound(), b.bound());
            PartLaunch::new(a, b, grad_a, grad_b, out, input, rank, start)
        });
        let parts = parts.collect();
        let count = CubeCount::Static(most as u32, 2 * some.len() as u32, 1);
        lora_gradients_kernel::launch(&client, count, units(), grads.clone().bound(), parts);
    }
    results
}
