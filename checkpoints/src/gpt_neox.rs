//! View of a GPT-NeoX checkpoint under the names of a Llama, with q, k and v separated, and the
//! inverse view.
//!
//! Most modules are only renamed (`MODEL`, `LAYER`). `self_attn.{q,k,v}_proj` of layer `i`,
//! `[D, D]` and `[D]` each, are rows of `gpt_neox.layers.{i}.attention.query_key_value`, `[3·D, D]`
//! and `[3·D]`.
//!
//! The fused rows are those of one head after the other: its queries, its keys, its values
//! (`modeling_gpt_neox.py` of
//! <https://github.com/huggingface/transformers/tree/main/src/transformers/models/gpt_neox>).

use crate::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow};
use retie_config::{
    LayerIndex, ModelConfig, NormPosition, Projection, TensorOwner, TensorPart, TensorRole, TensorSpec,
};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// Linears of the fused matrix, in the order of each head's rows.
const FUSED: [Projection; 3] = [Projection::Q, Projection::K, Projection::V];
const FUSED_NAME: &str = "attention.query_key_value";

/// Modules outside of layers; the head has two names.
const MODEL: [(TensorRole, &str); 4] = [
    (TensorRole::Embedding, "gpt_neox.embed_in"),
    (TensorRole::FinalNorm, "gpt_neox.final_layer_norm"),
    (TensorRole::Head, "embed_out"),
    (TensorRole::Head, "lm_head"),
];
/// Modules of a layer, with their names under `gpt_neox.layers.{i}`.
const LAYER: [(TensorRole, &str); 5] = [
    (TensorRole::Projection(Projection::O), "attention.dense"),
    (TensorRole::Projection(Projection::Up), "mlp.dense_h_to_4h"),
    (TensorRole::Projection(Projection::Down), "mlp.dense_4h_to_h"),
    (TensorRole::Norm(NormPosition::Input), "input_layernorm"),
    (TensorRole::Norm(NormPosition::PostAttention), "post_attention_layernorm"),
];
/// Buffers that old files hold beside the weights.
const BUFFERS: [&str; 3] = ["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"];

/// A GPT-NeoX checkpoint as a [`TensorSource`] under the names of a Llama.
pub(crate) struct GptNeox<S> {
    source: S,
    num_heads: usize,
    tensors: BTreeMap<String, View>,
}

struct View {
    name: String,
    info: TensorInfo,
    /// Index of the linear in [`FUSED`], i.e. the third of each head's rows; `None` for a tensor
    /// that is not fused.
    part: Option<usize>,
}

impl<S: TensorSource> GptNeox<S> {
    /// View of a checkpoint whose attention has `num_heads` heads.
    pub fn new(source: S, num_heads: usize) -> Self {
        let mut tensors = BTreeMap::new();
        for name in source.names() {
            let Some(info) = source.info(name) else { continue };
            for (part, here) in names(name) {
                let mut info = info.clone();
                if let (Some(_), Some(rows)) = (part, info.shape.first_mut()) {
                    *rows /= FUSED.len();
                }
                tensors.insert(here, View { name: name.to_owned(), info, part });
            }
        }
        Self { source, num_heads, tensors }
    }
}

/// Names under which a tensor of the file appears, one for each part of a fused tensor. An unknown
/// tensor keeps its name, so that it is reported.
fn names(name: &str) -> Vec<(Option<usize>, String)> {
    let unknown = || vec![(None, name.to_owned())];
    let find =
        |table: &[(TensorRole, &str)], module| table.iter().find(|(_, known)| *known == module).map(|(role, _)| *role);
    let in_layer = name.strip_prefix("gpt_neox.layers.").and_then(|rest| rest.split_once('.'));
    if in_layer.is_some_and(|(_, rest)| BUFFERS.contains(&rest)) {
        return Vec::new();
    }
    let Some((module, part)) = in_layer.map_or(name, |(_, rest)| rest).rsplit_once('.') else { return unknown() };
    let part = match part {
        "weight" => TensorPart::Weight,
        "bias" => TensorPart::Bias,
        _ => return unknown(),
    };
    let Some((layer, _)) = in_layer else {
        return find(&MODEL, module)
            .map_or_else(unknown, |role| vec![(None, TensorOwner::Model.tensor_name(role, part))]);
    };
    let Ok(layer) = layer.parse() else { return unknown() };
    let owner = TensorOwner::Layer(LayerIndex(layer));
    if module == FUSED_NAME {
        let name_of = |projection| owner.tensor_name(TensorRole::Projection(projection), part);
        return FUSED.into_iter().enumerate().map(|(index, projection)| (Some(index), name_of(projection))).collect();
    }
    find(&LAYER, module).map_or_else(unknown, |role| vec![(None, owner.tensor_name(role, part))])
}

