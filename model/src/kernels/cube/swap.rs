//! Exchange of two middle dimensions, `[A, P, Q, D]` → `[A, Q, P, D]`: heads before tokens, and
//! back.

use super::launch::{Bound, cubes_for_units, dense, dims, empty, position, units};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

#[cube(launch)]
fn swap_kernel(x: &[f32], out: &mut [f32], count: usize, first: usize, second: usize, width: usize) {
    let at = position();
    if at < count {
        let column = at % width;
        let row = at / width;
        // Of the output, whose order is that of the second dimension.
        let inner = row % first;
        let outer = row / first % second;
        let batch = row / (first * second);
        out[at] = x[((batch * first + inner) * second + outer) * width + column];
    }
}

/// `x [A, P, Q, D]` → `[A, Q, P, D]`, without gaps.
pub fn swapped(x: CubeTensor) -> CubeTensor {
    let x = dense(x);
    let [batch, first, second, width] = dims(&x);
    let out = empty(&x, [batch, second, first, width]);
    let (client, count) = (x.client.clone(), batch * first * second * width);
    swap_kernel::launch(
        &client,
        cubes_for_units(count),
        units(),
        x.bound(),
        out.clone().bound(),
        count,
        first,
        second,
        width,
    );
    out
}
