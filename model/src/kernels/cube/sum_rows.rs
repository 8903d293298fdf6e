//! Sum over rows, `[rows, width]` → `[width]`: the last step of gradients that are summed in
//! pieces.

use super::launch::{Bound, cubes_for_units, dense, dims, empty, position, units};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

#[cube(launch)]
fn sum_rows_kernel(x: &[f32], out: &mut [f32], rows: usize, width: usize) {
    let column = position();
    if column < width {
        let mut sum = 0.0f32;
        for row in 0..rows {
            sum += x[row * width + column];
        }
        out[column] = sum;
    }
}

/// `x [rows, width]` → `[width]`.
pub fn sum_rows(x: CubeTensor) -> CubeTensor {
    let x = dense(x);
    let [rows, width] = dims(&x);
    let out = empty(&x, [width]);
    let (client, cubes) = (x.client.clone(), cubes_for_units(width));
    sum_rows_kernel::launch(&client, cubes, units(), x.bound(), out.clone().bound(), rows, width);
    out
}
