//! A GGUF file as a [`TensorSource`] under Hugging Face's names.

use super::{
    GgufError, config,
    family::Family,
    known,
    metadata::{MetaValue, Metadata},
    names,
    parse::{Header, RawTensor, parse},
    permute,
    quant::{self, Format},
    tokenizer::Tokenizer,
};
use crate::{CheckpointError, Dtype, TensorInfo, TensorSource, mmap, narrow};
use memmap2::Mmap;
use retie_config::{DISGUISE_BYTES, Disguise, ModelConfig, TensorSpec};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

/// An open GGUF file. Tensors have Hugging Face's names, shapes and row order; quantised ones
/// appear as [`Dtype::F32`] and are dequantised when they are read. Tensors unknown to the family
/// keep their name in the file.
pub struct GgufFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    config: ModelConfig,
    tensors: BTreeMap<String, Tensor>,
}

struct Tensor {
    info: TensorInfo,
    format: &'static Format,
    range: Range<usize>,
    /// Number of heads whose rows have to be reordered, for the query and key projections.
    permuted_heads: Option<usize>,
    /// True if it is stored with 1 added.
    plus_one: bool,
}

impl GgufFile {
    /// Opens `path` and reads everything but the values of its tensors.
    ///
    /// # Errors
    /// When the file cannot be read, is malformed, or is not supported.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let map = mmap::map(path)?;
        let start = &map[..map.len().min(DISGUISE_BYTES)];
        if let Some(found) = Disguise::of(start).filter(|found| *found != Disguise::Gguf) {
            return Err(CheckpointError::Disguised { path: path.to_owned(), found });
        }
        let wrong = |source| CheckpointError::Gguf { path: path.to_owned(), source };
        let header = parse(&map).map_err(wrong)?;
        known::refuse_parts(&header.metadata).map_err(wrong)?;
        let rope_freqs = rope_freqs(&header, &map).map_err(wrong)?;
        let family = config::family(&header).map_err(wrong)?;
        let json = config::hugging_face(&header, family, rope_freqs.as_deref()).map_err(wrong)?;
        let config = ModelConfig::from_json(json, path)?;
        let tensors = tensors(&header, family, &config, map.len() as u64).map_err(wrong)?;
        Ok(Self { path: path.to_owned(), map, metadata: header.metadata, config, tensors })
    }

    /// Path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Configuration of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every metadata key.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What a user should be told of the file: metadata that are ignored, and the remarks on the
    /// configuration that they become.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let ignored: Vec<String> = known::ignored(&self.metadata).map(|key| format!("`{key}`")).collect();
        let mut remarks = self.config.remarks();
        if !ignored.is_empty() {
            remarks.push(format!("metadata that are ignored: {}", ignored.join(", ")));
        }
        remarks
    }

    /// Name of the type in which `name` is stored (`Q4_K`, …), or `None` if there is no such
    /// tensor.
    #[must_use]
    pub fn stored_type(&self, name: &str) -> Option<&'static str> {
        self.tensors.get(name).map(|tensor| tensor.format.name)
    }

    /// `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`, rebuilt from the
    /// metadata; none of them if the file says that it has no tokenizer.
    ///
    /// # Errors
    /// When the tokenizer is of a kind that cannot be reproduced exactly.
    pub fn companions(&self) -> Result<Vec<(String, Vec<u8>)>, CheckpointError> {
        let wrong = |source| CheckpointError::Gguf { path: self.path.clone(), source };
        if matches!(self.metadata.get("tokenizer.ggml.model"), Some(MetaValue::Text(model)) if model == "none") {
            return Ok(Vec::new());
        }
        let tokenizer = Tokenizer::read(&self.metadata, self.config.vocab_size).map_err(wrong)?;
        let files = [
            ("tokenizer.json", tokenizer.json()),
            ("tokenizer_config.json", tokenizer.config_json(self.config.max_position_embeddings)),
            ("generation_config.json", tokenizer.generation_json()),
        ];
        files
            .into_iter()
            .map(|(name, json)| {
                let text = serde_json::to_vec_pretty(&json.map_err(wrong)?)
                    .map_err(|source| CheckpointError::BadJson { path: self.path.clone(), source })?;
                Ok((name.to_owned(), text))
            })
            .collect()
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, CheckpointError> {
        self.tensors
            .get(name)
            .ok_or_else(|| CheckpointError::NoTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    /// Stored bytes in Hugging Face's row order.
    fn stored(&self, tensor: &Tensor) -> Cow<'_, [u8]> {
        let bytes = &self.map[tensor.range.clone()];
        match tensor.permuted_heads {
            Some(heads) => Cow::Owned(permute::undo(bytes, bytes.len() / tensor.info.shape[0], heads)),
            None => Cow::Borrowed(bytes),
        }
    }
}

impl TensorSource for GgufFile {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|tensor| &tensor.info)
    }

    fn path_of(&self, _name: &str) -> &Path {
        &self.path
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let tensor = self.tensor(name)?;
        let stored = self.stored(tensor);
        if tensor.plus_one {
            return Ok(narrow(&self.read_f32(name)?, Dtype::F32).into());
        }
        Ok(if is_presented_as_stored(tensor.format) {
            stored
        } else {
            tensor.format.dequantize_to_bytes(&stored).into()
        })
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.tensor(name)?;
        let mut values = tensor.format.dequantize(&self.stored(tensor));
        if tensor.plus_one {
            values.iter_mut().for_each(|x| *x -= 1.0);
        }
        Ok(values)
    }
}

