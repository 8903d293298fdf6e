//! Products of few rows with many others; each of the many is read once for all.
//!
//! The kernels use pulp's vector types explicitly. The compiler does not reliably vectorise a loop
//! over that many accumulators: it depends on their number.

use super::simd::{Scalar, dot, vectorised};
use pulp::{Arch, Simd, WithSimd};

/// Maximum number of rows that are met at once. One vector accumulator per row stays in registers.
pub const MOST_ROWS: usize = 8;

/// Dot products of every `y` with each row of `x [M, len]`: `out [ys, M] ← Σ x·y`. More than
/// [`MOST_ROWS`] rows are met in equal parts, one after the other.
///
/// # Panics
/// When `x` has no rows, or a `y` is shorter than `len`.
pub fn few_dots<'y, T: Scalar + 'y>(out: &mut [f32], x: &[f32], len: usize, ys: impl Iterator<Item = &'y [T]>) {
    let rows = x.len() / len;
    assert!(rows > 0, "no rows, expected at least 1");
    match rows.div_ceil(rows.div_ceil(MOST_ROWS)) {
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
        _ => run::<8, T>(out, x, len, ys),
    }
}

fn run<'y, const ROWS: usize, T: Scalar + 'y>(
    out: &mut [f32],
    x: &[f32],
    len: usize,
    ys: impl Iterator<Item = &'y [T]>,
) {
    Arch::new().dispatch(Dots::<ROWS, _> { out, x, len, ys });
}

/// [`few_dots`] in parts of `ROWS` rows.
struct Dots<'a, const ROWS: usize, Y> {
    out: &'a mut [f32],
    x: &'a [f32],
    len: usize,
    ys: Y,
}

/// `ROWS` rows: their vectors that meet the same vector of a `y`, side by side, and the elements
/// after the last whole vector. Rows that are missing in the last part are 0.
struct Part<S: Simd, const ROWS: usize> {
    columns: Vec<[S::f32s; ROWS]>,
    rest: Vec<[f32; ROWS]>,
}

impl<S: Simd, const ROWS: usize> Part<S, ROWS> {
    #[inline(always)]
    fn new(simd: S, x: &[f32], len: usize) -> Self {
        let width = size_of::<S::f32s>() / size_of::<f32>();
        let mut columns = vec![[simd.splat_f32s(0.0); ROWS]; len / width];
        let mut rest = vec![[0.0; ROWS]; len % width];
        for (row, x) in x.chunks_exact(len).enumerate() {
            let (vectors, elements) = S::as_simd_f32s(x);
            for (column, vector) in columns.iter_mut().zip(vectors) {
                column[row] = *vector;
            }
            for (column, element) in rest.iter_mut().zip(elements) {
                column[row] = *element;
            }
        }
        Self { columns, rest }
    }

    /// Dot products of all rows with each of `ys`.
    #[inline(always)]
    fn dots<const YS: usize>(&self, simd: S, ys: [(&[S::f32s], &[f32]); YS]) -> [[f32; ROWS]; YS] {
        let mut sums = [[simd.splat_f32s(0.0); ROWS]; YS];
        let num_vectors = self.columns.len();
        let vectors = ys.map(|(vectors, _)| &vectors[..num_vectors]);
        for (at, column) in self.columns.iter().enumerate() {
            for y in 0..YS {
                let vector = vectors[y][at];
                for row in 0..ROWS {
                    sums[y][row] = simd.mul_add_f32s(column[row], vector, sums[y][row]);
                }
            }
        }
        let mut dots = [[0.0; ROWS]; YS];
        for y in 0..YS {
            for row in 0..ROWS {
                let rest = self.rest.iter().zip(ys[y].1);
                dots[y][row] =
                    rest.fold(simd.reduce_sum_f32s(sums[y][row]), |sum, (column, element)| sum + column[row] * element);
            }
        }
        dots
    }
}

impl<'y, const ROWS: usize, T: Scalar + 'y, Y: Iterator<Item = &'y [T]>> WithSimd for Dots<'_, ROWS, Y> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { out, x, len, mut ys } = self;
        let rows = x.len() / len;
        let parts: Vec<_> = x.chunks(ROWS * len).map(|x| Part::<S, ROWS>::new(simd, x, len)).collect();
        let mut wide = [(); 2].map(|()| vec![0.0; len]);
        let [first_wide, second_wide] = &mut wide;
        let mut outs = out.chunks_exact_mut(rows);
        // Two of the many at a time, where there are registers for their sums: then a vector of `x`
        // is read once for both. With few rows of f32 the memory is what limits.
        let computes = parts.len() > 1 || size_of::<T>() < size_of::<f32>();
        let pairs = ROWS > 4 && computes && S::REGISTER_COUNT >= 32;
        while let Some(first) = ys.next() {
            let first = S::as_simd_f32s(T::as_f32s(&first[..len], first_wide));
            let second = if pairs { ys.next() } else { None };
            match second {
                Some(second) => {
                    let second = S::as_simd_f32s(T::as_f32s(&second[..len], second_wide));
                    let (Some(one), Some(other)) = (outs.next(), outs.next()) else { return };
                    let outs = one.chunks_mut(ROWS).zip(other.chunks_mut(ROWS));
                    for (part, (one, other)) in parts.iter().zip(outs) {
                        let dots = part.dots(simd, [first, second]);
                        one.copy_from_slice(&dots[0][..one.len()]);
                        other.copy_from_slice(&dots[1][..other.len()]);
                    }
                }
                None => {
                    let Some(one) = outs.next() else { return };
                    for (part, one) in parts.iter().zip(one.chunks_mut(ROWS)) {
                        let dots = part.dots(simd, [first]);
                        one.copy_from_slice(&dots[0][..one.len()]);
                    }
                }
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
            for rows in (1..=MOST_ROWS).chain([9, 16, 17, 31]) {
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
