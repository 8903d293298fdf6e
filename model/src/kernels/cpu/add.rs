//! Elementwise sum on all threads, into memory that is not cleared first.

use rayon::prelude::*;

/// Smallest number of elements per task.
const MIN_LEN: usize = 1 << 15;

/// Sum `x + y` of two slices of equal length.
pub fn add(x: &[f32], y: &[f32]) -> Vec<f32> {
    x.par_iter().zip_eq(y).with_min_len(MIN_LEN).map(|(x, y)| x + y).collect()
}
