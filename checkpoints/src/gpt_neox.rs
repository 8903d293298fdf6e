//! A GPT-NeoX checkpoint under the names of a Llama, with q, k and v apart.
//!
//! | here | in the file |
//! |---|---|
//! | `model.embed_tokens`, `model.norm`, `lm_head` | `gpt_neox.embed_in`, `gpt_neox.final_layer_norm`, `embed_out` (or `lm_head`) |
//! | `model.layers.{i}.self_attn.{q,k,v}_proj` `[D, D]`, `[D]` | rows of `gpt_neox.layers.{i}.attention.query_key_value` `[3·D, D]`, `[3·D]` |
//! | `….self_attn.o_proj`, `….mlp.up_proj`, `….mlp.down_proj` | `….attention.dense`, `….mlp.dense_h_to_4h`, `….mlp.dense_4h_to_h` |
//!
//! The fused rows are those of one head after the other: its queries, its keys, its values
//! (<https://github.com/huggingface/transformers/blob/main/src/transformers/models/gpt_neox/modeling_gpt_neox.py>).

use crate::{CheckpointError, TensorInfo, TensorSource};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

const FUSED: &str = "attention.query_key_value.";
const PARTS: [&str; 3] = ["self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."];

/// Beginnings of names, as they are in the file and here.
const MODEL: [(&str, &str); 4] = [
    ("gpt_neox.embed_in.", "model.embed_tokens."),
    ("gpt_neox.final_layer_norm.", "model.norm."),
    ("embed_out.", "lm_head."),
    ("lm_head.", "lm_head."),
];
const LAYER: [(&str, &str); 5] = [
    ("attention.dense.", "self_attn.o_proj."),
    ("mlp.dense_h_to_4h.", "mlp.up_proj."),
    ("mlp.dense_4h_to_h.", "mlp.down_proj."),
    ("input_layernorm.", "input_layernorm."),
    ("post_attention_layernorm.", "post_attention_layernorm."),
];
/// Tables that old files hold beside the weights.
const BUFFERS: [&str; 3] = ["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"];

/// The view.
pub(crate) struct GptNeox<S> {
    source: S,
    num_heads: usize,
    tensors: BTreeMap<String, View>,
}

struct View {
    name: String,
    info: TensorInfo,
    /// Which third of each head's rows.
    part: Option<usize>,
}

impl<S: TensorSource> GptNeox<S> {
    /// Of a checkpoint whose attention has `num_heads` heads.
    pub fn new(source: S, num_heads: usize) -> Self {
        let mut tensors = BTreeMap::new();
        for name in source.names() {
            let Some(info) = source.info(name) else { continue };
            for (part, here) in names(name) {
                let mut info = info.clone();
                if let (Some(_), Some(rows)) = (part, info.shape.first_mut()) {
                    *rows /= PARTS.len();
                }
                tensors.insert(here, View { name: name.to_owned(), info, part });
            }
        }
        Self { source, num_heads, tensors }
    }
}

/// What a tensor of the file is here; one that is not known keeps its name, so that it is reported.
fn names(name: &str) -> Vec<(Option<usize>, String)> {
    let renamed = |table: &[(&str, &str)], name: &str| {
        table.iter().find_map(|(theirs, ours)| Some(format!("{ours}{}", name.strip_prefix(theirs)?)))
    };
    let in_layer = name.strip_prefix("gpt_neox.layers.").and_then(|rest| rest.split_once('.'));
    let Some((layer, rest)) = in_layer else {
        return vec![(None, renamed(&MODEL, name).unwrap_or_else(|| name.to_owned()))];
    };
    if BUFFERS.contains(&rest) {
        return Vec::new();
    }
    match rest.strip_prefix(FUSED) {
        Some(which) => PARTS
            .iter()
            .enumerate()
            .map(|(part, ours)| (Some(part), format!("model.layers.{layer}.{ours}{which}")))
            .collect(),
        None => match renamed(&LAYER, rest) {
            Some(ours) => vec![(None, format!("model.layers.{layer}.{ours}"))],
            None => vec![(None, name.to_owned())],
        },
    }
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

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let missing =
            || CheckpointError::NoTensor { path: self.source.path_of(name).to_owned(), tensor: name.to_owned() };
        let view = self.tensors.get(name).ok_or_else(missing)?;
        let bytes = self.source.bytes(&view.name)?;
        let Some(part) = view.part else { return Ok(bytes) };
        // Sizes that do not divide give fewer bytes than the shape says; a shape that does not fit the configuration is refused
        // before a tensor is read.
        let size = bytes.len() / (PARTS.len() * self.num_heads).max(1);
        let rows = bytes.chunks_exact(size.max(1)).skip(part).step_by(PARTS.len());
        Ok(Cow::Owned(rows.flatten().copied().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    /// Two heads of two rows: queries, keys, values of the first, then of the second; a row is one number.
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
    }
}
