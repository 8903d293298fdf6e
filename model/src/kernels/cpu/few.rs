//! Products of up to eight rows with many others; each of the many is read once for all.
//!
//! The kernels use pulp's vector types explicitly. The compiler does not reliably vectorise a loop
//! over that many accumulators: it depends on their number.

use super::simd::{Scalar, dot, vectorised};
use pulp::{Arch, Simd, WithSimd};

/// Maximum number of rows. One vector accumulator per row stays in registers.
pub const MOST_ROWS: usize = 8;

/// Dot products of every `y` with each row of `x [M, len]`: `out [ys, M] ← Σ x·y`.
///
/// # Panics
/// When `x` has no rows or more than [`MOST_ROWS`], or a `y` is shorter than `len`.
pub fn few_dots<'y, T: Scalar + 'y>(out: &mut [f32], x: &[f32], len: usize, ys: impl Iterator<Item = &'y [T]>) {
    match x.len() / len {
        1 => vectorised(
            #[inline(always)]
            || {
                // A plain loop: `for_each` may become a call, and the callee is compiled without
                // the vector instructions.
                for (out, y) in out.iter_mut().zip(ys) {
                    *out = dot(x, y);
                }
            },
        ),
        2 => run::<2, T>(out, x, len, ys),
        3 => run::<3, T>(out, x, len, ys),
        4 => run::<4, T>(out, x, len, ys),
        5 => run::<5, T>(out, x, len, ys),
        6 => run::<6, T>(out, x, len, ys),
        7 => run::<7, T>(out, x, len, ys),
        8 => run::<8, T>(out, x, len, ys),
        rows => panic!("{rows} rows, expected 1 to {MOST_ROWS}"),
    }
}

fn run<'y, const ROWS: usize, T: Scalar + 'y>(
    out: &mut [f32],
    x: &[f32],
    len: usize,
    ys: impl Iterator<Item = &'y [T]>,
) {
    let x = std::array::from_fn(|row| &x[row * len..(row + 1) * len]);
    Arch::new().dispatch(Dots::<ROWS, _> { out, x, ys });
}

struct Dots<'a, const ROWS: usize, Y> {
    out: &'a mut [f32],
    x: [&'a [f32]; ROWS],
    ys: Y,
}

impl<'y, const ROWS: usize, T: Scalar + 'y, Y: Iterator<Item = &'y [T]>> WithSimd for Dots<'_, ROWS, Y> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { out, x, ys } = self;
        let len = x[0].len();
        let x = x.map(|x| S::as_simd_f32s(x));
        // Vectors of all rows that meet the same vector of a `y`, side by side.
        let mut columns = vec![[simd.splat_f32s(0.0); ROWS]; x[0].0.len()];
        for row in 0..ROWS {
            for (column, vector) in columns.iter_mut().zip(x[row].0) {
                column[row] = *vector;
            }
        }
        let mut wide = vec![0.0; len];
        for (out, y) in out.as_chunks_mut::<ROWS>().0.iter_mut().zip(ys) {
            let (y, y_rest) = S::as_simd_f32s(T::as_f32s(&y[..len], &mut wide));
            let mut sums = [simd.splat_f32s(0.0); ROWS];
            for (column, y) in columns.iter().zip(y) {
                for row in 0..ROWS {
                    sums[row] = simd.mul_add_f32s(column[row], *y, sums[row]);
                }
            }
            for row in 0..ROWS {
                let rest = x[row].1.iter().zip(y_rest);
                out[row] = rest.fold(simd.reduce_sum_f32s(sums[row]), |sum, (x, y)| sum + x * y);
            }
        }
    }
}

/// Weighted sums over all `y`: `out [M, len] ← Σ w·y`, with weights `[ys, M]`.
///
/// # Panics
/// When `out` has no rows or more than [`MOST_ROWS`], or a `y` is shorter than `len`.
pub fn few_sums<'y>(out: &mut [f32], weights: &[f32], len: usize, ys: impl Iterator<Item = &'y [f32]> + Clone) {
    fn run<'y, const ROWS: usize>(
        out: &mut [f32],
        weights: &[f32],
        len: usize,
        ys: impl Iterator<Item = &'y [f32]> + Clone,
    ) {
        let (weights, _) = weights.as_chunks();
        Arch::new().dispatch(Sums::<ROWS, _> { out, weights, len, ys });
    }
    match out.len() / len {
        1 => run::<1>(out, weights, len, ys),
        2 => run::<2>(out, weights, len, ys),
        3 => run::<3>(out, weights, len, ys),
        4 => run::<4>(out, weights, len, ys),
        5 => run::<5>(out, weights, len, ys),
        6 => run::<6>(out, weights, len, ys),
        7 => run::<7>(out, weights, len, ys),
        8 => run::<8>(out, weights, len, ys),
        rows => panic!("{rows} rows, expected 1 to {MOST_ROWS}"),
    }
}

