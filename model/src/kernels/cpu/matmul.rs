//! Matrix products on slices, by `faer` or the `gemm` crate, whichever is faster for the shape.
//!
//! burn-flex has its own product, on the same crate. It clears its output, then copies the cleared
//! bytes once more to align them, on one thread. Here the product is written into uninitialised
//! memory, or added to the output.

#![expect(
    unsafe_code,
    reason = "the crates' entry points take pointers; a `Matrix` cannot be made with sizes that leave its slice"
)]

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use gemm::{Parallelism, gemm};

/// Number of multiply-adds from which a second thread pays off.
const PARALLEL_FROM: usize = 192 * 192 * 192;
/// Number of columns of the product from which `gemm` is faster (`docs/log.md`).
const GEMM_FROM: usize = 16_385;

/// Dense matrix in a slice, or its transpose.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major matrix.
    ///
    /// # Panics
    /// When `values` does not have `rows · cols` elements.
    pub fn new(values: &'a [f32], [rows, cols]: [usize; 2]) -> Self {
        assert_eq!(values.len(), rows * cols, "elements of a matrix of {rows} × {cols}");
        Self { values, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(self) -> usize {
        self.cols
    }

    /// Row-major elements; `None` for a transpose.
    pub fn dense(self) -> Option<&'a [f32]> {
        (self.col_stride == 1).then_some(self.values)
    }

    /// Transpose; no element moves.
    pub fn t(self) -> Self {
        let Self { values, rows, cols, row_stride, col_stride } = self;
        Self { values, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

/// Product `lhs · rhs`, row-major.
pub fn product(lhs: Matrix<'_>, rhs: Matrix<'_>) -> Vec<f32> {
    let len = lhs.rows * rhs.cols;
    if lhs.cols == 0 {
        return vec![0.0; len];
    }
    let mut out: Vec<f32> = Vec::with_capacity(len);
    // SAFETY: `out` has room for `len` elements; the product reads none of them and writes all
    // (`lhs.cols` is not 0).
    unsafe {
        run(out.as_mut_ptr(), rhs.cols, false, lhs, rhs);
        out.set_len(len);
    }
    out
}

/// Writes a product: `out ← lhs · rhs`.
///
/// # Panics
/// When `out` does not have the size of the product.
pub fn write_product(out: &mut [f32], lhs: Matrix<'_>, rhs: Matrix<'_>) {
    assert_eq!(out.len(), lhs.rows * rhs.cols, "elements of the product");
    if lhs.cols == 0 {
        return out.fill(0.0);
    }
    // SAFETY: `out` has as many elements as the product.
    unsafe { run(out.as_mut_ptr(), rhs.cols, false, lhs, rhs) }
}

/// Writes a product into columns: `out[:, first..] ← lhs · rhs`. `out` has rows of `width`
/// elements; other columns stay.
///
/// # Panics
/// When the product does not fit there.
pub fn write_columns(out: &mut [f32], width: usize, first: usize, lhs: Matrix<'_>, rhs: Matrix<'_>) {
    assert_eq!(out.len(), lhs.rows * width, "elements of {} rows", lhs.rows);
    assert!(first + rhs.cols <= width, "columns {first}..{} of {width}", first + rhs.cols);
    assert_ne!(lhs.cols, 0, "inner size");
    if lhs.rows > 0 && rhs.cols > 0 {
        // SAFETY: each row of the product starts at column `first` of a row of `out` and ends in
        // it.
        unsafe { run(out.as_mut_ptr().add(first), width, false, lhs, rhs) }
    }
}

/// Adds a product: `out ← out + lhs · rhs`.
///
/// # Panics
/// When `out` does not have the size of the product.
pub fn add_product(out: &mut [f32], lhs: Matrix<'_>, rhs: Matrix<'_>) {
    assert_eq!(out.len(), lhs.rows * rhs.cols, "elements of the product");
    if lhs.cols != 0 {
        // SAFETY: `out` has as many elements as the product, all of them initialised.
        unsafe { run(out.as_mut_ptr(), rhs.cols, true, lhs, rhs) }
    }
}

/// # Safety
/// `out` must be valid for writes of `lhs.rows` rows of `rhs.cols` elements that start
/// `width ≥ rhs.cols` elements apart, and with `add` for reads of as many initialised ones.
unsafe fn run(out: *mut f32, width: usize, add: bool, lhs: Matrix<'_>, rhs: Matrix<'_>) {
    assert_eq!(lhs.cols, rhs.rows, "inner sizes of a product");
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    let parallel = m * n * k >= PARALLEL_FROM;
    // Sizes of objects in memory fit into `isize`.
    let stride = |stride: usize| stride as isize;
    if lhs.col_stride == 1 && n < GEMM_FROM {
        let accumulate = if add { Accum::Add } else { Accum::Replace };
        let par = if parallel { Par::rayon(0) } else { Par::Seq };
        // SAFETY: the caller guarantees `out`, which is written row-major; `Matrix` keeps every
        // element of `lhs` and `rhs` in its slice.
        unsafe {
            let view = |x: Matrix<'_>| {
                MatRef::from_raw_parts(x.values.as_ptr(), x.rows, x.cols, stride(x.row_stride), stride(x.col_stride))
            };
            let out = MatMut::from_raw_parts_mut(out, m, n, stride(width), 1);
            matmul(out, accumulate, view(lhs), view(rhs), 1.0, par);
        }
        return;
    }
    // SAFETY: as above.
    unsafe {
        gemm(
            m,
            n,
            k,
            out,
            1,
            stride(width),
            add,
            lhs.values.as_ptr(),
            stride(lhs.col_stride),
            stride(lhs.row_stride),
            rhs.values.as_ptr(),
            stride(rhs.col_stride),
            stride(rhs.row_stride),
            1.0,
            1.0,
            false,
            false,
            false,
            if parallel { Parallelism::Rayon(0) } else { Parallelism::None },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::tests::counted;

    /// Reference product, element by element; with small integers it is exact in f32.
    fn reference(lhs: &[f32], rhs: &[f32], [m, k, n]: [usize; 3]) -> Vec<f32> {
        let element = |i: usize, j: usize| (0..k).map(|l| lhs[i * k + l] * rhs[l * n + j]).sum();
        (0..m * n).map(|at| element(at / n, at % n)).collect()
    }

    fn transpose(x: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
        (0..rows * cols).map(|at| x[at % rows * cols + at / rows]).collect()
    }

    #[test]
    fn products_of_matrices_and_transposes_are_exact() {
        // The last size is large enough for two threads.
        for [m, k, n] in [[1, 1, 1], [3, 5, 7], [33, 17, 2], [200, 190, 210]] {
            let (a, b) = (counted(m * k), counted(k * n));
            let (at, bt) = (transpose(&a, [m, k]), transpose(&b, [k, n]));
            let expected = reference(&a, &b, [m, k, n]);
            let lhs = [Matrix::new(&a, [m, k]), Matrix::new(&at, [k, m]).t()];
            let rhs = [Matrix::new(&b, [k, n]), Matrix::new(&bt, [n, k]).t()];
            for (lhs, rhs) in lhs.into_iter().flat_map(|l| rhs.map(|r| (l, r))) {
                assert_eq!(product(lhs, rhs), expected);
                let mut out = vec![f32::NAN; m * n];
                write_product(&mut out, lhs, rhs);
                assert_eq!(out, expected);
                add_product(&mut out, lhs, rhs);
                assert_eq!(out, expected.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn columns_are_written_beside_what_is_there() {
        let (a, b) = (counted(15), counted(10));
        let mut out = vec![7.0; 3 * 6];
        write_columns(&mut out, 6, 3, Matrix::new(&a, [3, 5]), Matrix::new(&b, [5, 2]));
        let expected = reference(&a, &b, [3, 5, 2]);
        for (row, expected) in out.chunks_exact(6).zip(expected.chunks_exact(2)) {
            assert_eq!(row, [&[7.0; 3], expected, &[7.0]].concat());
        }
    }

    #[test]
    fn an_empty_inner_size_gives_zeros() {
        let (lhs, rhs) = (Matrix::new(&[], [2, 0]), Matrix::new(&[], [0, 3]));
        assert_eq!(product(lhs, rhs), [0.0; 6]);
        let mut out = [1.0; 6];
        add_product(&mut out, lhs, rhs);
        assert_eq!(out, [1.0; 6]);
        write_product(&mut out, lhs, rhs);
        assert_eq!(out, [0.0; 6]);
    }

    #[test]
    #[should_panic(expected = "inner sizes of a product")]
    fn sizes_that_do_not_fit_are_refused() {
        product(Matrix::new(&[0.0; 6], [2, 3]), Matrix::new(&[0.0; 4], [2, 2]));
    }
}