impl<S: TensorSource> TensorSource for GptNeox<S> {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|view| &view.info)
    }

    fn path_of(&self, name: &str) -> &Path {
        self.source.path_of(self.tensors.get(name).map_or(name, |view| &view.name))
    }

    fn unread(&self, name: &str) -> Option<&str> {
        let (_, part) = name.rsplit_once('.')?;
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let modules: Vec<String> = match layer {
            None => MODEL.iter().map(|(_, module)| (*module).to_owned()).collect(),
            Some((layer, _)) => {
                let modules = LAYER.iter().map(|(_, module)| *module).chain([FUSED_NAME]);
                modules.map(|module| format!("gpt_neox.layers.{layer}.{module}")).collect()
            }
        };
        let theirs = modules.into_iter().map(|module| format!("{module}.{part}"));
        let mut of_name = theirs.filter(|theirs| names(theirs).iter().any(|(_, ours)| ours == name));
        of_name.find_map(|theirs| self.source.unread(&theirs))
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let missing =
            || CheckpointError::NoTensor { path: self.source.path_of(name).to_owned(), tensor: name.to_owned() };
        let view = self.tensors.get(name).ok_or_else(missing)?;
        let bytes = self.source.bytes(&view.name)?;
        let Some(part) = view.part else { return Ok(bytes) };
        // A size that is not divisible gives fewer bytes than the shape says; a shape that does not
        // match the configuration is refused before a tensor is read.
        let size = bytes.len() / (FUSED.len() * self.num_heads).max(1);
        let rows = bytes.chunks_exact(size.max(1)).skip(part).step_by(FUSED.len());
        Ok(Cow::Owned(rows.flatten().copied().collect()))
    }
}

/// A checkpoint under the names of a Llama as one of GPT-NeoX.
pub(crate) struct FusedNeox<'a> {
    source: &'a dyn TensorSource,
    num_heads: usize,
    tensors: BTreeMap<String, FusedView>,
}

struct FusedView {
    info: TensorInfo,
    /// Tensors that it is made of: one, or those of [`FUSED`].
    parts: Vec<String>,
}

impl<'a> FusedNeox<'a> {
    /// View of the tensors of `config`, a plain model. Tensors of other types than their siblings
    /// in the fused matrix make it F32.
    pub fn new(source: &'a dyn TensorSource, config: &ModelConfig) -> Self {
        let mut tensors: BTreeMap<String, FusedView> = BTreeMap::new();
        for spec in config.tensors() {
            let (Some(name), ours) = (family_name(&spec), spec.name()) else { continue };
            let Some(info) = source.info(&ours) else { continue };
            match tensors.get_mut(&name) {
                None => _ = tensors.insert(name, FusedView { info: info.clone(), parts: vec![ours] }),
                Some(view) => {
                    view.info.shape[0] += info.shape[0];
                    if view.info.dtype != info.dtype {
                        view.info.dtype = Dtype::F32;
                    }
                    view.parts.push(ours);
                }
            }
        }
        Self { source, num_heads: config.num_attention_heads, tensors }
    }

    fn part(&self, name: &str, dtype: Dtype) -> Result<Cow<'_, [u8]>, CheckpointError> {
        match self.source.info(name) {
            Some(info) if info.dtype != dtype => Ok(narrow(&self.source.read_f32(name)?, dtype).into()),
            _ => self.source.bytes(name),
        }
    }
}

