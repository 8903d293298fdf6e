//! Random numbers for the tests of this module.

use faer::Mat;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

pub struct Random(ChaCha8Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in -1..1.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.0.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0).collect()
    }

    pub fn matrix(&mut self, rows: usize, columns: usize) -> Mat<f64> {
        let values = self.values(rows * columns);
        Mat::from_fn(rows, columns, |i, j| f64::from(values[i * columns + j]))
    }

    /// `xᵀ x / rows` of random rows whose elements differ in size.
    pub fn moments(&mut self, size: usize) -> Mat<f64> {
        let rows = 4 * size;
        let x = self.matrix(rows, size);
        let x = Mat::from_fn(rows, size, |i, j| x[(i, j)] * (1.0 + j as f64));
        super::metric::product(x.transpose(), x.as_ref())
    }
}

#[track_caller]
pub fn close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert!(found.iter().zip(expected).all(|(x, y)| (x - y).abs() <= tolerance), "{found:?} {expected:?}");
}