fn is_presented_as_stored(format: &Format) -> bool {
    matches!(format.id, quant::F32 | quant::F16 | quant::BF16)
}

fn dtype(format: &Format) -> Dtype {
    match format.id {
        quant::F16 => Dtype::F16,
        quant::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    }
}

/// Checks every entry of the tensor table and gives it its name, shape and place.
fn tensors(
    header: &Header,
    family: &Family,
    config: &ModelConfig,
    file_len: u64,
) -> Result<BTreeMap<String, Tensor>, GgufError> {
    let unsupported: Vec<_> = header
        .tensors
        .iter()
        .filter_map(|raw| quant::find(raw.type_id).err().map(|found| (raw.name.clone(), found)))
        .collect();
    if !unsupported.is_empty() {
        return Err(GgufError::TensorTypes { tensors: unsupported });
    }
    let specs = config.tensors().into_iter();
    let named = |spec: TensorSpec| Some((names::to_gguf(spec.owner, spec.role, spec.part, family)?, spec));
    let expected: BTreeMap<String, TensorSpec> = specs.filter_map(named).collect();
    let mut tensors = BTreeMap::new();
    for raw in header.tensors.iter().filter(|raw| raw.name != names::ROPE_FREQS) {
        let spec = expected.get(&raw.name);
        let name = spec.map_or_else(|| raw.name.clone(), TensorSpec::name);
        let (format, range) = place(raw, file_len)?;
        // Cast is exact: a tensor's values are in the file, whose length was a `usize`.
        let shape: Vec<usize> = raw.dimensions.iter().rev().map(|d| *d as usize).collect();
        let permuted_heads = spec.and_then(|spec| family.permuted_heads(spec.role, config));
        if let Some(heads) = permuted_heads {
            check_rows(raw, format, heads, config.head_dim)?;
        }
        let plus_one = spec.is_some_and(|spec| family.is_plus_one(spec.role, spec.part));
        let dtype = if plus_one { Dtype::F32 } else { dtype(format) };
        let info = TensorInfo { dtype, shape };
        if tensors.insert(name.clone(), Tensor { info, format, range, permuted_heads, plus_one }).is_some() {
            return Err(GgufError::Duplicate { what: "tensor", name });
        }
    }
    Ok(tensors)
}

