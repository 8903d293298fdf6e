//! The metric in which a weight's error is the error of its output: `‖E‖²_C = tr(E C Eᵀ) = E‖E x‖²`
//! with `C = E[x xᵀ]`.
//!
//! A moment of few tokens is rank-deficient, and one of many is badly conditioned. Damping, `C + λ
//! I` with `λ` a part of the mean of the diagonal, makes it positive definite: directions that the
//! text does not show keep a small weight in the plain (Frobenius) sense. Whatever is computed here
//! holds for the damped metric.

use crate::ConvertError;
use faer::{
    Accum, Mat, MatRef, Par,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{
        cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch},
        matmul::matmul,
        triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place},
    },
};
use rayon::prelude::*;

/// Part of the mean of a moment's diagonal that is added to the diagonal: see the module.
pub(super) const DAMPING: f64 = 0.01;

/// Columns of a product, or rows of what is divided, that one task takes.
const PANEL: usize = 128;

/// A positive definite `C [n, n]` and its Cholesky factor.
pub(super) struct Metric {
    /// With damping.
    matrix: Mat<f64>,
    /// Lower triangular `L`, `C = L Lᵀ`.
    lower: Mat<f64>,
}

impl Metric {
    /// The metric of moments `[n, n]`, damped by `damping` of the mean of their diagonal. Where
    /// nothing was ever read (zero moments) every direction counts alike.
    ///
    /// # Errors
    /// [`ConvertError::BadMoments`] with empty fields for the caller to fill, when the moments are
    /// not finite.
    pub fn new(mut moments: Mat<f64>, damping: f64) -> Result<Self, ConvertError> {
        let size = moments.nrows();
        let mean = (0..size).map(|i| moments[(i, i)]).sum::<f64>() / size as f64;
        let damping = if mean > 0.0 { damping * mean } else { 1.0 };
        (0..size).for_each(|i| moments[(i, i)] += damping);
        Self::from_gram(moments)
    }

    /// The metric of moments `[n, n]` with `ridge` of each element of their diagonal added to it,
    /// as ridge regression on inputs of unit variance; an input that is never read counts as one.
    ///
    /// # Errors
    /// As [`Metric::new`].
    pub fn with_ridge(moments: &Mat<f64>, ridge: f64) -> Result<Self, ConvertError> {
        let mut moments = moments.clone();
        for i in 0..moments.nrows() {
            let square = moments[(i, i)];
            moments[(i, i)] = if square > 0.0 { square * (1.0 + ridge) } else { square + 1.0 };
        }
        Self::from_gram(moments)
    }

    /// The sum of some.
    ///
    /// # Errors
    /// As [`Metric::new`].
    ///
    /// # Panics
    /// When there is none.
    pub fn sum(metrics: &[&Self]) -> Result<Self, ConvertError> {
        let size = metrics[0].matrix.nrows();
        Self::from_gram(Mat::from_fn(size, size, |i, j| metrics.iter().map(|metric| metric.matrix[(i, j)]).sum()))
    }

    fn from_gram(matrix: Mat<f64>) -> Result<Self, ConvertError> {
        let lower = cholesky(matrix.clone())?;
        Ok(Self { matrix, lower })
    }

    /// `L`.
    pub fn lower(&self) -> MatRef<'_, f64> {
        self.lower.as_ref()
    }

    /// `E C`, of `E [m, n]`.
    pub fn times(&self, e: MatRef<'_, f64>) -> Mat<f64> {
        product(e, self.matrix.as_ref())
    }

    /// `E C⁻¹`, of `E [m, n]`.
    pub fn divide(&self, mut e: Mat<f64>) -> Mat<f64> {
        e.as_mut().transpose_mut().par_col_chunks_mut(PANEL).for_each(|mut rows| {
            solve_lower_triangular_in_place(self.lower.as_ref(), rows.as_mut(), Par::Seq);
            solve_upper_triangular_in_place(self.lower.transpose(), rows, Par::Seq);
        });
        e
    }

    /// `‖E‖²_C`.
    #[cfg(test)]
    pub fn energy(&self, e: MatRef<'_, f64>) -> f64 {
        inner(self.times(e).as_ref(), e)
    }
}

