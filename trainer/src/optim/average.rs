//! Averages of the weights over updates ([`Average`]): one more buffer of each parameter, in f32,
//! which is divided among ranks and kept in checkpoints as the buffers of its rule are.
//!
//! A parameter without the buffer has not been moved yet: its average is itself.

use burn::tensor::Tensor;
use rayon::prelude::*;
use retie_config::Average;
use retie_model::kernels::{ElementwiseUpdate, kernels_of};

/// Name of the buffer in checkpoints.
pub const AVERAGE: &str = "average";

/// The average of a run.
#[derive(Clone, Copy, Debug)]
pub struct RunAverage {
    pub average: Average,
    /// Updates of the whole run.
    pub num_updates: u64,
}

impl RunAverage {
    /// How far update `update` moves the average.
    pub fn motion_at(self, update: u64) -> Motion {
        Motion { weight: self.average.weight_at(update, self.num_updates) as f32 }
    }

    /// Whether the average after update `update` is one of several updates.
    pub fn has_begun(self, update: u64) -> bool {
        self.average.has_begun(update, self.num_updates)
    }
}

/// The motion of averages in one update: `average ← average + w (value − average)`.
#[derive(Clone, Copy, Debug)]
pub struct Motion {
    weight: f32,
}

impl Motion {
    /// Moves an average towards `value`; both without autodiff.
    pub fn apply<const D: usize>(self, average: Tensor<1>, value: &Tensor<D>) -> Tensor<1> {
        let value = value.clone().reshape(average.dims());
        kernels_of(&average.device()).update(vec![average], value, &self).remove(0)
    }

    /// As [`Motion::apply`] in place.
    pub fn apply_in_place(self, average: &mut [f32], value: &[f32]) {
        const CHUNK: usize = 1 << 16;
        if self.weight == 1.0 {
            // The sum could be a rounding beside it.
            return average.copy_from_slice(value);
        }
        average.par_chunks_mut(CHUNK).zip(value.par_chunks(CHUNK)).for_each(|(average, value)| {
            average.iter_mut().zip(value).for_each(|(average, value)| *average += self.weight * (value - *average));
        });
    }
}

impl ElementwiseUpdate for Motion {
    fn slices(&self, updated: &mut [&mut [f32]], read: &[f32]) {
        updated.iter_mut().for_each(|average| self.apply_in_place(average, read));
    }

    fn tensors(&self, updated: Vec<Tensor<1>>, read: Tensor<1>) -> Vec<Tensor<1>> {
        let moved = |average: Tensor<1>| match self.weight {
            1.0 => read.clone(),
            weight => average.clone() + (read.clone() - average) * weight,
        };
        updated.into_iter().map(moved).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};
    use retie_model::kernels::f32_slice;

    #[test]
    fn an_average_moves_alike_in_slices_and_in_tensors_and_becomes_the_first_weights_exactly() {
        let device = Device::flex();
        let vector = |values: &[f32]| Tensor::<1>::from_data(TensorData::new(values.to_vec(), [3]), &device);
        let (average, value) = ([1.0f32, -2.0, 1e-8], [3.0f32, 0.1, 1e8]);
        for (weight, expected) in [(0.25, [1.5, -1.475, 2.5e7]), (1.0, value)] {
            let motion = Motion { weight };
            let mut moved = average;
            motion.apply_in_place(&mut moved, &value);
            assert_eq!(moved, expected);
            let matrix = vector(&value).reshape([1, 3]);
            let on_cpu = motion.apply(vector(&average), &matrix).into_data();
            let on_device = motion.tensors(vec![vector(&average)], vector(&value)).remove(0).into_data();
            assert_eq!((f32_slice(&on_cpu), f32_slice(&on_device)), (&moved[..], &moved[..]));
        }
    }
}
