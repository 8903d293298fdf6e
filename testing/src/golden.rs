//! Golden files: weights under their checkpoint names, expected values under `golden.`, the text of
//! `config.json` in the metadata. `model/tests/golden` has them beside the scripts that made them.

use burn::tensor::{Device, Tensor, TensorData};
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource};
use retie_config::ModelConfig;
use safetensors::SafeTensors;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// An open golden file. As a [`TensorSource`] it is the checkpoint of its weights.
#[derive(Debug)]
pub struct Golden {
    path: PathBuf,
    bytes: Vec<u8>,
    weights: BTreeMap<String, TensorInfo>,
}

impl Golden {
    /// Opens a file.
    pub fn open(path: &Path) -> Self {
        let bytes = fs_err::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let weights = tensors.tensors().into_iter().filter(|(name, _)| !name.starts_with("golden."));
        let weights = weights
            .map(|(name, view)| (name, TensorInfo { dtype: Dtype::F32, shape: view.shape().to_vec() }))
            .collect();
        Self { path: path.to_owned(), weights, bytes }
    }

    /// Opens `model/tests/golden/NAME.safetensors`.
    pub fn named(name: &str) -> Self {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/golden"));
        Self::open(&folder.join(format!("{name}.safetensors")))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration in the metadata.
    pub fn config(&self) -> ModelConfig {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).unwrap();
        let text = &header.metadata().as_ref().unwrap()["config"];
        ModelConfig::from_json(serde_json::from_str(text).unwrap(), &self.path).unwrap()
    }

    /// The elements of an f32 tensor.
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

    /// The token ids of `golden.ids`, row by row.
    pub fn rows(&self) -> Vec<Vec<u32>> {
        let (flat, shape) = self.ints("golden.ids");
        flat.chunks(shape[1]).map(|row| row.iter().map(|id| *id as u32).collect()).collect()
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    /// An f32 tensor.
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(self.floats(name), self.shape(name)), device)
    }

    /// The weights, sorted.
    pub fn weight_names(&self) -> Vec<&str> {
        self.weights.keys().map(String::as_str).collect()
    }

    /// What follows `prefix` in the names that begin with it, sorted.
    pub fn names_after(&self, prefix: &str) -> Vec<String> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let rest = tensors.names().into_iter().filter_map(|name| name.strip_prefix(prefix));
        let mut names: Vec<String> = rest.map(str::to_owned).collect();
        names.sort_unstable();
        names
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
