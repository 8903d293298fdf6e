//! Linear maps that carry the student's hidden states to where the teacher's are: `W_h` of TinyBERT
//! (<https://arxiv.org/abs/1909.10351>, Eq. 8). They are learned beside the student, by the same
//! rule and in the same steps, and stay behind in the checkpoints. They are clipped by their own
//! norm and whole on every rank: so neither the student's clipping nor the division of its state
//! depends on them.
//!
//! A map begins as the identity: component `i` of the student stands for component `i` of the
//! teacher, and what the larger of the two has more is 0.

use super::{
    Optimizer,
    gradients::Gradients,
    parameters::Parameter,
    rule::{ParameterState, apply, zero_state},
    rules::UpdateRules,
};
use crate::TrainError;
use burn::tensor::{Device, Tensor, TensorData};
use retie_checkpoint::{CheckpointError, Dtype, SafetensorsFile, SafetensorsWriter, TensorInfo, TensorSource, narrow};
use retie_collective::Collective;
use retie_model::kernels::{f32_slice, sum_of_squares};
use std::{collections::BTreeMap, path::Path};

/// In a checkpoint's folder: `weight.N` `[D_t, D_s]`, and its state, `BUFFER.N` for each buffer of
/// the rule.
const FILE: &str = "projections.safetensors";

/// The maps of a run, in the order of the pairs that are compared.
#[derive(Debug)]
pub struct Projections {
    maps: Vec<Projection>,
}

#[derive(Debug)]
struct Projection {
    /// `[D_t, D_s]`.
    weight: Tensor<2>,
    parameter: Parameter,
    /// Names of the buffers of its rule.
    buffers: &'static [&'static str],
    state: ParameterState,
}

impl Projections {
    /// `count` maps of `[student, teacher]` components, updated by their rule of `rules`.
    pub fn new(count: usize, [student, teacher]: [usize; 2], rules: &UpdateRules, device: &Device) -> Self {
        let identity = || {
            let mut values = vec![0.0; teacher * student];
            (0..teacher.min(student)).for_each(|i| values[i * student + i] = 1.0);
            Tensor::from_data(TensorData::new(values, [teacher, student]), device)
        };
        let map = |index| {
            let parameter = Parameter { name: projection_gradient(index), group: None, shape: vec![teacher, student] };
            let rule = rules.get(&parameter);
            let state = zero_state(rule, teacher * student, device);
            Projection { weight: identity(), buffers: rule.buffers(), parameter, state }
        };
        Self { maps: (0..count).map(map).collect() }
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
        let take = |map: &Projection| {
            let grad = grads.take(&map.parameter.name).map(Tensor::into_data);
            let mut values = match grad {
                Some(grad) => f32_slice(&grad).to_vec(),
                None => vec![0.0; map.weight.shape().num_elements()],
            };
            ranks.all_reduce(&mut values);
            values
        };
        self.maps.iter().map(take).collect()
    }

    /// Their part of the step that `optimizer` has made, with the gradients of
    /// [`Projections::take_gradients`].
    pub fn step(&mut self, grads: Vec<Vec<f32>>, optimizer: &Optimizer<'_>, lr: f64) {
        let norm = grads.iter().map(|grad| sum_of_squares(grad)).sum::<f64>().sqrt();
        for (map, grad) in self.maps.iter_mut().zip(grads) {
            let count = grad.len();
            let grad = Tensor::from_data(TensorData::new(grad, [count]), &map.weight.device());
            let factors = optimizer.factors_apart(&map.parameter, norm, lr);
            let state = std::mem::take(&mut map.state);
            let rule = optimizer.rules().get(&map.parameter);
            (map.weight, map.state) = apply(rule, map.weight.clone(), grad, state, factors);
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
        let mut all: Vec<(String, Tensor<1>, Vec<usize>)> = Vec::new();
        for (index, map) in self.maps.iter().enumerate() {
            let flat = map.weight.shape().num_elements();
            all.push((format!("weight.{index}"), map.weight.clone().reshape([flat]), map.weight.dims().to_vec()));
            let state = map.buffers.iter().zip(&map.state);
            all.extend(state.map(|(buffer, values)| (format!("{buffer}.{index}"), values.clone(), vec![flat])));
        }
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
            map.weight = read("weight")?.reshape(shape);
            map.state = map.buffers.iter().map(|buffer| read(buffer)).collect::<Result<_, _>>()?;
        }
        Ok(())
    }
}

/// Name of the gradient of a map among those of a step.
pub fn projection_gradient(index: usize) -> String {
    format!("projections.{index}")
}