/// Format of a tensor and its byte range in the file.
fn place(raw: &RawTensor, file_len: u64) -> Result<(&'static Format, Range<usize>), GgufError> {
    let format = quant::find(raw.type_id)
        .map_err(|found| GgufError::TensorTypes { tensors: vec![(raw.name.clone(), found)] })?;
    let bad = |expected: String| GgufError::Dimensions {
        tensor: raw.name.clone(),
        dimensions: raw.dimensions.clone(),
        expected,
    };
    let row = raw.dimensions.first().copied().unwrap_or(0);
    let values = raw.dimensions.iter().try_fold(1u64, |product, d| product.checked_mul(*d)).filter(|n| *n > 0);
    let values = values.ok_or_else(|| bad("positive dimensions whose product is a 64-bit number".to_owned()))?;
    if !row.is_multiple_of(format.block_values as u64) {
        return Err(bad(format!("a row of whole {} blocks of {}", format.name, format.block_values)));
    }
    let len = format.num_bytes(values).ok_or_else(|| bad("a product that fits in memory".to_owned()))?;
    match raw.start.checked_add(len).filter(|end| *end <= file_len) {
        Some(end) => Ok((format, raw.start as usize..end as usize)),
        None => Err(GgufError::Truncated {
            what: format!("tensor `{}`", raw.name),
            offset: raw.start,
            needed: len,
            len: file_len,
        }),
    }
}

/// Checks that a query or key projection has the rows of `heads` heads, so that they can be
/// reordered.
fn check_rows(raw: &RawTensor, format: &Format, heads: usize, head_dim: usize) -> Result<(), GgufError> {
    let rows = (heads * head_dim) as u64;
    // The rows of a vector are its values, which are not separable within a block.
    let has_rows = raw.dimensions.len() == 2 || format.block_values == 1;
    if has_rows && raw.dimensions.last() == Some(&rows) {
        return Ok(());
    }
    Err(GgufError::Dimensions {
        tensor: raw.name.clone(),
        dimensions: raw.dimensions.clone(),
        expected: format!("{rows} rows, {heads} heads of {head_dim}"),
    })
}

