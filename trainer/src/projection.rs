//! Linear maps that carry the student's hidden states to where the teacher's are: `W_h` of TinyBERT (<https://arxiv.org/abs/1909.10351>,
//! Eq. 8). They are learned beside the student by an AdamW of their own, clipped by their own norm, and stay behind in the checkpoints.
//!
//! A map begins as the identity: component `i` of the student stands for component `i` of the teacher, and what the larger of the two has
//! more is 0.

use crate::{
    TrainError,
    adamw::{AdamW, Moments, Norms},
    collective::Collective,
    gradients::{Gradients, squares},
};
use burn::tensor::{Device, Tensor, TensorData};
use retie_checkpoint::{CheckpointError, Dtype, SafetensorsFile, SafetensorsWriter, TensorInfo, TensorSource, narrow};
use retie_model::kernels::f32_slice;
use std::{collections::BTreeMap, path::Path};

/// In a checkpoint's folder: `weight.N` `[D_t, D_s]`, and its moments `mean.N`, `square.N`.
const FILE: &str = "projections.safetensors";

/// The maps of a run, in the order of the pairs that are compared.
#[derive(Debug)]
pub struct Projections {
    maps: Vec<Projection>,
    adamw: AdamW,
}

#[derive(Debug)]
struct Projection {
    /// `[D_t, D_s]`.
    weight: Tensor<2>,
    moments: Moments,
}

impl Projections {
    /// `count` maps of `[student, teacher]` components, updated by `adamw`.
    pub fn new(count: usize, [student, teacher]: [usize; 2], adamw: AdamW, device: &Device) -> Self {
        let identity = || {
            let mut values = vec![0.0; teacher * student];
            (0..teacher.min(student)).for_each(|i| values[i * student + i] = 1.0);
            Tensor::from_data(TensorData::new(values, [teacher, student]), device)
        };
        let zeros = || Tensor::zeros([teacher * student], device);
        let map = || Projection { weight: identity(), moments: Moments { mean: zeros(), square: zeros() } };
        Self { maps: std::iter::repeat_with(map).take(count).collect(), adamw }
    }

    /// The map of pair `index`, if pairs have one.
    pub fn weight(&self, index: usize) -> Option<Tensor<2>> {
        Some(self.maps.get(index)?.weight.clone())
    }

    /// Adds to a map.
    #[cfg(test)]
    pub fn shift(&mut self, index: usize, by: Tensor<2>) {
        let weight = self.maps[index].weight.clone() + by;
        self.maps[index].weight = weight;
    }

    /// Takes their gradients out of those of a step, summed over the ranks.
    pub fn take_gradients(&self, grads: &mut Gradients, ranks: &dyn Collective) -> Vec<Vec<f32>> {
        let take = |(index, map): (usize, &Projection)| {
            let grad = grads.take(&name(index)).map(Tensor::into_data);
            let mut values = match grad {
                Some(grad) => f32_slice(&grad).to_vec(),
                None => vec![0.0; map.weight.shape().num_elements()],
            };
            ranks.all_reduce(&mut values);
            values
        };
        self.maps.iter().enumerate().map(take).collect()
    }

    /// One step with the gradients of [`Projections::take_gradients`].
    pub fn step(&mut self, grads: Vec<Vec<f32>>, lr: f64) {
        if self.maps.is_empty() {
            return;
        }
        let norm = grads.iter().map(|grad| squares(grad)).sum::<f64>().sqrt();
        let scale = self.adamw.begin_step(Norms { model: norm, auxiliary_routers: 0.0 }).of_model();
        let factors = self.adamw.factors_of_matrix(lr, scale);
        for (map, grad) in self.maps.iter_mut().zip(grads) {
            let count = grad.len();
            let grad = Tensor::from_data(TensorData::new(grad, [count]), &map.weight.device());
            let (weight, moments) = factors.apply(map.weight.clone(), grad, map.moments.clone());
            *map = Projection { weight, moments };
        }
    }

    /// Writes them into the folder of a checkpoint.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub fn save(&self, dir: &Path) -> Result<(), TrainError> {
        if self.maps.is_empty() {
            return Ok(());
        }
        let parts = |index: usize, map: &Projection| {
            let flat = map.weight.shape().num_elements();
            let Moments { mean, square } = &map.moments;
            [
                (format!("weight.{index}"), map.weight.clone().reshape([flat]), map.weight.dims().to_vec()),
                (format!("mean.{index}"), mean.clone(), vec![flat]),
                (format!("square.{index}"), square.clone(), vec![flat]),
            ]
        };
        let all: Vec<_> = self.maps.iter().enumerate().flat_map(|(index, map)| parts(index, map)).collect();
        let infos: Vec<_> = all
            .iter()
            .map(|(name, _, shape)| (name.clone(), TensorInfo { dtype: Dtype::F32, shape: shape.clone() }))
            .collect();
        let mut writer = SafetensorsWriter::create(&dir.join(FILE), &infos, &BTreeMap::new())?;
        for (name, values, _) in all {
            writer.write(&name, &narrow(f32_slice(&values.into_data()), Dtype::F32))?;
        }
        Ok(writer.finish()?)
    }

    /// Takes those that the checkpoint in `dir` has, of the same sizes; others begin anew.
    ///
    /// # Errors
    /// When its file is damaged.
    pub fn restore(&mut self, dir: &Path) -> Result<(), TrainError> {
        let path = dir.join(FILE);
        if self.maps.is_empty() || !path.exists() {
            return Ok(());
        }
        let file = SafetensorsFile::open(&path)?;
        for (index, map) in self.maps.iter_mut().enumerate() {
            let shape = map.weight.dims();
            if file.info(&format!("weight.{index}")).is_none_or(|info| info.shape != shape) {
                continue;
            }
            let device = map.weight.device();
            let read = |part: &str| -> Result<Tensor<1>, CheckpointError> {
                let values = file.read_f32(&format!("{part}.{index}"))?;
                let count = values.len();
                Ok(Tensor::from_data(TensorData::new(values, [count]), &device))
            };
            let weight = read("weight")?.reshape(shape);
            *map = Projection { weight, moments: Moments { mean: read("mean")?, square: read("square")? } };
        }
        Ok(())
    }
}

/// What the gradient of a map is called among those of a step.
pub fn name(index: usize) -> String {
    format!("projections.{index}")
}