/// Name of a tensor in a checkpoint of the family.
fn family_name(spec: &TensorSpec) -> Option<String> {
    let find = |table: &[(TensorRole, &'static str)]| {
        table.iter().find(|(role, _)| *role == spec.role).map(|(_, module)| *module)
    };
    let part = match spec.part {
        TensorPart::Weight => "weight",
        TensorPart::Bias => "bias",
    };
    match (spec.owner, spec.role) {
        (TensorOwner::Model, _) => Some(format!("{}.{part}", find(&MODEL)?)),
        (TensorOwner::Layer(layer), TensorRole::Projection(projection)) if FUSED.contains(&projection) => {
            Some(format!("gpt_neox.layers.{layer}.{FUSED_NAME}.{part}"))
        }
        (TensorOwner::Layer(layer), _) => Some(format!("gpt_neox.layers.{layer}.{}.{part}", find(&LAYER)?)),
        (TensorOwner::Depth(_) | TensorOwner::Router(..), _) => None,
    }
}

impl TensorSource for FusedNeox<'_> {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|view| &view.info)
    }

    fn path_of(&self, name: &str) -> &Path {
        let first = self.tensors.get(name).and_then(|view| view.parts.first());
        self.source.path_of(first.map_or(name, String::as_str))
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let missing = || CheckpointError::NoTensor { path: self.path_of(name).to_owned(), tensor: name.to_owned() };
        let FusedView { info, parts } = self.tensors.get(name).ok_or_else(missing)?;
        let parts = parts.iter().map(|part| self.part(part, info.dtype)).collect::<Result<Vec<_>, _>>()?;
        match <[Cow<'_, [u8]>; 1]>::try_from(parts) {
            Ok([only]) => Ok(only),
            Err(parts) => {
                let heads = (0..self.num_heads).flat_map(|head| parts.iter().map(move |part| (head, part)));
                let of_head = |(head, part): (usize, &'_ Cow<'_, [u8]>)| {
                    let size = part.len() / self.num_heads;
                    part[head * size..][..size].to_vec()
                };
                Ok(heads.flat_map(of_head).collect::<Vec<u8>>().into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two heads of two rows: queries, keys, values of the first, then of the second; a row is one
    /// number.
    struct Fused(TensorInfo);

    impl TensorSource for Fused {
        fn names(&self) -> Vec<&str> {
            vec!["gpt_neox.layers.3.attention.query_key_value.bias", "gpt_neox.layers.3.attention.masked_bias", "odd"]
        }
        fn info(&self, _: &str) -> Option<&TensorInfo> {
            Some(&self.0)
        }
        fn path_of(&self, _: &str) -> &Path {
            Path::new("m")
        }
        fn unread(&self, name: &str) -> Option<&str> {
            let types = [("gpt_neox.layers.2.attention.query_key_value.weight", "I8"), ("embed_out.weight", "F64")];
            types.into_iter().find(|(unread, _)| *unread == name).map(|(_, found)| found)
        }
        fn bytes(&self, _: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
            Ok((0..12).flat_map(|x| (x as f32).to_le_bytes()).collect::<Vec<u8>>().into())
        }
    }

    #[test]
    fn a_fused_tensor_comes_apart_by_heads_and_buffers_are_not_shown() {
        let source = GptNeox::new(Fused(TensorInfo { dtype: Dtype::F32, shape: vec![12] }), 2);
        let names = source.names();
        assert_eq!(names[0], "model.layers.3.self_attn.k_proj.bias");
        assert_eq!((names.len(), names[3]), (4, "odd"));
        assert_eq!(source.info("model.layers.3.self_attn.q_proj.bias").unwrap().shape, [4]);
        let values = |part: &str| source.read_f32(&format!("model.layers.3.self_attn.{part}_proj.bias")).unwrap();
        assert_eq!(values("q"), [0.0, 1.0, 6.0, 7.0]);
        assert_eq!(values("k"), [2.0, 3.0, 8.0, 9.0]);
        assert_eq!(values("v"), [4.0, 5.0, 10.0, 11.0]);
        assert!(source.bytes("gpt_neox.layers.3.attention.masked_bias").is_err());
        assert_eq!(source.unread("model.layers.2.self_attn.k_proj.weight"), Some("I8"));
        assert_eq!(source.unread("model.layers.2.self_attn.o_proj.weight"), None);
        assert_eq!(source.unread("lm_head.weight"), Some("F64"));
    }

    /// Every tensor of a model under its own names, with a value that tells name and row.
    struct Named(BTreeMap<String, TensorInfo>);

    impl TensorSource for Named {
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
            let start = self.0.keys().position(|other| other == name).unwrap() * 10_000;
            let values: Vec<f32> = (0..self.0[name].num_elements()).map(|i| (start + i) as f32).collect();
            Ok(narrow(&values, self.0[name].dtype).into())
        }
    }

    #[test]
    fn the_inverse_view_is_separated_into_what_it_was_made_of() {
        let config = serde_json::json!({
            "model_type": "gpt_neox", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 16, "hidden_act": "gelu",
            "num_hidden_layers": 2, "num_attention_heads": 2, "layer_norm_eps": 1e-5, "rotary_pct": 0.5,
        });
        let serde_json::Value::Object(map) = config else { unreachable!() };
        let config = ModelConfig::from_json(map, Path::new("tiny")).unwrap();
        let info = |spec: TensorSpec| (spec.name(), TensorInfo { dtype: Dtype::F32, shape: spec.shape });
        let ours = Named(config.tensors().into_iter().map(info).collect());
        let theirs = FusedNeox::new(&ours, &config);
        let names = theirs.names();
        assert!(names.contains(&"gpt_neox.embed_in.weight") && names.contains(&"embed_out.weight"), "{names:?}");
        assert_eq!(theirs.info("gpt_neox.layers.1.attention.query_key_value.weight").unwrap().shape, [24, 8]);
        // 11 tensors of a layer less 4 that are fused with q: 12 in each, and 4 beside.
        assert_eq!(names.len(), 2 * 12 + 4);
        let back = GptNeox::new(theirs, config.num_attention_heads);
        assert_eq!(back.names(), ours.names());
        for name in ours.names() {
            assert_eq!(back.info(name), ours.info(name), "{name}");
            assert_eq!(back.bytes(name).unwrap(), ours.bytes(name).unwrap(), "{name}");
        }
    }
}