/// Values of `rope_freqs.weight`.
fn rope_freqs(header: &Header, bytes: &[u8]) -> Result<Option<Vec<f32>>, GgufError> {
    let Some(raw) = header.tensors.iter().find(|raw| raw.name == names::ROPE_FREQS) else { return Ok(None) };
    let (format, range) = place(raw, bytes.len() as u64)?;
    Ok(Some(format.dequantize(&bytes[range])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::test_file::{TestFile, integers, text, texts, u32_value};

    /// One layer, 2 heads of 4, 1 head of keys and values, with embeddings in f32.
    fn metadata() -> TestFile {
        TestFile::default()
            .pair("general.architecture", 8, &text("llama"))
            .pair("llama.block_count", 4, &u32_value(1))
            .pair("llama.context_length", 4, &u32_value(64))
            .pair("llama.embedding_length", 4, &u32_value(8))
            .pair("llama.feed_forward_length", 4, &u32_value(16))
            .pair("llama.attention.head_count", 4, &u32_value(2))
            .pair("llama.attention.head_count_kv", 4, &u32_value(1))
            .pair("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes())
            .tensor("token_embd.weight", &[8, 4], 0, &floats(32))
    }

    fn floats(n: usize) -> Vec<u8> {
        (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    fn open(bytes: &[u8]) -> Result<GgufFile, CheckpointError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs_err::write(&path, bytes).unwrap();
        GgufFile::open(&path)
    }

    /// Message of the cause, which does not contain the path.
    fn cause(bytes: &[u8]) -> String {
        match open(bytes).err().unwrap() {
            CheckpointError::Gguf { source, .. } => source.to_string(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn names_shapes_and_rows_are_those_of_hugging_face() {
        let half: Vec<u8> = (0..8).flat_map(|i| half::f16::from_f32(i as f32).to_le_bytes()).collect();
        let file = metadata()
            .tensor("blk.0.attn_q.weight", &[8, 8], 0, &floats(64))
            .tensor("blk.0.attn_q.bias", &[8], 1, &half)
            .tensor("blk.0.attn_v.weight", &[8, 4], 0, &floats(32))
            .tensor("blk.0.ffn_gate_inp.weight", &[1], 0, &floats(1))
            .tensor("blk.0.attn_k.scale", &[1], 0, &floats(1))
            .tensor("blk.x.attn_k.weight", &[1], 0, &floats(1));
        let file = open(&file.build()).unwrap();
        let names = [
            "blk.0.attn_k.scale",
            "blk.0.ffn_gate_inp.weight",
            "blk.x.attn_k.weight",
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.v_proj.weight",
        ];
        assert_eq!(file.names(), names);
        let names = &names[3..];
        assert_eq!(file.info(names[0]).unwrap().shape, [4, 8]);
        let bias = file.info(names[1]).unwrap();
        assert_eq!((bias.dtype, &bias.shape[..]), (Dtype::F16, &[8][..]));
        assert_eq!(file.read_f32(names[1]).unwrap(), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(crate::widen(&file.bytes(names[1]).unwrap(), Dtype::F16), file.read_f32(names[1]).unwrap());
        let first_column: Vec<f32> = file.read_f32(names[2]).unwrap().into_iter().step_by(8).collect();
        assert_eq!(first_column, [0.0, 16.0, 8.0, 24.0, 32.0, 48.0, 40.0, 56.0]);
        assert_eq!(file.bytes(names[3]).unwrap(), floats(32));
        let error = file.bytes("lm_head.weight").unwrap_err().to_string();
        assert!(error.ends_with("has no tensor `lm_head.weight`"), "{error}");
    }

    #[test]
    fn quantised_tensors_are_presented_as_f32() {
        let block: Vec<u8> = [0x00, 0x3c].into_iter().chain((0..32).map(|i| i as u8)).collect();
        let file = open(&metadata().tensor("output.weight", &[32, 2], 8, &block.repeat(2)).build()).unwrap();
        let info = file.info("lm_head.weight").unwrap();
        assert_eq!((info.dtype, &info.shape[..]), (Dtype::F32, &[2, 32][..]));
        assert_eq!(file.stored_type("lm_head.weight"), Some("Q8_0"));
        assert_eq!(file.bytes("lm_head.weight").unwrap(), floats(32).repeat(2));
    }

    #[test]
    fn every_type_that_cannot_be_read_is_named_with_its_tensor() {
        let file = metadata().tensor("a", &[256], 10, &[]).tensor("b", &[256], 23, &[]).build();
        let message =
            "2 tensors have a type that is not supported: `a` is `Q2_K`, `b` is `IQ4_XS`\nhint: supported: F32, ";
        assert!(cause(&file).starts_with(message), "{}", cause(&file));
    }

    #[test]
    fn a_part_of_a_split_model_and_an_adapter_are_named() {
        let part = metadata().pair("split.no", 2, &1u16.to_le_bytes()).pair("split.count", 2, &3u16.to_le_bytes());
        assert!(cause(&part.build()).starts_with("the file is part 2 of a model that is split into 3\nhint: "));
        let later =
            TestFile::default().pair("split.no", 2, &2u16.to_le_bytes()).pair("split.count", 2, &3u16.to_le_bytes());
        assert!(cause(&later.build()).starts_with("the file is part 3 of"));
        assert!(open(&metadata().pair("split.count", 2, &1u16.to_le_bytes()).build()).is_ok());
        let adapter = metadata().pair("general.type", 8, &text("adapter"));
        assert!(cause(&adapter.build()).starts_with("`general.type: adapter` is not supported"));
        let pointer = open(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n").err().unwrap().to_string();
        assert!(pointer.contains("model.gguf` is a Git LFS pointer"), "{pointer}");
    }

    #[test]
    fn metadata_that_are_ignored_are_named() {
        let file = metadata().pair("general.name", 8, &text("x")).pair("tokenizer.ggml.pre", 8, &text("smollm"));
        let plain = open(&file.build()).unwrap();
        assert_eq!(plain.remarks(), [""; 0]);
        let file = metadata().pair("mamba.ssm.state_size", 4, &u32_value(2)).pair("tokenizer.ggml.odd", 7, &[1]);
        let expected = "metadata that are ignored: `mamba.ssm.state_size`, `tokenizer.ggml.odd`";
        assert_eq!(open(&file.build()).unwrap().remarks(), [expected]);
    }

    #[test]
    fn a_file_that_ends_inside_its_data_is_refused() {
        let bytes = metadata().build();
        assert!(open(&bytes).is_ok());
        let message = cause(&bytes[..bytes.len() - 1]);
        assert!(message.contains("but tensor `token_embd.weight` needs 128 bytes from byte"), "{message}");
    }

    #[test]
    fn a_file_with_any_byte_changed_is_opened_or_refused_without_a_panic() {
        let bytes = metadata()
            .pair("tokenizer.ggml.model", 8, &text("gpt2"))
            .pair("tokenizer.ggml.pre", 8, &text("smollm"))
            .pair("tokenizer.ggml.tokens", 9, &texts(&["a", "b", "ab"]))
            .pair("tokenizer.ggml.token_type", 9, &integers(&[3, 1, 1]))
            .pair("tokenizer.ggml.merges", 9, &texts(&["a b"]))
            .pair("tokenizer.ggml.add_bos_token", 7, &[1])
            .pair("tokenizer.ggml.bos_token_id", 4, &u32_value(0))
            .tensor("blk.0.attn_q.weight", &[8, 8], 0, &floats(64))
            .tensor("blk.0.attn_k.bias", &[4], 0, &floats(4))
            .tensor("rope_freqs.weight", &[2], 0, &[1f32.to_le_bytes(), 1f32.to_le_bytes()].concat())
            .build();
        assert_eq!(open(&bytes).unwrap().companions().unwrap().len(), 3);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        for at in 0..bytes.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] ^= change;
                fs_err::write(&path, bytes).unwrap();
                let Ok(file) = GgufFile::open(&path) else { continue };
                let _ = file.companions();
                let _ = crate::check_tensors(file.config(), &file);
                for name in file.names() {
                    assert_eq!(file.bytes(name).unwrap().len(), file.info(name).unwrap().num_bytes());
                }
            }
        }
    }

    #[test]
    fn senseless_dimensions_are_refused() {
        let error = |dimensions: &[u64], type_id| cause(&metadata().tensor("t", dimensions, type_id, &[0; 64]).build());
        assert!(error(&[u64::MAX, u64::MAX], 0).contains("positive dimensions"));
        assert!(error(&[0, 4], 0).contains("positive dimensions"));
        assert!(error(&[33, 2], 8).contains("a row of whole Q8_0 blocks of 32"));
        assert!(error(&[1 << 62], 0).contains("fits in memory"));
        assert!(error(&[1 << 40], 0).starts_with("the file ends at byte"));
    }

    #[test]
    fn rows_that_are_not_those_of_the_heads_are_refused() {
        let q = |dimensions: &[u64], type_id| {
            cause(&metadata().tensor("blk.0.attn_q.weight", dimensions, type_id, &[0; 512]).build())
        };
        assert!(q(&[8, 7], 0).ends_with("expected 8 rows, 2 heads of 4"));
        assert!(q(&[256], 8).ends_with("expected 8 rows, 2 heads of 4"));
    }

    #[test]
    fn a_file_that_is_not_gguf_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs_err::write(&path, b"not a GGUF file").unwrap();
        let error = GgufFile::open(&path).err().unwrap();
        assert_eq!(error.to_string(), format!("`{}` cannot be read as a GGUF model", path.display()));
        fs_err::write(&path, b"").unwrap();
        assert!(GgufFile::open(&path).is_err());
    }
}