struct Sums<'a, const ROWS: usize, Y> {
    out: &'a mut [f32],
    weights: &'a [[f32; ROWS]],
    len: usize,
    ys: Y,
}

impl<'y, const ROWS: usize, Y: Iterator<Item = &'y [f32]> + Clone> Sums<'_, ROWS, Y> {
    /// Computes `VECTORS` vectors of elements from `at` on. Returns the index after them, or `None`
    /// if fewer elements are left.
    #[inline(always)]
    fn part<S: Simd, const VECTORS: usize>(&mut self, simd: S, at: usize) -> Option<usize> {
        let end = at + VECTORS * size_of::<S::f32s>() / size_of::<f32>();
        if end > self.len {
            return None;
        }
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        for (weights, y) in self.weights.iter().zip(self.ys.clone()) {
            let (y, _) = S::as_simd_f32s(&y[at..end]);
            for row in 0..ROWS {
                let weight = simd.splat_f32s(weights[row]);
                for i in 0..VECTORS {
                    sums[row][i] = simd.mul_add_f32s(weight, y[i], sums[row][i]);
                }
            }
        }
        for (out, sums) in self.out.chunks_exact_mut(self.len).zip(sums) {
            let (out, _) = S::as_mut_simd_f32s(&mut out[at..end]);
            out.copy_from_slice(&sums);
        }
        Some(end)
    }
}

impl<'y, const ROWS: usize, Y: Iterator<Item = &'y [f32]> + Clone> WithSimd for Sums<'_, ROWS, Y> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut at = 0;
        // The registers for the sums limit the number of vectors at a time.
        while let Some(next) = match ROWS {
            1..=3 => self.part::<S, 4>(simd, at),
            4..=6 => self.part::<S, 2>(simd, at),
            _ => self.part::<S, 1>(simd, at),
        } {
            at = next;
        }
        while let Some(next) = self.part::<S, 1>(simd, at) {
            at = next;
        }
        for at in at..self.len {
            for (row, out) in self.out.chunks_exact_mut(self.len).enumerate() {
                out[at] = self.weights.iter().zip(self.ys.clone()).map(|(weights, y)| weights[row] * y[at]).sum();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::tests::counted;
    use half::bf16;

    #[test]
    fn every_number_of_rows_gives_the_exact_dot_products_for_either_type() {
        for len in [1, 7, 16, 100] {
            let ys = counted(5 * len);
            let narrow: Vec<bf16> = ys.iter().map(|y| bf16::from_f32(*y)).collect();
            for rows in 1..=MOST_ROWS {
                let x = counted(rows * len);
                let sum = |y: usize, row: usize| (0..len).map(|i| x[row * len + i] * ys[y * len + i]).sum();
                let expected: Vec<f32> = (0..5 * rows).map(|at| sum(at / rows, at % rows)).collect();
                let [mut wide, mut widened] = [(); 2].map(|()| vec![0.0; 5 * rows]);
                few_dots(&mut wide, &x, len, ys.chunks_exact(len));
                few_dots(&mut widened, &x, len, narrow.chunks_exact(len));
                assert_eq!(wide, expected, "{rows} rows of {len}");
                assert_eq!(widened, expected, "{rows} rows of {len} in bf16");
            }
        }
    }

    #[test]
    fn every_number_of_rows_gives_the_exact_weighted_sums() {
        for len in [1, 12, 64, 100] {
            let ys = counted(5 * len);
            for rows in 1..=MOST_ROWS {
                let weights = counted(5 * rows);
                let sum = |row: usize, at: usize| (0..5).map(|y| weights[y * rows + row] * ys[y * len + at]).sum();
                let expected: Vec<f32> = (0..rows * len).map(|at| sum(at / len, at % len)).collect();
                let mut out = vec![f32::NAN; rows * len];
                few_sums(&mut out, &weights, len, ys.chunks_exact(len));
                assert_eq!(out, expected, "{rows} rows of {len}");
            }
        }
    }
}
