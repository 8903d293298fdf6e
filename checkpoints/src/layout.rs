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
    /// Its elements are of a type that is not read.
    #[error("tensor `{tensor}` in `{}` has elements of type {found}, expected F32, BF16 or F16", path.display())]
    Dtype {
        /// File that holds it.
        path: PathBuf,
        /// The name.
        tensor: String,
        /// Its type, as the file spells it.
        found: String,
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
            None => problems.push(match tensors.unread(&tensor) {
                Some(found) => TensorProblem::Dtype { path: path(), tensor: tensor.clone(), found: found.to_owned() },
                None => TensorProblem::Missing { path: path(), tensor: tensor.clone(), expected },
            }),
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
    fn the_cause_is_told_where_names_or_types_give_it_away() {
        let config = tiny_llama(2);
        let told = |rename: &dyn Fn(&str) -> String| {
            let info = |shape: Vec<usize>| TensorInfo { dtype: Dtype::F32, shape };
            let infos = config.tensors().into_iter().map(|spec| (rename(&spec.name()), info(spec.shape.clone())));
            let error = check_tensors(&config, &Infos(infos.collect())).unwrap_err().to_string();
            error.lines().last().unwrap().to_owned()
        };
        let prefixed = |prefix: &'static str| told(&move |name: &str| format!("{prefix}{name}"));
        assert!(prefixed("module.").starts_with("hint: the names begin with `module.model.`, expected `model.`"));
        assert!(prefixed("_orig_mod.").contains("`torch.compile` put it there"));
        assert!(prefixed("language_model.").contains("`language_model.model.`"));
        assert!(prefixed("base_model.model.").contains("`merge_and_unload()`"));
        let inside = told(&|name| name.replace("model.", "model.language_model."));
        assert!(inside.contains("begin with `model.language_model.`") && inside.contains("text part"), "{inside}");
        let without = told(&|name| name.replace("model.", ""));
        assert!(without.starts_with("hint: the names lack the prefix `model.`"), "{without}");
        let adapter = told(&|name| name.replace("q_proj.weight", "q_proj.base_layer.weight"));
        assert!(adapter.contains("an adapter is not merged"), "{adapter}");
        for (from, to, cause) in [
            ("q_proj.weight", "q_proj.qweight", "quantised by GPTQ or AWQ"),
            ("q_proj.weight", "q_proj.weight.absmax", "quantised by bitsandbytes"),
            ("q_proj.weight", "q_proj.scales", "quantised, as MLX"),
            ("q_proj.weight", "q_proj.weight_packed", "compressed-tensors"),
            ("q_proj.weight", "qkv_proj.weight", "linears are fused"),
        ] {
            let found = told(&|name| name.replace(from, to));
            assert!(found.starts_with("hint: ") && found.contains(cause), "{to}: {found}");
        }
        let beside = |more: &str, change: &dyn Fn(&mut TensorInfo, &str)| {
            let entry = |name: String, shape: Vec<usize>| {
                let mut info = TensorInfo { dtype: Dtype::F32, shape };
                change(&mut info, &name);
                (name, info)
            };
            let all = config.tensors().into_iter().map(|spec| entry(spec.name(), spec.shape.clone()));
            let more = (!more.is_empty()).then(|| entry(more.to_owned(), vec![8, 8]));
            check_tensors(&config, &Infos(all.chain(more).collect())).unwrap_err().to_string()
        };
        let same = |_: &mut TensorInfo, _: &str| ();
        assert!(beside("v_head.summary.weight", &same).contains("hint: they are a head for rewards or classes"));
        assert!(
            beside("model.layers.2.mlp.up_proj.weight", &same).contains("may have fewer layers (`num_hidden_layers`)")
        );
        let longer = beside("", &|info, name| {
            if name == "model.embed_tokens.weight" {
                info.shape[0] = 64;
            }
        });
        assert!(longer.contains("hint: the table has 64 tokens") && longer.contains("`vocab_size` to 64"), "{longer}");
        let mut untied = config.clone();
        untied.untie();
        let infos = config
            .tensors()
            .into_iter()
            .map(|spec| (spec.name(), TensorInfo { dtype: Dtype::F32, shape: spec.shape.clone() }));
        let headless = check_tensors(&untied, &Infos(infos.collect())).unwrap_err().to_string();
        assert!(headless.contains("\nhint: if the head is the matrix of the embeddings, set `tie_word_embeddings`"));
        let other = told(&|name| name.replace("norm.weight", "scale"));
        assert!(other.starts_with("  tensor `"), "{other}");
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
