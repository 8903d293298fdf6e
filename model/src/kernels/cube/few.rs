//! Linear of few rows: every number of the result is a dot product that reads a row of the weight
//! once. What comes before and after it is in the same launch, and so are several weights that read
//! the same rows: in decoding launches cost more than what they do.

use super::{
    gated::{activate, number},
    launch::{Bound, UNITS, dense, dims, empty, parts_of_a_launch, units},
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use retie_config::Activation;

/// The most rows that are few.
pub const MOST_ROWS: usize = 8;

/// Units that share a dot product.
const LANES: usize = 32;
const OUTPUTS: usize = UNITS / LANES;

/// Sum of the values of the units that share a dot product, for the first of them.
#[cube]
fn sum_of_lanes(value: f32, lane: usize, scratch: &mut Shared<[f32]>) -> f32 {
    let unit = UNIT_POS as usize;
    scratch[unit] = value;
    sync_cube();
    let mut half = comptime!(LANES / 2).runtime();
    while half > 0 {
        if lane < half {
            let other = scratch[unit + half];
            scratch[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    let sum = scratch[unit];
    sync_cube();
    sum
}

/// A weight in a launch, `[out, in]`, and its result, `[M, out]`.
#[derive(CubeLaunch, CubeType)]
struct Weight {
    weight: Box<[f32]>,
    out: Box<[f32]>,
    width: usize,
}

#[cube(launch)]
fn few_rows_kernel(x: &[f32], weights: &mut Sequence<Weight>, rows: usize, input: usize) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(UNITS));
    let lane = UNIT_POS as usize % comptime!(LANES);
    let output = CUBE_POS_X as usize * comptime!(OUTPUTS) + UNIT_POS as usize / comptime!(LANES);
    #[unroll]
    for index in 0..weights.len() {
        if CUBE_POS_Y as usize == index {
            let weight = &mut weights[index];
            for row in 0..rows {
                let mut sum = 0.0f32;
                if output < weight.width {
                    let mut i = lane;
                    while i < input {
                        sum += x[row * input + i] * weight.weight[output * input + i];
                        i += comptime!(LANES);
                    }
                }
                let sum = sum_of_lanes(sum, lane, &mut scratch);
                if lane == 0 && output < weight.width {
                    weight.out[row * weight.width + output] = sum;
                }
            }
        }
    }
}

/// `x [M, in]` by each of `weights [out, in]` → `[M, out]`, in one launch.
pub fn products(x: CubeTensor, weights: Vec<CubeTensor>) -> Vec<CubeTensor> {
    let x = dense(x);
    let [rows, input] = dims(&x);
    let weights: Vec<CubeTensor> = weights.into_iter().map(dense).collect();
    let widths: Vec<usize> = weights.iter().map(|weight| dims::<2>(weight)[0]).collect();
    let out: Vec<CubeTensor> = widths.iter().map(|width| empty(&x, [rows, *width])).collect();
    let size = parts_of_a_launch(&x, 2, 1);
    let all: Vec<_> = weights.into_iter().zip(&out).zip(&widths).collect();
    for some in all.chunks(size) {
        let widest = some.iter().map(|(_, width)| **width).max().unwrap_or(1);
        let count = CubeCount::Static(widest.div_ceil(OUTPUTS) as u32, some.len() as u32, 1);
        let parts = some
            .iter()
            .map(|((weight, out), width)| WeightLaunch::new(weight.clone().bound(), (*out).clone().bound(), **width));
        let parts = parts.collect();
        few_rows_kernel::launch(&x.client.clone(), count, units(), x.clone().bound(), parts, rows, input);
    }
    out
}

#[cube(launch)]
fn onto_kernel(x: &[f32], weight: &[f32], residual: &[f32], out: &mut [f32], rows: usize, input: usize, width: usize) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(UNITS));
    let lane = UNIT_POS as usize % comptime!(LANES);
    let output = CUBE_POS_X as usize * comptime!(OUTPUTS) + UNIT_POS as usize / comptime!(LANES);
    for row in 0..rows {
        let mut sum = 0.0f32;
        if output < width {
            let mut i = lane;
            while i < input {
                sum += x[row * input + i] * weight[output * input + i];
                i += comptime!(LANES);
            }
        }
        let sum = sum_of_lanes(sum, lane, &mut scratch);
        if lane == 0 && output < width {
            out[row * width + output] = residual[row * width + output] + sum;
        }
    }
}

#[cube(launch)]
fn gated_onto_kernel(
    gate: &[f32],
    up: &[f32],
    weight: &[f32],
    residual: &[f32],
    out: &mut [f32],
    rows: usize,
    input: usize,
    width: usize,
    #[comptime] kind: u32,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(UNITS));
    let lane = UNIT_POS as usize % comptime!(LANES);
    let output = CUBE_POS_X as usize * comptime!(OUTPUTS) + UNIT_POS as usize / comptime!(LANES);
    for row in 0..rows {
        let mut sum = 0.0f32;
        if output < width {
            let mut i = lane;
            while i < input {
                let at = row * input + i;
                sum += activate(gate[at], kind) * up[at] * weight[output * input + i];
                i += comptime!(LANES);
            }
        }
        let sum = sum_of_lanes(sum, lane, &mut scratch);
        if lane == 0 && output < width {
            out[row * width + output] = residual[row * width + output] + sum;
        }
    }
}

fn cubes_for(width: usize) -> CubeCount {
    CubeCount::Static(width.div_ceil(OUTPUTS) as u32, 1, 1)
}

/// `residual + x·Wᵀ`: `x [M, in]`, `weight [out, in]`, `residual [M, out]`.
pub fn onto(x: CubeTensor, weight: CubeTensor, residual: CubeTensor) -> CubeTensor {
    let (x, weight, residual) = (dense(x), dense(weight), dense(residual));
    let ([rows, input], [width, _]) = (dims(&x), dims(&weight));
    let out = empty(&x, [rows, width]);
    let client = x.client.clone();
    onto_kernel::launch(
        &client,
        cubes_for(width),
        units(),
        x.bound(),
        weight.bound(),
        residual.bound(),
        out.clone().bound(),
        rows,
        input,
        width,
    );
    out
}

/// `residual + (act(gate) · up)·Wᵀ`: `gate`, `up` `[M, in]`; the others as for [`onto`].
pub fn gated_onto(
    [gate, up]: [CubeTensor; 2],
    activation: Activation,
    weight: CubeTensor,
    residual: CubeTensor,
) -> CubeTensor {
    let (gate, up, weight, residual) = (dense(gate), dense(up), dense(weight), dense(residual));
    let ([rows, input], [width, _]) = (dims(&gate), dims(&weight));
    let out = empty(&gate, [rows, width]);
    let client = gate.client.clone();
    gated_onto_kernel::launch(
        &client,
        cubes_for(width),
        units(),
        gate.bound(),
        up.bound(),
        weight.bound(),
        residual.bound(),
        out.clone().bound(),
        rows,
        input,
        width,
        number(activation),
    );
    out
}
