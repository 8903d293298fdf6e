//! Check of a checkpoint against its `config.json`: every tensor that the configuration implies has
//! to exist with its shape, and no other.

use crate::{CheckpointError, TensorSource};
use retie_config::{ModelConfig, TensorOwner, TensorRole};
use std::{collections::BTreeSet, path::PathBuf};

/// Suffix of the tables of RoPE frequencies that old checkpoints hold for each layer.
const ROPE_FREQUENCIES: &str = ".rotary_emb.inv_freq";

/// True if a tensor that `config` does not imply is accepted, because it holds nothing that the
/// model needs.
fn is_redundant(name: &str, config: &ModelConfig) -> bool {
    let is_head = || name == TensorOwner::Model.weight(TensorRole::Head);
    name.ends_with(ROPE_FREQUENCIES) || (config.anatomy.tie_word_embeddings && is_head())
}

/// A tensor that does not match the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorProblem {
    /// The configuration implies it, but the checkpoint lacks it.
    #[error("tensor `{tensor}` of shape {expected:?} is missing from `{}`", path.display())]
    Missing {
        /// File or folder that was searched.
        path: PathBuf,
        /// The name.
        tensor: String,
        /// Shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// It has another shape.
    #[error("tensor `{tensor}` in `{}` has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// File that holds it.
        path: PathBuf,
        /// The name.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// The configuration does not imply it.
    #[error("tensor `{tensor}` in `{}` is not part of the model that its configuration describes", path.display())]
    Unexpected {
        /// File that holds it.
        path: PathBuf,
        /// The name.
        tensor: String,
    },
}

/// Checks that `tensors` holds what `config` implies and nothing else.
///
/// # Errors
/// One [`CheckpointError::BadTensors`] that lists every missing, misshapen and unexpected tensor.
pub fn check_tensors(config: &ModelConfig, tensors: &dyn TensorSource) -> Result<(), CheckpointError> {
    let specs = config.tensors();
    let mut problems = Vec::new();
    let mut known = BTreeSet::new();
    for spec in specs {
        let (tensor, expected) = (spec.name(), spec.shape);
        let path = || tensors.path_of(&tensor).to_owned();
        known.insert(tensor.clone());
        match tensors.info(&tensor) {
            None => problems.push(TensorProblem::Missing { path: path(), tensor: tensor.clone(), expected }),
            Some(info) if info.shape != expected => {
                let found = info.shape.clone();
                problems.push(TensorProblem::Shape { path: path(), tensor: tensor.clone(), found, expected });
            }
            Some(_) => {}
        }
    }
    for name in tensors.names() {
        if !known.contains(name) && !is_redundant(name, config) {
            let path = tensors.path_of(name).to_owned();
            problems.push(TensorProblem::Unexpected { path, tensor: name.to_owned() });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(CheckpointError::BadTensors { problems }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, TensorInfo, tiny::tiny_llama};
    use std::{borrow::Cow, collections::BTreeMap, path::Path};

    struct Infos(BTreeMap<String, TensorInfo>);

    impl TensorSource for Infos {
        fn names(&self) -> Vec<&str> {
            self.0.keys().map(String::as_str).collect()
        }
        fn info(&self, name: &str) -> Option<&TensorInfo> {
            self.0.get(name)
        }
        fn path_of(&self, _: &str) -> &Path {
            Path::new("m")
        }
        fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
            Err(CheckpointError::NoTensor { path: "m".into(), tensor: name.to_owned() })
        }
    }

    #[test]
    fn every_tensor_that_does_not_fit_is_reported_at_once() {
        let config = tiny_llama(4);
        let info = |shape: &[usize]| TensorInfo { dtype: Dtype::F32, shape: shape.to_vec() };
        let specs = config.tensors();
        let mut infos: BTreeMap<_, _> = specs.into_iter().map(|spec| (spec.name(), info(&spec.shape))).collect();
        infos.insert("lm_head.weight".into(), info(&[11, 8]));
        infos.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), info(&[2]));
        check_tensors(&config, &Infos(infos.clone())).unwrap();
        infos.remove("model.norm.weight");
        infos.insert("model.layers.1.mlp.up_proj.weight".into(), info(&[8, 16]));
        infos.insert("model.layers.4.mlp.up_proj.weight".into(), info(&[16, 8]));
        let error = check_tensors(&config, &Infos(infos)).unwrap_err().to_string();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(
            lines,
            [
                "3 of the checkpoint's tensors do not fit its configuration:",
                "  tensor `model.layers.1.mlp.up_proj.weight` in `m` has shape [8, 16], expected [16, 8]",
                "  tensor `model.norm.weight` of shape [8] is missing from `m`",
                "  tensor `model.layers.4.mlp.up_proj.weight` in `m` is not part of the model that its configuration describes",
            ]
        );
    }
}
