//! Gradients and optimizer steps on the CPU: in place and on all threads.

use crate::kernels::{ElementwiseUpdate, f32_slice, f32_slice_mut};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

/// Smallest number of elements per task.
const MIN_ELEMENTS: usize = 1 << 15;

/// In-place sum `sum + grad`, `[n]` each.
pub fn accumulate(sum: Tensor<1>, grad: Tensor<1>) -> Tensor<1> {
    let device = sum.device();
    let (mut sum, grad) = (sum.into_data(), grad.into_data());
    let pairs = f32_slice_mut(&mut sum).par_iter_mut().zip_eq(f32_slice(&grad));
    pairs.with_min_len(MIN_ELEMENTS).for_each(|(x, y)| *x += y);
    Tensor::from_data(sum, &device)
}

/// `table[ids[m]] += rows[m]`, in the order of the ids.
pub fn add_rows(table: Tensor<2>, ids: &[u32], rows: Tensor<2>) -> Tensor<2> {
    let device = table.device();
    let [_, width] = table.dims();
    let (mut table, rows) = (table.into_data(), rows.into_data());
    let sums = f32_slice_mut(&mut table);
    for (id, row) in ids.iter().zip(f32_slice(&rows).chunks_exact(width)) {
        let sum = &mut sums[*id as usize * width..][..width];
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    Tensor::from_data(table, &device)
}

/// `Σ x²` of a vector, without copying it.
pub fn squared_norm(vector: &mut Tensor<1>) -> f64 {
    let device = vector.device();
    let data = std::mem::replace(vector, Tensor::empty([0], &device)).into_data();
    let sum = sum_of_squares(f32_slice(&data));
    *vector = Tensor::from_data(data, &device);
    sum
}

/// `Σ x²` in f64, in blocks whose order does not depend on the number of threads.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    const BLOCK: usize = 1 << 16;
    const LANES: usize = 8;
    let square = |x: f32| f64::from(x) * f64::from(x);
    let blocks: Vec<f64> = values
        .par_chunks(BLOCK)
        .map(|block| {
            let mut lanes = [0.0f64; LANES];
            let (chunks, rest) = block.as_chunks::<LANES>();
            for chunk in chunks {
                lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += square(*x));
            }
            lanes.iter().sum::<f64>() + rest.iter().map(|x| square(*x)).sum::<f64>()
        })
        .collect();
    blocks.iter().sum()
}

/// One pass of `step` over the vectors, in place.
pub fn update(updated: Vec<Tensor<1>>, read: Tensor<1>, step: &dyn ElementwiseUpdate) -> Vec<Tensor<1>> {
    let device = read.device();
    let read = read.into_data();
    let mut updated: Vec<TensorData> = updated.into_iter().map(Tensor::into_data).collect();
    let mut slices: Vec<&mut [f32]> = updated.iter_mut().map(f32_slice_mut).collect();
    step.slices(&mut slices, f32_slice(&read));
    updated.into_iter().map(|vector| Tensor::from_data(vector, &device)).collect()
}
