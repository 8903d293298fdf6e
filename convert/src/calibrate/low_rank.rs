//! The best correction of rank `r` in a metric: `B A` closest to `E [out, in]` in `‖·‖_C`.
//!
//! With `C = L Lᵀ` it is the truncated singular value decomposition of `E L`, times `L⁻¹`: the
//! whitening of SVD-LLM (<https://arxiv.org/abs/2403.07378>). Of `E L = U Σ Vᵀ` only one side is
//! needed, that of the smaller dimension, and is had from a symmetric eigenproblem: the left
//! vectors from `E C Eᵀ`, and then `B A = U_r (U_rᵀ E)`, with no inverse at all; or the right ones
//! from `Lᵀ Eᵀ E L`, and then `B A = (E L V_r) (V_rᵀ L⁻¹)`. The rows of `A` have length 1, as those
//! of the plain decomposition.

use super::metric::{Metric, inner, product};
use crate::{
    ConvertError,
    factorize::{Draw, LoraFactors, ZERO, eigenvalues, fill_gaussian, gram, top_eigenvectors},
};
use faer::{Mat, MatRef, Par, Scale, linalg::triangular_solve::solve_upper_triangular_in_place};

/// `B [out, r]` and `A [r, in]` in f64.
#[derive(Clone, Debug)]
pub(super) struct LowRank {
    pub b: Mat<f64>,
    pub a: Mat<f64>,
    /// `‖E‖²_C`.
    pub residual_energy: f64,
    /// `‖B A‖²_C`, the part of it that is kept.
    pub kept_energy: f64,
}

impl LowRank {
    /// The best one of `rank` for `e`.
    ///
    /// # Errors
    /// [`ConvertError::NoConvergence`] with an empty name for the caller to fill.
    pub fn from_residual(e: MatRef<'_, f64>, metric: &Metric, rank: usize) -> Result<Self, ConvertError> {
        let (out, inp) = (e.nrows(), e.ncols());
        let (b, a, residual_energy, kept_energy);
        if out <= inp {
            let outputs = product(metric.times(e).as_ref(), e.transpose()); // E C Eᵀ
            residual_energy = (0..out).map(|i| outputs[(i, i)]).sum();
            let left = top_eigenvectors(outputs.as_ref(), rank)?;
            kept_energy = inner(product(outputs.as_ref(), left.as_ref()).as_ref(), left.as_ref());
            a = product(left.transpose(), e);
            b = left;
        } else {
            let whitened = product(e, metric.lower());
            residual_energy = inner(whitened.as_ref(), whitened.as_ref());
            let mut right = top_eigenvectors(gram(whitened.transpose()).as_ref(), rank)?;
            b = product(whitened.as_ref(), right.as_ref());
            kept_energy = inner(b.as_ref(), b.as_ref());
            solve_upper_triangular_in_place(metric.lower().transpose(), right.as_mut(), Par::Seq);
            a = right.transpose().to_owned();
        }
        Ok(Self { b, a, residual_energy, kept_energy }.with_rows_of_length_one())
    }

    fn with_rows_of_length_one(mut self) -> Self {
        let lengths: Vec<f64> = (0..self.a.nrows()).map(|i| self.a.row(i).norm_l2()).collect();
        let divisor = |length: f64| if length > 0.0 { length } else { 1.0 };
        self.a = Mat::from_fn(self.a.nrows(), self.a.ncols(), |i, j| self.a[(i, j)] / divisor(lengths[i]));
        self.b = Mat::from_fn(self.b.nrows(), self.b.ncols(), |i, j| self.b[(i, j)] * lengths[j]);
        self
    }

    /// Factors of zero.
    pub fn zero([out, inp]: [usize; 2], rank: usize) -> Self {
        Self { b: Mat::zeros(out, rank), a: Mat::zeros(rank, inp), residual_energy: 0.0, kept_energy: 0.0 }
    }

    /// The factors of `B A / divisor`; energies stay those of `B A`.
    #[must_use]
    pub fn divided_by(mut self, divisor: f64) -> Self {
        self.b = &self.b * Scale(1.0 / divisor);
        self
    }

    /// `B A`.
    pub fn product(&self) -> Mat<f64> {
        product(self.b.as_ref(), self.a.as_ref())
    }

    /// As they are stored. Directions that hold nothing get a zero column of `B` and a random row
    /// of `A`, as [`factorize`](crate::factorize::factorize) does.
    pub fn factors(&self, draw: Draw) -> LoraFactors {
        let (out, rank, inp) = (self.b.nrows(), self.b.ncols(), self.a.ncols());
        let lengths: Vec<f64> = (0..rank).map(|i| self.b.col(i).norm_l2()).collect();
        let largest = lengths.iter().copied().fold(0.0, f64::max);
        let empty: Vec<usize> = (0..rank).filter(|i| lengths[*i] <= ZERO * largest).collect();
        let row_major = |m: &Mat<f64>| -> Vec<f32> {
            (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)] as f32)).collect()
        };
        let (mut a, mut b) = (row_major(&self.a), row_major(&self.b));
        for i in &empty {
            (0..out).for_each(|row| b[row * rank + i] = 0.0);
        }
        fill_gaussian(&mut a, inp, &empty, draw);
        LoraFactors { a, b, residual_energy: self.residual_energy, kept_energy: self.kept_energy }
    }
}

