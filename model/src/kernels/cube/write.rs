//! Rows that are copied into the keys and values of a cache, in place, in one launch.

use super::launch::{Bound, cubes_for_units, dense, dims, position, units};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Row `m` of the values goes to row `at + m` of the buffers.
#[cube(launch)]
fn write_run_kernel(
    keys: &mut [f32],
    values: &mut [f32],
    new_keys: &[f32],
    new_values: &[f32],
    count: usize,
    from: usize,
    to: usize,
) {
    let at = position();
    if at < count {
        keys[to + at] = new_keys[from + at];
        values[to + at] = new_values[from + at];
    }
}

/// Row `m` goes to row `targets[m]`; below 0 it stays.
#[cube(launch)]
fn write_rows_kernel(
    keys: &mut [f32],
    values: &mut [f32],
    new_keys: &[f32],
    new_values: &[f32],
    targets: &[i32],
    count: usize,
    width: usize,
) {
    let at = position();
    if at < count {
        let target = targets[at / width];
        if target >= 0 {
            let to = target as usize * width + at % width;
            keys[to] = new_keys[at];
            values[to] = new_values[at];
        }
    }
}

/// Where rows go.
pub enum Targets {
    /// Rows `from..from + rows` to `to` and behind.
    Run { from: usize, rows: usize, to: usize },
    /// The row of each, `[M]`, as integers.
    Rows(CubeTensor),
}

/// `buffers [S, D]` with rows of `rows [M, D]`, both of keys and of values: in place whoever else
/// holds the buffers, because a captured step does.
pub fn write(buffers: [CubeTensor; 2], rows: [CubeTensor; 2], targets: Targets) -> [CubeTensor; 2] {
    let (buffers, [new_keys, new_values]) = (buffers.map(dense), rows.map(dense));
    let [keys, values] = buffers.clone().map(Bound::bound);
    let (client, [num_rows, width]) = (new_keys.client.clone(), dims(&new_keys));
    let (new_keys, new_values) = (new_keys.bound(), new_values.bound());
    match targets {
        Targets::Run { from, rows, to } => write_run_kernel::launch(
            &client,
            cubes_for_units(rows * width),
            units(),
            keys,
            values,
            new_keys,
            new_values,
            rows * width,
            from * width,
            to * width,
        ),
        Targets::Rows(targets) => write_rows_kernel::launch(
            &client,
            cubes_for_units(num_rows * width),
            units(),
            keys,
            values,
            new_keys,
            new_values,
            targets.bound(),
            num_rows * width,
            width,
        ),
    }
    buffers
}
