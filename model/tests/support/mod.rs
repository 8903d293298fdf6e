//! Golden files: weights under their checkpoint names, expected values under `golden.`.
#![allow(dead_code)] // each test file uses a part

pub mod routed;

use burn::tensor::{Device, Int, Tensor};
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource};
use retie_config::ModelConfig;
use safetensors::SafeTensors;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub struct Golden {
    path: PathBuf,
    bytes: Vec<u8>,
    weights: BTreeMap<String, TensorInfo>,
}

impl Golden {
    pub fn open(path: &Path) -> Self {
        let bytes = fs_err::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let weights = tensors.tensors().into_iter().filter(|(name, _)| !name.starts_with("golden."));
        let weights = weights
            .map(|(name, view)| (name, TensorInfo { dtype: Dtype::F32, shape: view.shape().to_vec() }))
            .collect();
        Self { path: path.to_owned(), weights, bytes }
    }

    pub fn named(name: &str) -> Self {
        Self::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors")))
    }

    pub fn config(&self) -> ModelConfig {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).unwrap();
        let text = &header.metadata().as_ref().unwrap()["config"];
        ModelConfig::from_json(serde_json::from_str(text).unwrap(), &self.path).unwrap()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        retie_checkpoint::widen(tensors.tensor(name).unwrap().data(), Dtype::F32)
    }

    /// Integers and their shape.
    pub fn ints(&self, name: &str) -> (Vec<i64>, Vec<usize>) {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap();
        (view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(), view.shape().to_vec())
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(burn::tensor::TensorData::new(self.floats(name), self.shape(name)), device)
    }

    pub fn weight_names(&self) -> Vec<&str> {
        self.weights.keys().map(String::as_str).collect()
    }
}

impl TensorSource for Golden {
    fn names(&self) -> Vec<&str> {
        self.weight_names()
    }
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.weights.get(name)
    }
    fn path_of(&self, _: &str) -> &Path {
        &self.path
    }
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        Ok(Cow::Borrowed(tensors.tensor(name).unwrap().data()))
    }
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

pub fn ids(rows: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let flat: Vec<i32> = rows.iter().flatten().map(|id| *id as i32).collect();
    Tensor::<1, Int>::from_ints(flat.as_slice(), device).reshape([rows.len(), rows[0].len()])
}

/// Largest and mean absolute difference.
pub fn differences(a: &[f32], b: &[f32]) -> (f32, f64) {
    assert_eq!(a.len(), b.len());
    let all = a.iter().zip(b).map(|(x, y)| (x - y).abs());
    (all.clone().fold(0.0, f32::max), all.map(f64::from).sum::<f64>() / a.len() as f64)
}