/// The squared singular values of `E` in a metric, largest first, as many as the smaller side has.
///
/// # Errors
/// As [`LowRank::from_residual`].
pub(super) fn squared_singular_values(e: MatRef<'_, f64>, metric: &Metric) -> Result<Vec<f64>, ConvertError> {
    match e.nrows() <= e.ncols() {
        true => eigenvalues(product(metric.times(e).as_ref(), e.transpose()).as_ref()), // E C Eᵀ
        false => eigenvalues(gram(product(e, metric.lower()).transpose()).as_ref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{calibrate::testing::Random, factorize::factorize};

    const SHAPES: [[usize; 2]; 3] = [[6, 10], [10, 6], [8, 8]];
    const DRAW: Draw = Draw { seed: 0, stream: 0 };

    fn error(e: &Mat<f64>, approximation: &Mat<f64>, metric: &Metric) -> f64 {
        metric.energy((e - approximation).as_ref())
    }

    #[test]
    fn no_other_correction_of_that_rank_is_better_in_its_metric() {
        let mut random = Random::new(5);
        for [out, inp] in SHAPES {
            let e = random.matrix(out, inp);
            let metric = Metric::new(random.moments(inp), 1e-3).unwrap();
            let plain = Metric::new(Mat::identity(inp, inp), 0.0).unwrap();
            for rank in 1..=out.min(inp) {
                let best = LowRank::from_residual(e.as_ref(), &metric, rank).unwrap();
                let found = error(&e, &best.product(), &metric);
                let values = squared_singular_values(e.as_ref(), &metric).unwrap();
                assert!((values[rank..].iter().sum::<f64>() - found).abs() < 1e-10 * best.residual_energy);
                // The energies that it reports.
                let left = best.residual_energy - best.kept_energy;
                assert!((found - left).abs() < 1e-10 * best.residual_energy, "{found} {left}");
                let other = LowRank::from_residual(e.as_ref(), &plain, rank).unwrap();
                let slack = 1e-10 * best.residual_energy;
                assert!(found <= error(&e, &other.product(), &metric) + slack);
                // Small changes of the factors make it no better: it is a minimum.
                for _ in 0..5 {
                    let b = &best.b + 1e-3 * random.matrix(out, rank);
                    let changed = product(b.as_ref(), best.a.as_ref());
                    assert!(found <= error(&e, &changed, &metric) + slack);
                }
            }
        }
    }

    #[test]
    fn with_moments_that_are_the_identity_it_is_the_plain_decomposition() {
        let mut random = Random::new(6);
        for [out, inp] in SHAPES {
            let e = random.matrix(out, inp);
            let values: Vec<f32> = (0..out * inp).map(|i| e[(i / inp, i % inp)] as f32).collect();
            for rank in 1..=out.min(inp) {
                let plain = factorize(&values, [out, inp], rank, DRAW).unwrap();
                let metric = Metric::new(Mat::identity(inp, inp), 0.0).unwrap();
                let found = LowRank::from_residual(e.as_ref(), &metric, rank).unwrap();
                assert!((found.kept_energy - plain.kept_energy).abs() < 1e-12 * plain.residual_energy);
                let at = |values: &[f32], i: usize, j: usize, width: usize| f64::from(values[i * width + j]);
                let product = found.product();
                for i in 0..out {
                    for j in 0..inp {
                        let other: f64 = (0..rank).map(|k| at(&plain.b, i, k, rank) * at(&plain.a, k, j, inp)).sum();
                        // The plain factors are rounded to f32; elements are of size 1.
                        assert!((product[(i, j)] - other).abs() < 1e-6, "{} {other}", product[(i, j)]);
                    }
                }
            }
        }
    }

    #[test]
    fn full_rank_gives_everything_back_and_nothing_needs_nothing() {
        let mut random = Random::new(7);
        for [out, inp] in SHAPES {
            let (e, metric) = (random.matrix(out, inp), Metric::new(random.moments(inp), 1e-3).unwrap());
            let full = LowRank::from_residual(e.as_ref(), &metric, out.min(inp)).unwrap();
            let left = &full.product() - &e;
            // f64, and a condition of the moments below 1e6.
            assert!(inner(left.as_ref(), left.as_ref()).sqrt() < 1e-9);
            let none = LowRank::from_residual(Mat::zeros(out, inp).as_ref(), &metric, 2).unwrap().factors(DRAW);
            assert!(none.b.iter().all(|x| *x == 0.0) && none.a.iter().all(|x| *x != 0.0));
            assert_eq!(none.kept(), None);
        }
    }
}
