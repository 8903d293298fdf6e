//! Weights as the products read them: f32, or bf16 that is widened on the way to f32 sums.
//!
//! Few rows (a decoding step) read each weight once, straight from memory; many rows widen a panel at a time and multiply it.
//! Widening is exact, so bf16 weights give what the same weights in f32 give, but for the order of the sums.

use super::{
    matmul::{Matrix, add_product, product, write_columns, write_product},
    simd::{Scalar, dot, dots, vectorised},
    tensor::{bf16_values, values},
};
use burn::{
    backend::{TensorMetadata, flex::FlexTensor},
    tensor::DType,
};
use half::bf16;
use rayon::prelude::*;
use std::{borrow::Cow, ops::Range};

/// Rows up to which a weight is read once for all of them, without packing it for a product.
const FEW_ROWS: usize = 8;
/// Elements of a weight that are one task of a thread.
const TASK_ELEMENTS: usize = 1 << 16;
/// Elements of a bf16 weight that are widened at once: 1 MiB of f32.
const PANEL_ELEMENTS: usize = 1 << 18;

/// A weight `[out, in]`.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    values: Values<'a>,
    out: usize,
    input: usize,
}

#[derive(Clone, Copy, Debug)]
enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Weight<'a> {
    /// The elements of a dense tensor of two dimensions.
    pub fn of(tensor: &'a FlexTensor) -> Self {
        let [out, input] = tensor.shape().dims();
        let values = match tensor.dtype() {
            DType::BF16 => Values::Bf16(bf16_values(tensor)),
            _ => Values::F32(values(tensor)),
        };
        Self { values, out, input }
    }

    /// Some rows in f32.
    pub fn rows(self, rows: Range<usize>) -> Cow<'a, [f32]> {
        let range = rows.start * self.input..rows.end * self.input;
        match self.values {
            Values::F32(values) => Cow::Borrowed(&values[range]),
            Values::Bf16(values) => {
                let mut wide = vec![0.0; range.len()];
                widen(&mut wide, &values[range]);
                Cow::Owned(wide)
            }
        }
    }

    /// `x·Wᵀ`: `x [M, in]` → `[M, out]`.
    pub fn apply(self, x: Matrix<'_>) -> Vec<f32> {
        if let (Values::F32(values), true) = (self.values, x.rows() > FEW_ROWS) {
            return product(x, Matrix::new(values, [self.out, self.input]).t());
        }
        let mut y = vec![0.0; x.rows() * self.out];
        self.write_apply(&mut y, x);
        y
    }

    /// `y ← x·Wᵀ`.
    pub fn write_apply(self, y: &mut [f32], x: Matrix<'_>) {
        assert_eq!((x.cols(), y.len()), (self.input, x.rows() * self.out), "sizes of a linear");
        match (self.values, x.dense()) {
            (Values::F32(weight), Some(x)) if x.len() <= FEW_ROWS * self.input => self.few_rows(y, x, weight),
            (Values::Bf16(weight), Some(x)) if x.len() <= FEW_ROWS * self.input => self.few_rows(y, x, weight),
            (Values::F32(weight), _) => write_product(y, x, Matrix::new(weight, [self.out, self.input]).t()),
            (Values::Bf16(weight), _) => self.in_panels(y, x, weight),
        }
    }

    /// `y ← y + x·Wᵀ`.
    pub fn add_apply(self, y: &mut [f32], x: Matrix<'_>) {
        match self.values {
            Values::F32(weight) if x.rows() > FEW_ROWS => {
                add_product(y, x, Matrix::new(weight, [self.out, self.input]).t());
            }
            _ => {
                for (sum, value) in y.iter_mut().zip(self.apply(x)) {
                    *sum += value;
                }
            }
        }
    }

    /// Every output is one pass over a row of the weight for all rows of `x`.
    fn few_rows<T: Scalar>(self, y: &mut [f32], x: &[f32], weight: &[T]) {
        let (out, input) = (self.out, self.input);
        let rows = y.len() / out.max(1);
        if rows == 0 || input == 0 {
            return y.fill(0.0);
        }
        let outputs_per_task = (TASK_ELEMENTS / input).max(1);
        let task = |y: &mut [f32], weight: &[T]| {
            vectorised(
                #[inline(always)]
                || {
                    for (y, weight) in y.chunks_exact_mut(rows).zip(weight.chunks_exact(input)) {
                        let (fours, rest) = y.as_chunks_mut::<4>();
                        let mut rows = x.chunks_exact(input);
                        for y in fours {
                            if let (Some(a), Some(b), Some(c), Some(d)) =
                                (rows.next(), rows.next(), rows.next(), rows.next())
                            {
                                *y = dots([a, b, c, d], weight);
                            }
                        }
                        for (y, x) in rest.iter_mut().zip(rows) {
                            *y = dot(x, weight);
                        }
                    }
                },
            );
        };
        let compute = |columns: &mut [f32]| {
            let weights = weight.par_chunks(outputs_per_task * input);
            columns.par_chunks_mut(outputs_per_task * rows).zip(weights).for_each(|(y, weight)| task(y, weight));
        };
        if rows == 1 {
            return compute(y);
        }
        let mut columns = vec![0.0; y.len()]; // [out, M]
        compute(&mut columns);
        for (row, y) in y.chunks_exact_mut(out).enumerate() {
            for (y, column) in y.iter_mut().zip(columns.chunks_exact(rows)) {
                *y = column[row];
            }
        }
    }

    fn in_panels(self, y: &mut [f32], x: Matrix<'_>, weight: &[bf16]) {
        let (out, input) = (self.out, self.input);
        if input == 0 {
            return y.fill(0.0);
        }
        let outputs = (PANEL_ELEMENTS / input).max(1);
        let mut panel = vec![0.0; outputs.min(out) * input];
        for (index, weight) in weight.chunks(outputs * input).enumerate() {
            let panel = &mut panel[..weight.len()];
            widen(panel, weight);
            write_columns(y, out, index * outputs, x, Matrix::new(panel, [weight.len() / input, input]).t());
        }
    }
}

