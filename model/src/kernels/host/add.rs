//! `x + y`, elementwise, on all threads and into memory that nothing clears first.

use rayon::prelude::*;

/// Elements below which a task is not split.
const MIN_LEN: usize = 1 << 15;

/// The sum of two slices of one length.
pub fn add(x: &[f32], y: &[f32]) -> Vec<f32> {
    x.par_iter().zip_eq(y).with_min_len(MIN_LEN).map(|(x, y)| x + y).collect()
}
