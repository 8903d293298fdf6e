//! Rows that a router has selected: gathered, and merged back with what a block made of them. The
//! index of a row among the selected ones is searched for, so that the gradients are one launch,
//! in which no two units write to one place.

use super::launch::{
    Bound, UNITS, cubes, cubes_for_units, dense, dims, empty, empty_like, position, sum_of_cube, units,
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use retie_config::Gating;

/// Index of `row` among the ascending `rows`; `count` where it is not among them.
#[cube]
fn place_of(rows: &[i32], count: usize, row: usize) -> usize {
    let mut low = 0usize;
    let mut high = count;
    while low < high {
        let middle = (low + high) / 2;
        if (rows[middle] as usize) < row {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let mut place = count;
    if low < count {
        if rows[low] as usize == row {
            place = low;
        }
    }
    place
}

/// A row below 0 stands for zeros.
#[cube(launch)]
fn take_rows_kernel(x: &[f32], rows: &[i32], out: &mut [f32], count: usize, width: usize) {
    let at = position();
    if at < count {
        let row = rows[at / width];
        let mut value = 0.0f32;
        if row >= 0i32 {
            value = x[row as usize * width + at % width];
        }
        out[at] = value;
    }
}

/// Rows that are not among `rows` get 0.
#[cube(launch)]
fn scatter_rows_kernel(x: &[f32], rows: &[i32], out: &mut [f32], count: usize, width: usize, selected: usize) {
    let at = position();
    if at < count {
        let place = place_of(rows, selected, at / width);
        let mut value = 0.0f32;
        if place < selected {
            value = x[place * width + at % width];
        }
        out[at] = value;
    }
}

/// Rows of `x [M, D]` by index → `[k, D]`; below 0 they are zeros.
pub fn take(x: CubeTensor, rows: CubeTensor) -> CubeTensor {
    let (x, rows) = (dense(x), dense(rows));
    let ([_, width], [num_rows]) = (dims(&x), dims(&rows));
    let out = empty(&x, [num_rows, width]);
    let (client, count) = (x.client.clone(), num_rows * width);
    take_rows_kernel::launch(
        &client,
        cubes_for_units(count),
        units(),
        x.bound(),
        rows.bound(),
        out.clone().bound(),
        count,
        width,
    );
    out
}

/// Gradient of [`take`] for its `num_rows` rows; `rows` ascend.
pub fn scatter(grad: CubeTensor, rows: CubeTensor, num_rows: usize) -> CubeTensor {
    let (grad, rows) = (dense(grad), dense(rows));
    let [selected, width] = dims(&grad);
    let out = empty(&grad, [num_rows, width]);
    let (client, count) = (grad.client.clone(), num_rows * width);
    scatter_rows_kernel::launch(
        &client,
        cubes_for_units(count),
        units(),
        grad.bound(),
        rows.bound(),
        out.clone().bound(),
        count,
        width,
        selected,
    );
    out
}

const STRAIGHT_THROUGH: u32 = 0;
const DELTA: u32 = 1;
const WEIGHTED: u32 = 2;
const ADDITIVE: u32 = 3;

/// Number of a gating in the kernels.
fn number(gating: Gating) -> u32 {
    match gating {
        Gating::StraightThrough => STRAIGHT_THROUGH,
        Gating::Delta => DELTA,
        Gating::Weighted => WEIGHTED,
        Gating::Additive => ADDITIVE,
    }
}

/// `rows` are not read where `are_all`.
#[cube(launch)]
fn merge_rows_kernel(
    x: &[f32],
    y: &[f32],
    gate: &[f32],
    rows: &[i32],
    out: &mut [f32],
    count: usize,
    width: usize,
    selected: usize,
    #[comptime] are_all: bool,
    #[comptime] gating: u32,
) {
    let at = position();
    if at < count {
        let row = at / width;
        let place = if comptime!(are_all) { row } else { place_of(rows, selected, row) };
        let mut value = x[at];
        if place < selected {
            let leaving = y[place * width + at % width];
            if comptime!(gating == STRAIGHT_THROUGH) {
                value = leaving;
            } else if comptime!(gating == DELTA) {
                value = (1.0f32 - gate[place]) * value + gate[place] * leaving;
            } else if comptime!(gating == WEIGHTED) {
                value += gate[place] * leaving;
            } else {
                value += leaving;
            }
        }
        out[at] = value;
    }
}

/// A row of `x` is a cube's: its gradient and, of a selected one, those of its row of `y` and of
/// its gate. `x` is read only where the gating replaces a part of it.
#[cube(launch)]
fn merge_rows_backward_kernel(
    x: &[f32],
    y: &[f32],
    gate: &[f32],
    rows: &[i32],
    grad: &[f32],
    grad_x: &mut [f32],
    grad_y: &mut [f32],
    grad_gate: &mut [f32],
    num_rows: usize,
    width: usize,
    selected: usize,
    #[comptime] are_all: bool,
    #[comptime] gating: u32,
) {
    let row = CUBE_POS;
    if row >= num_rows {
        terminate!();
    }
    let mut scratch = Shared::new_slice(comptime!(UNITS));
    let place = if comptime!(are_all) { row } else { place_of(rows, selected, row) };
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let own = grad[row * width + i];
        let mut of_x = own;
        if place < selected {
            let mut of_y = own;
            let leaving = y[place * width + i];
            if comptime!(gating == STRAIGHT_THROUGH) {
                sum += own * (leaving - x[row * width + i]);
                of_x = 0.0f32.runtime();
            } else if comptime!(gating == DELTA) {
                sum += own * (leaving - x[row * width + i]);
                of_x = own * (1.0f32 - gate[place]);
                of_y = own * gate[place];
            } else if comptime!(gating == WEIGHTED) {
                sum += own * leaving;
                of_y = own * gate[place];
            }
            grad_y[place * width + i] = of_y;
        }
        grad_x[row * width + i] = of_x;
        i += comptime!(UNITS);
    }
    let sum = sum_of_cube(sum, &mut scratch);
    if UNIT_POS == 0 {
        if place < selected {
            grad_gate[place] = sum;
        }
    }
}

/// What the backward pass of [`merge`] needs.
#[derive(Clone, Debug)]
pub struct Merged {
    /// `[M, D]`, where the gating replaces a part of it.
    x: Option<CubeTensor>,
    y: CubeTensor,
    gate: CubeTensor,
    rows: CubeTensor,
    gating: Gating,
}

/// `x [M, D]` with the ascending `rows` combined with `y [k, D]` by `gate [k, 1]`.
pub fn merge([x, y, gate]: [CubeTensor; 3], rows: CubeTensor, gating: Gating) -> (CubeTensor, Merged) {
    let (x, y, gate, rows) = (dense(x), dense(y), dense(gate), dense(rows));
    let ([num_rows, width], [selected, _]) = (dims(&x), dims(&y));
    let out = empty_like(&x);
    let count = num_rows * width;
    merge_rows_kernel::launch(
        &x.client.clone(),
        cubes_for_units(count),
        units(),
        x.clone().bound(),
        y.clone().bound(),
        gate.clone().bound(),
        rows.clone().bound(),
        out.clone().bound(),
        count,
        width,
        selected,
        selected == num_rows,
        number(gating),
    );
    let x = matches!(gating, Gating::StraightThrough | Gating::Delta).then_some(x);
    (out, Merged { x, y, gate, rows, gating })
}

/// Gradients of `x`, `y` and `gate`; additive gating has one of 0.
pub fn merge_backward(merged: Merged, grad: CubeTensor) -> [CubeTensor; 3] {
    let Merged { x, y, gate, rows, gating } = merged;
    let grad = dense(grad);
    let ([num_rows, width], [selected, _]) = (dims(&grad), dims(&y));
    let (grad_x, grad_y, grad_gate) = (empty_like(&grad), empty_like(&y), empty_like(&gate));
    merge_rows_backward_kernel::launch(
        &grad.client.clone(),
        cubes(num_rows),
        units(),
        x.unwrap_or_else(|| grad.clone()).bound(),
        y.bound(),
        gate.bound(),
        rows.bound(),
        grad.bound(),
        grad_x.clone().bound(),
        grad_y.clone().bound(),
        grad_gate.clone().bound(),
        num_rows,
        width,
        selected,
        selected == num_rows,
        number(gating),
    );
    [grad_x, grad_y, grad_gate]
}
