//! Gradient of an embedding table: rows of equal ids are summed in their order, each id by a cube.

use super::launch::{Bound, UNITS, cubes, dense, dims, units};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use std::collections::BTreeMap;

/// `order` has, for each id in turn, the id, where its rows begin, and where they end; then the
/// rows.
#[cube(launch)]
fn add_rows_kernel(table: &mut [f32], rows: &[f32], order: &[i32], ids: usize, width: usize) {
    if CUBE_POS >= ids {
        terminate!();
    }
    let id = order[3 * CUBE_POS] as usize;
    let begin = order[3 * CUBE_POS + 1] as usize;
    let end = order[3 * CUBE_POS + 2] as usize;
    let mut i = UNIT_POS as usize;
    while i < width {
        let mut sum = table[id * width + i];
        for at in begin..end {
            sum += rows[order[at] as usize * width + i];
        }
        table[id * width + i] = sum;
        i += comptime!(UNITS);
    }
}

/// What the kernel is told of `ids`, and the number of different ones.
pub fn order(ids: &[u32]) -> (Vec<i32>, usize) {
    let mut rows: BTreeMap<u32, Vec<i32>> = BTreeMap::new();
    ids.iter().enumerate().for_each(|(row, id)| rows.entry(*id).or_default().push(row as i32));
    let mut begin = 3 * rows.len();
    let mut order = Vec::with_capacity(begin + ids.len());
    for (id, rows) in &rows {
        order.extend([*id as i32, begin as i32, (begin + rows.len()) as i32]);
        begin += rows.len();
    }
    let count = rows.len();
    rows.into_values().for_each(|rows| order.extend(rows));
    (order, count)
}

/// `table[ids[m]] += rows[m]`: table `[V, D]`, rows `[M, D]`; `order` is on the device.
pub fn add_rows(table: CubeTensor, rows: CubeTensor, order: CubeTensor, ids: usize) -> CubeTensor {
    let table = dense(table);
    let table = if table.can_mut() { table } else { table.copy() };
    let (rows, [_, width]) = (dense(rows), dims(&table));
    let client = table.client.clone();
    add_rows_kernel::launch(
        &client,
        cubes(ids),
        units(),
        table.clone().bound(),
        rows.bound(),
        order.bound(),
        ids,
        width,
    );
    table
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn rows_of_an_id_are_in_their_order() {
        assert_eq!(order(&[5, 2, 5, 9]), (vec![2, 9, 10, 5, 10, 12, 9, 12, 13, 1, 0, 2, 3], 3));
        assert_eq!(order(&[]), (vec![], 0));
    }
}