/// `L` of `matrix = L Lᵀ`, whose lower triangle is read.
fn cholesky(mut lower: Mat<f64>) -> Result<Mat<f64>, ConvertError> {
    let size = lower.nrows();
    let bad = || ConvertError::BadMoments { depth: 0, projection: String::new() };
    // One thread each: the result must not depend on how many there are.
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(size, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(lower.as_mut(), Default::default(), Par::Seq, stack, Default::default()).map_err(|_| bad())?;
    for j in 0..size {
        (0..j).for_each(|i| lower[(i, j)] = 0.0);
    }
    // A pivot that is not a number passes the factorisation.
    if (0..size).all(|i| lower[(i, i)].is_finite()) { Ok(lower) } else { Err(bad()) }
}

/// An orthonormal basis of the columns of `y [n, r]`: `y L⁻ᵀ` with `yᵀ y = L Lᵀ`, twice, as the
/// first leaves an error that grows with the condition of `y`
/// (<https://doi.org/10.1137/18M1218212>, shifted Cholesky QR). Zero stays zero.
///
/// # Errors
/// [`ConvertError::BadMoments`] with empty fields, when `y` is not finite.
pub(super) fn orthonormal(mut y: Mat<f64>) -> Result<Mat<f64>, ConvertError> {
    /// Part of the trace that is added to the diagonal: above the rounding of the products, below
    /// what changes a direction.
    const SHIFT: f64 = 1e-14;
    for _ in 0..2 {
        let mut gram = product(y.transpose(), y.as_ref());
        let trace: f64 = (0..gram.nrows()).map(|i| gram[(i, i)]).sum();
        if trace == 0.0 {
            return Ok(y);
        }
        (0..gram.nrows()).for_each(|i| gram[(i, i)] += SHIFT * trace);
        let lower = cholesky(gram)?;
        // y ← y L⁻ᵀ, that is L yᵀ = old yᵀ.
        solve_lower_triangular_in_place(lower.as_ref(), y.as_mut().transpose_mut(), Par::Seq);
    }
    Ok(y)
}

/// `x y`. Panels of columns are tasks of one thread each, so that the result does not depend on how
/// many threads there are.
pub(super) fn product(x: MatRef<'_, f64>, y: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(x.nrows(), y.ncols());
    out.par_col_chunks_mut(PANEL)
        .zip(y.par_col_chunks(PANEL))
        .for_each(|(out, y)| matmul(out, Accum::Replace, x, y, 1.0, Par::Seq));
    out
}

/// `Σ_ij x_ij y_ij`.
pub(super) fn inner(x: MatRef<'_, f64>, y: MatRef<'_, f64>) -> f64 {
    (0..x.ncols()).map(|j| (0..x.nrows()).map(|i| x[(i, j)] * y[(i, j)]).sum::<f64>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::testing::Random;

    #[test]
    fn dividing_undoes_multiplying_even_where_moments_are_rank_deficient() {
        let mut random = Random::new(3);
        let x = random.matrix(3, 8);
        let metric = Metric::new(product(x.transpose(), x.as_ref()), 0.01).unwrap(); // rank 3 of 8
        let e = random.matrix(5, 8);
        let back = metric.divide(metric.times(e.as_ref()));
        let left = &back - &e;
        // Condition of the damped moments is below 1e4.
        assert!(inner(left.as_ref(), left.as_ref()).sqrt() < 1e-10);
        let whitened = product(e.as_ref(), metric.lower());
        let energy = inner(whitened.as_ref(), whitened.as_ref());
        assert!((metric.energy(e.as_ref()) - energy).abs() < 1e-12 * energy);
    }

    #[test]
    fn a_basis_is_orthonormal_and_spans_the_columns() {
        let mut random = Random::new(12);
        let y = random.matrix(20, 4);
        let y = Mat::from_fn(20, 4, |i, j| y[(i, j)] * 10f64.powi(-(j as i32)));
        let basis = orthonormal(y.clone()).unwrap();
        let gram = product(basis.transpose(), basis.as_ref());
        let left = &y - &product(basis.as_ref(), product(basis.transpose(), y.as_ref()).as_ref());
        let error = &gram - &Mat::<f64>::identity(4, 4);
        // The shift, and the rounding of f64.
        assert!(inner(error.as_ref(), error.as_ref()).sqrt() < 1e-12);
        assert!(inner(left.as_ref(), left.as_ref()).sqrt() < 1e-12);
        assert_eq!(orthonormal(Mat::zeros(5, 2)).unwrap(), Mat::<f64>::zeros(5, 2));
    }

    #[test]
    fn zero_moments_are_the_plain_metric_and_others_that_are_no_numbers_are_refused() {
        let plain = Metric::new(Mat::zeros(4, 4), 0.01).unwrap();
        let e = Random::new(4).matrix(2, 4);
        assert!((plain.energy(e.as_ref()) - inner(e.as_ref(), e.as_ref())).abs() < 1e-14);
        for bad in [f64::NAN, f64::INFINITY] {
            assert!(matches!(Metric::new(Mat::full(3, 3, bad), 0.01), Err(ConvertError::BadMoments { .. })));
        }
    }
}
