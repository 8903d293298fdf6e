//! Second moments of what linears read, summed as the rows come by.
//!
//! `x [rows, n]` is what a linear of the source reads and `x̂ [rows, n]` what that of the tied
//! model reads on the same tokens (the same, where only the source runs). Kept are means over rows:
//! `C = E[x̂ x̂ᵀ]`, and where the two differ `E[(x − x̂) x̂ᵀ]` and, for a linear that writes to the
//! residual stream `h`, `E[(h − ĥ) x̂ᵀ]`.
//!
//! Products of [`BLOCK`] rows are summed in f32 and these sums in f64. Differences are taken before
//! products, so that where nothing differs the moments are exactly zero. Every column panel is
//! summed by one thread in the order of the rows: the result does not depend on how many threads
//! there are.

use faer::{Accum, Mat, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

/// Rows whose products are summed in f32: the rounding is then below 1e-5 of a mean square.
const BLOCK: usize = 512;

/// Columns that one task sums.
const PANEL: usize = 96;

/// Inputs and residual streams of a linear of the source and of the tied model, on the same rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    /// `x [rows, n]`; `None` if it equals `x̂`.
    pub source: Option<&'a [f32]>,
    /// `x̂ [rows, n]`.
    pub tied: &'a [f32],
    /// `h` and `ĥ`, `[rows, D]` each.
    pub residual: Option<[&'a [f32]; 2]>,
}

/// Sums over rows. Matrices are column-major; a column belongs to an element of `x̂`.
pub(super) struct GramSums {
    size: usize,
    rows: usize,
    /// Lower triangle of `Σ x̂ x̂ᵀ`.
    gram: Vec<f64>,
    sum: Vec<f64>,
    /// `Σ (x − x̂) x̂ᵀ`, `[n, n]`.
    shift: Option<Vec<f64>>,
    /// `Σ (h − ĥ) x̂ᵀ`, `[D, n]`.
    residual: Option<Vec<f64>>,
}

impl GramSums {
    /// Nothing summed yet, for inputs of `size` elements.
    pub fn new(size: usize) -> Self {
        Self { size, rows: 0, gram: vec![0.0; size * size], sum: vec![0.0; size], shift: None, residual: None }
    }

    /// Adds rows.
    pub fn add(&mut self, pair: Pair<'_>) {
        let size = self.size;
        let rows = pair.tied.len() / size;
        self.rows += rows;
        for row in pair.tied.chunks_exact(size) {
            self.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        add_products(&mut self.gram, pair.tied, pair.tied, [size, size], Triangle::Lower);
        if let Some(source) = pair.source {
            let shift = self.shift.get_or_insert_with(|| vec![0.0; size * size]);
            add_products(shift, &difference(source, pair.tied), pair.tied, [size, size], Triangle::All);
        }
        if let Some([source, tied]) = pair.residual {
            let width = source.len() / rows.max(1);
            let residual = self.residual.get_or_insert_with(|| vec![0.0; width * size]);
            add_products(residual, &difference(source, tied), pair.tied, [width, size], Triangle::All);
        }
    }

    /// `E[x̂ x̂ᵀ]`, `[n, n]`.
    pub fn gram(&self) -> Mat<f64> {
        let (size, scale) = (self.size, self.scale());
        Mat::from_fn(size, size, |i, j| scale * self.gram[i.min(j) * size + i.max(j)])
    }

    /// `E[x̂]`, `[n]`.
    pub fn mean(&self) -> impl Fn(usize) -> f64 {
        let scale = self.scale();
        move |i| scale * self.sum[i]
    }

    /// `E[(x − x̂) x̂ᵀ]`, `[n, n]`, unless the two never differed.
    pub fn shift(&self) -> Option<Mat<f64>> {
        self.shift.as_deref().map(|sums| self.full(sums))
    }

    /// `E[(h − ĥ) x̂ᵀ]`, `[D, n]`.
    pub fn residual(&self) -> Option<Mat<f64>> {
        self.residual.as_deref().map(|sums| self.full(sums))
    }

    fn full(&self, sums: &[f64]) -> Mat<f64> {
        let (scale, height) = (self.scale(), sums.len() / self.size);
        Mat::from_fn(height, self.size, |i, j| scale * sums[j * height + i])
    }

    fn scale(&self) -> f64 {
        1.0 / self.rows.max(1) as f64
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Triangle {
    All,
    Lower,
}

fn difference(x: &[f32], y: &[f32]) -> Vec<f32> {
    x.iter().zip(y).map(|(x, y)| x - y).collect()
}

/// `sums += leftᵀ · right`: `left [rows, height]`, `right [rows, width]`, `sums [height, width]`
/// column-major.
fn add_products(sums: &mut [f64], left: &[f32], right: &[f32], [height, width]: [usize; 2], part: Triangle) {
    sums.par_chunks_mut(PANEL * height).enumerate().for_each(|(panel, sums)| {
        let (first, columns) = (panel * PANEL, sums.len() / height);
        let top = if part == Triangle::Lower { first } else { 0 };
        let mut products = Mat::<f32>::zeros(height - top, columns);
        for (left, right) in left.chunks(BLOCK * height).zip(right.chunks(BLOCK * width)) {
            let rows = left.len() / height;
            let left = MatRef::from_row_major_slice(left, rows, height).subcols(top, height - top);
            let right = MatRef::from_row_major_slice(right, rows, width).subcols(first, columns);
            matmul(products.as_mut(), Accum::Replace, left.transpose(), right, 1.0, Par::Seq);
            for (j, column) in sums.chunks_exact_mut(height).enumerate() {
                for (i, sum) in column[top..].iter_mut().enumerate() {
                    *sum += f64::from(products[(i, j)]);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::testing::{Random, close};

    #[test]
    fn moments_are_the_means_over_all_rows_however_they_come() {
        let (rows, n, d) = (700, 130, 5);
        let mut random = Random::new(1);
        let [x, x_hat] = [random.values(rows * n), random.values(rows * n)];
        let [h, h_hat] = [random.values(rows * d), random.values(rows * d)];
        let mut moments = GramSums::new(n);
        for (from, to) in [(0, 600), (600, rows)] {
            moments.add(Pair {
                source: Some(&x[from * n..to * n]),
                tied: &x_hat[from * n..to * n],
                residual: Some([&h[from * d..to * d], &h_hat[from * d..to * d]]),
            });
        }
        let mean = |f: &dyn Fn(usize) -> f64| (0..rows).map(f).sum::<f64>() / rows as f64;
        let at = |values: &[f32], width: usize, row: usize, i: usize| f64::from(values[row * width + i]);
        let (gram, shift, residual) = (moments.gram(), moments.shift().unwrap(), moments.residual().unwrap());
        for (i, j) in [(0, 0), (3, 129), (129, 3), (100, 97)] {
            let expected = [
                mean(&|r| at(&x_hat, n, r, i) * at(&x_hat, n, r, j)),
                mean(&|r| (at(&x, n, r, i) - at(&x_hat, n, r, i)) * at(&x_hat, n, r, j)),
                mean(&|r| (at(&h, d, r, i % d) - at(&h_hat, d, r, i % d)) * at(&x_hat, n, r, j)),
            ];
            // Sums of 512 products in f32: 512 · 6e-8 of products of size 1 at the very most.
            close(&[gram[(i, j)], shift[(i, j)], residual[(i % d, j)]], &expected, 3e-5);
            close(&[moments.mean()(i)], &[mean(&|r| at(&x_hat, n, r, i))], 1e-12);
        }
    }

    #[test]
    fn what_is_read_alike_is_shifted_by_exactly_nothing() {
        let x = Random::new(2).values(40 * 7);
        let mut moments = GramSums::new(7);
        moments.add(Pair { source: Some(&x), tied: &x, residual: None });
        let shift = moments.shift().unwrap();
        assert!((0..7).all(|i| (0..7).all(|j| shift[(i, j)] == 0.0)));
        assert!(moments.residual().is_none());
    }
}
