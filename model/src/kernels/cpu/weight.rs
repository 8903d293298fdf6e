//! Weights of matrix products: f32, or bf16 that is widened on the fly for f32 sums.
//!
//! For few rows (a decoding step) each weight is read once, straight from memory. For many rows a
//! panel of the weight is widened, then multiplied. Widening is exact, so bf16 weights give the
//! same results as equal f32 weights, except for the order of the sums.

use super::{
    few::few_dots,
    matmul::{Matrix, add_product, product, write_columns, write_product},
    simd::{Scalar, vectorised},
    tensor::{bf16_values, values},
};
use burn::{
    backend::{TensorMetadata, flex::FlexTensor},
    tensor::DType,
};
use half::bf16;
use rayon::prelude::*;
use std::{borrow::Cow, ops::Range};

/// Rows up to which every weight is read once for all of them, straight from memory, in f32: more
/// are faster as a product of blocks, which copies the weight first (docs/log.md).
const FEW_ROWS: usize = 16;
/// The same for a bf16 weight, which a product of blocks widens first.
const FEW_ROWS_OF_BF16: usize = 32;
/// Maximum number of weight elements per task.
const TASK_ELEMENTS: usize = 1 << 15;
/// Elements of a bf16 weight that are widened at once: 1 MiB of f32.
const PANEL_ELEMENTS: usize = 1 << 18;

/// Weight `[out, in]`.
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
    /// Weight in a dense tensor of two dimensions.
    pub fn from_tensor(tensor: &'a FlexTensor) -> Self {
        let [out, input] = tensor.shape().dims();
        let values = match tensor.dtype() {
            DType::BF16 => Values::Bf16(bf16_values(tensor)),
            _ => Values::F32(values(tensor)),
        };
        Self { values, out, input }
    }

    /// Rows of the weight in f32.
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

    /// Linear `x·Wᵀ`: `x [M, in]` → `[M, out]`.
    pub fn apply(self, x: Matrix<'_>) -> Vec<f32> {
        if let (Values::F32(values), true) = (self.values, x.rows() > FEW_ROWS) {
            return product(x, Matrix::new(values, [self.out, self.input]).t());
        }
        let mut y = vec![0.0; x.rows() * self.out];
        self.write_apply(&mut y, x);
        y
    }

    /// Writes a linear: `y ← x·Wᵀ`.
    pub fn write_apply(self, y: &mut [f32], x: Matrix<'_>) {
        assert_eq!((x.cols(), y.len()), (self.input, x.rows() * self.out), "sizes of a linear");
        match (self.values, x.dense()) {
            (Values::F32(weight), Some(x)) if x.len() <= FEW_ROWS * self.input => self.few_rows(y, x, weight),
            (Values::Bf16(weight), Some(x)) if x.len() <= FEW_ROWS_OF_BF16 * self.input => self.few_rows(y, x, weight),
            (Values::F32(weight), _) => write_product(y, x, Matrix::new(weight, [self.out, self.input]).t()),
            (Values::Bf16(weight), _) => self.in_panels(y, x, weight),
        }
    }

    /// Adds a linear: `y ← y + x·Wᵀ`.
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

    /// Few rows: one pass over each row of the weight computes its output for all rows of `x`.
    fn few_rows<T: Scalar>(self, y: &mut [f32], x: &[f32], weight: &[T]) {
        let (out, input) = (self.out, self.input);
        let rows = y.len() / out.max(1);
        if rows == 0 || input == 0 {
            return y.fill(0.0);
        }
        // Equal numbers of tasks per thread: the products of a LoRA are too small for more than one
        // task each.
        let threads = rayon::current_num_threads();
        let tasks = weight.len().div_ceil(TASK_ELEMENTS).next_multiple_of(threads);
        let outputs_per_task = out.div_ceil(tasks);
        let task = |y: &mut [f32], weight: &[T]| few_dots(y, x, input, weight.chunks_exact(input));
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

/// Widens bf16 to f32, on all threads.
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
    use crate::kernels::cpu::{tensor::from_values, tests::counted};
    use burn::tensor::TensorData;

    #[test]
    fn few_and_many_rows_give_the_exact_product_for_either_type() {
        // The last sizes need several tasks for few rows and several panels for many.
        let sizes = [
            [1, 5, 7],
            [3, 33, 64],
            [6, 33, 64],
            [9, 70, 5],
            [1, 600, 700],
            [4, 600, 700],
            [8, 600, 700],
            [16, 600, 700],
            [29, 600, 700],
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
                let mut y = Weight::from_tensor(weight).apply(Matrix::new(&x, [rows, input]));
                assert_eq!(y, expected, "{rows} × {input} × {out}");
                Weight::from_tensor(weight).add_apply(&mut y, Matrix::new(&x, [rows, input]));
                assert_eq!(y, expected.iter().map(|y| 2.0 * y).collect::<Vec<_>>());
            }
        }
    }
}
