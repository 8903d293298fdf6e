//! Magnitudes of a DoRA (<https://arxiv.org/abs/2402.09353>): at the start the length of every row
//! of `W' + B A`, so that `m / ‖W' + B A‖` is 1 and the model computes what it would with plain
//! LoRA.
//!
//! Shapes: `W' [out, in]`, `A [r, in]`, `B [out, r]`, `m [out]`, row-major.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

/// `‖W' + B A‖` by row, of values as they are stored. The product is in f32, what is summed in f64.
pub(crate) fn magnitudes(shared: &[f32], factors: [&[f32]; 2], shape: [usize; 2]) -> Vec<f32> {
    let product = low_rank_product(factors, shape);
    let length = |(shared, product): (&[f32], &[f32])| {
        let squares = shared.iter().zip(product).map(|(w, p)| (f64::from(*w) + f64::from(*p)).powi(2));
        squares.sum::<f64>().sqrt() as f32
    };
    shared.chunks_exact(shape[1]).zip(product.chunks_exact(shape[1])).map(length).collect()
}

/// `B A` of factors, `A` first, `[out, in]`.
pub(crate) fn low_rank_product([a, b]: [&[f32]; 2], [out, inp]: [usize; 2]) -> Vec<f32> {
    let rank = a.len() / inp;
    let mut product = vec![0.0f32; out * inp];
    matmul(
        MatMut::from_row_major_slice_mut(&mut product, out, inp),
        Accum::Replace,
        MatRef::from_row_major_slice(b, out, rank),
        MatRef::from_row_major_slice(a, rank, inp),
        1.0,
        Par::Seq,
    );
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of `W' + B A`: (3, 4, 0), (0, 0, 0), (1, 2, 2).
    #[test]
    fn magnitudes_are_the_lengths_of_rows() {
        let shared = [3.0, 0.0, 4.0, -1.0, 0.0, -2.0, 1.0, 2.0, 2.0];
        let (a, b) = ([0.0, 2.0, -2.0, 1.0, 0.0, 2.0], [2.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(magnitudes(&shared, [&a, &b], [3, 3]), [5.0, 0.0, 3.0]);
    }
}
