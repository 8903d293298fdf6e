//! View of a checkpoint whose names `transformers` reads as others: those of a decoder that was
//! saved without its head (`layers.0.…` for `model.layers.0.…`), and those of a model whose head
//! and embeddings are one matrix that is stored as the head.

use crate::{CheckpointError, TensorInfo, TensorSource};
use retie_config::{ModelConfig, TensorOwner, TensorRole, TensorSpec};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// Prefix of the names of a decoder in a model with a head.
const DECODER: &str = "model.";

/// A source under other names.
pub(crate) struct Renamed {
    source: Box<dyn TensorSource>,
    /// Names of the file by ours.
    names: BTreeMap<String, String>,
}

impl Renamed {
    /// `tensors` under the names that `config` implies, where `transformers` finds them too.
    pub fn view(tensors: Box<dyn TensorSource>, config: &ModelConfig) -> Box<dyn TensorSource> {
        let expected: BTreeSet<String> = config.tensors().iter().map(TensorSpec::name).collect();
        let [head, embedding] = [TensorRole::Head, TensorRole::Embedding].map(|role| TensorOwner::Model.weight(role));
        let is_decoder = !tensors.names().iter().any(|name| name.starts_with(DECODER));
        let is_head_only = config.anatomy.tie_word_embeddings && tensors.info(&embedding).is_none();
        let ours = |name: &str| {
            let in_model = format!("{DECODER}{name}");
            match () {
                () if is_decoder && expected.contains(&in_model) => in_model,
                () if is_head_only && name == head && !is_decoder => embedding.clone(),
                () => name.to_owned(),
            }
        };
        let names: BTreeMap<String, String> =
            tensors.names().into_iter().map(|name| (ours(name), name.to_owned())).collect();
        let is_same = names.iter().all(|(ours, theirs)| ours == theirs) || names.len() != tensors.names().len();
        if is_same { tensors } else { Box::new(Self { source: tensors, names }) }
    }

    fn theirs<'a>(&'a self, name: &'a str) -> &'a str {
        self.names.get(name).map_or(name, String::as_str)
    }
}

impl TensorSource for Renamed {
    fn names(&self) -> Vec<&str> {
        self.names.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.source.info(self.names.get(name)?)
    }

    fn path_of(&self, name: &str) -> &Path {
        self.source.path_of(self.theirs(name))
    }

    fn unread(&self, name: &str) -> Option<&str> {
        self.source.unread(name).or_else(|| self.source.unread(name.strip_prefix(DECODER)?))
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        self.source.bytes(self.theirs(name))
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        self.source.read_f32(self.theirs(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, check_tensors, tiny::tiny_llama};

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
            Ok(Cow::Owned(name.as_bytes().to_vec()))
        }
    }

    /// The tensors of a tied Llama under other names.
    fn source(rename: impl Fn(&str) -> String) -> Box<dyn TensorSource> {
        let info = |shape| TensorInfo { dtype: Dtype::F32, shape };
        let specs = tiny_llama(2).tensors().into_iter();
        Box::new(Infos(specs.map(|spec| (rename(&spec.name()), info(spec.shape.clone()))).collect()))
    }

    #[test]
    fn a_decoder_without_its_head_and_a_head_without_embeddings_are_read_as_transformers_reads_them() {
        let config = tiny_llama(2);
        let decoder = Renamed::view(source(|name| name.replace("model.", "")), &config);
        check_tensors(&config, decoder.as_ref()).unwrap();
        assert_eq!(&*decoder.bytes("model.norm.weight").unwrap(), b"norm.weight");
        assert!(decoder.names().is_sorted());
        let head = Renamed::view(source(|name| name.replace("model.embed_tokens", "lm_head")), &config);
        check_tensors(&config, head.as_ref()).unwrap();
        assert_eq!(&*head.bytes("model.embed_tokens.weight").unwrap(), b"lm_head.weight");
        let plain = Renamed::view(source(str::to_owned), &config);
        assert_eq!(&*plain.bytes("model.norm.weight").unwrap(), b"model.norm.weight");
        let mut untied = config.clone();
        untied.untie();
        let head = Renamed::view(source(|name| name.replace("model.embed_tokens", "lm_head")), &untied);
        assert!(check_tensors(&untied, head.as_ref()).is_err());
    }
}