/// bf16 → f32 on all threads.
fn widen(out: &mut [f32], values: &[bf16]) {
    out.par_chunks_mut(TASK_ELEMENTS).zip(values.par_chunks(TASK_ELEMENTS)).for_each(|(out, values)| {
        vectorised(
            #[inline(always)]
            || {
                for (out, value) in out.iter_mut().zip(values) {
                    *out = value.widen();
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::host::tensor::from_values;
    use burn::tensor::TensorData;

    /// Small integers: exact in bf16, and their sums in f32.
    fn counted(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7) % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn few_and_many_rows_give_the_exact_product_for_either_type() {
        // The last size needs several tasks of few rows and several panels of many.
        let sizes = [
            [1, 5, 7],
            [3, 33, 64],
            [6, 33, 64],
            [9, 70, 5],
            [1, 600, 700],
            [4, 600, 700],
            [8, 600, 700],
            [40, 600, 700],
        ];
        for [rows, input, out] in sizes {
            let (x, w) = (counted(rows * input), counted(out * input));
            let narrow: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
            let weights =
                [from_values(w.clone(), [out, input]), FlexTensor::from_data(TensorData::new(narrow, [out, input]))];
            let element = |m: usize, o: usize| (0..input).map(|i| x[m * input + i] * w[o * input + i]).sum();
            let expected: Vec<f32> = (0..rows * out).map(|at| element(at / out, at % out)).collect();
            for weight in &weights {
                let mut y = Weight::of(weight).apply(Matrix::new(&x, [rows, input]));
                assert_eq!(y, expected, "{rows} × {input} × {out}");
                Weight::of(weight).add_apply(&mut y, Matrix::new(&x, [rows, input]));
                assert_eq!(y, expected.iter().map(|y| 2.0 * y).collect::<Vec<_>>());
            }
        }
    }
}
