//! Conversion of GGUF metadata into a Hugging Face `config.json`.
//!
//! Keys: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#llm>.

use super::{
    GgufError,
    family::Family,
    metadata::{Metadata, required},
    names,
    parse::Header,
    rope_factors,
    tokenizer::{end_token_ids, special_token_id},
};
use retie_config::{LayerIndex, Projection, TensorOwner, TensorPart, TensorRole};
use serde_json::{Map, Value, json};

/// Keys that are read below because they describe the shape, or that do not affect the computation.
const READ: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
    "tensor_data_layout",
    "expert_count",
    "expert_used_count",
];

/// Keys of `config.json`. `rope_freqs` are the values of the tensor of that name, if there is one.
pub(super) fn hugging_face(
    header: &Header,
    family: &Family,
    rope_freqs: Option<&[f32]>,
) -> Result<Map<String, Value>, GgufError> {
    let metadata = &header.metadata;
    refuse_the_unknown(metadata, family)?;
    let key = |name: &str| family.key(name);
    let optional = |name: &str| bounded(metadata, &key(name));
    let size = |name: &str| required(optional(name)?, &key(name));
    let num_layers = size("block_count")?;
    if num_layers > header.tensors.len() {
        return Err(GgufError::BadValue {
            key: key("block_count"),
            found: num_layers.to_string(),
            expected: format!("at most the number of tensors, {}", header.tensors.len()),
        });
    }
    let hidden_size = size("embedding_length")?;
    let heads = positive(size("attention.head_count")?, key("attention.head_count"))?;
    let head_dim = match optional("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden_size / heads,
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(found) = optional(name)?.filter(|found| *found != head_dim) {
            return Err(GgufError::Unsupported {
                key: key(name),
                found: found.to_string(),
                hint: format!("supported: the size of a head, {head_dim}"),
            });
        }
    }
    let theta = metadata.optional_number(&key("rope.freq_base"))?.unwrap_or(10_000.0); // the format's default
    let has = |owner, role, part| {
        let name = names::to_gguf(owner, role, part, family);
        name.is_some_and(|name| header.tensors.iter().any(|tensor| tensor.name == name))
    };
    let has_bias =
        |projection| has(TensorOwner::Layer(LayerIndex(0)), TensorRole::Projection(projection), TensorPart::Bias);
    let id = |name: &str| special_token_id(metadata, name);
    let config = json!({
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "vocab_size": vocab_size(header)?,
        "hidden_size": hidden_size,
        "intermediate_size": size("feed_forward_length")?,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": optional("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        (family.hidden_act.0): family.hidden_act.1,
        "rms_norm_eps": required(metadata.optional_number(&key("attention.layer_norm_rms_epsilon"))?, &key("attention.layer_norm_rms_epsilon"))?,
        "rope_theta": theta,
        "rope_scaling": rope_scaling(metadata, family, rope_freqs, theta, head_dim)?,
        "max_position_embeddings": size("context_length")?,
        "tie_word_embeddings": !has(TensorOwner::Model, TensorRole::Head, TensorPart::Weight),
        "attention_bias": has_bias(Projection::Q),
        "mlp_bias": has_bias(Projection::Gate),
        "bos_token_id": id("bos")?,
        "eos_token_id": end_token_ids(metadata)?,
        "pad_token_id": id("padding")?,
    });
    match config {
        Value::Object(mut map) => {
            // Families that never have it have no such key.
            if map["mlp_bias"] == json!(false) {
                map.remove("mlp_bias");
            }
            (family.json)(metadata, &mut map)?;
            Ok(map)
        }
        _ => unreachable!("the literal above is an object"),
    }
}

/// Family of the file's architecture.
pub(super) fn family(header: &Header) -> Result<&'static Family, GgufError> {
    const KEY: &str = "general.architecture";
    Family::for_architecture(required(header.metadata.optional_text(KEY)?, KEY)?)
}

/// A size that is small enough to be multiplied by another one without overflow.
fn bounded(metadata: &Metadata, key: &str) -> Result<Option<usize>, GgufError> {
    match metadata.optional_size(key)? {
        Some(n) if u32::try_from(n).is_err() => {
            let expected = format!("at most {}", u32::MAX);
            Err(GgufError::BadValue { key: key.to_owned(), found: n.to_string(), expected })
        }
        n => Ok(n),
    }
}

fn positive(n: usize, key: String) -> Result<usize, GgufError> {
    if n > 0 {
        return Ok(n);
    }
    Err(GgufError::BadValue { key, found: n.to_string(), expected: "a positive integer".to_owned() })
}

/// Rows of the embeddings; a tokenizer may have fewer tokens.
fn vocab_size(header: &Header) -> Result<u64, GgufError> {
    let embeddings = header.tensors.iter().find(|tensor| tensor.name == names::TOKEN_EMBEDDINGS);
    match embeddings.map(|tensor| &tensor.dimensions[..]) {
        Some([_, rows]) => Ok(*rows),
        Some(other) => Err(GgufError::Dimensions {
            tensor: names::TOKEN_EMBEDDINGS.to_owned(),
            dimensions: other.to_vec(),
            expected: "two".to_owned(),
        }),
        None => Err(GgufError::MissingTensor { tensor: names::TOKEN_EMBEDDINGS.to_owned() }),
    }
}

/// Refuses unknown keys of the architecture, which may change the computation (a scale, a window, a
/// soft cap).
fn refuse_the_unknown(metadata: &Metadata, family: &Family) -> Result<(), GgufError> {
    let experts = family.key("expert_count");
    if let Some(found) = metadata.optional_size(&experts)?.filter(|n| *n > 0) {
        return Err(GgufError::Unsupported {
            key: experts,
            found: found.to_string(),
            hint: "mixtures of experts are not supported".to_owned(),
        });
    }
    let prefix = family.key("");
    let is_known = |name: &str| READ.contains(&name) || family.keys.contains(&name);
    let unknown = metadata.iter().find(|(key, _)| key.strip_prefix(&prefix).is_some_and(|name| !is_known(name)));
    match unknown {
        None => Ok(()),
        Some((key, value)) => Err(GgufError::Unsupported {
            key: key.to_owned(),
            found: value.to_string(),
            hint: "it may change the computation; use the model's Hugging Face folder".to_owned(),
        }),
    }
}

fn rope_scaling(
    metadata: &Metadata,
    family: &Family,
    rope_freqs: Option<&[f32]>,
    theta: f64,
    head_dim: usize,
) -> Result<Value, GgufError> {
    let key = |name: &str| family.key(name);
    let kind_key = key("rope.scaling.type");
    let kind = metadata.optional_text(&kind_key)?;
    let factor = match metadata.optional_number(&key("rope.scaling.factor"))? {
        Some(factor) => Some(factor),
        None => metadata.optional_number(&key("rope.scale_linear"))?, // the older spelling
    };
    let linear = match (kind, factor) {
        (Some("none"), _) | (None, None) => None,
        (Some("linear") | None, factor) => Some(required(factor, &key("rope.scaling.factor"))?),
        (Some(found), _) => {
            return Err(GgufError::Unsupported {
                key: kind_key,
                found: found.to_owned(),
                hint: "supported: `none`, `linear`, and Llama 3.1's factors as a tensor".to_owned(),
            });
        }
    };
    match (linear.filter(|factor| *factor != 1.0), rope_freqs) {
        (None, None) => Ok(Value::Null),
        (Some(factor), None) => Ok(json!({ "rope_type": "linear", "factor": factor })),
        (None, Some(factors)) => rope_factors::llama3(factors, theta, head_dim),
        (Some(_), Some(_)) => Err(GgufError::RopeFactors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{
        parse::parse,
        test_file::{TestFile, text, u32_value},
    };
    use retie_config::{ModelConfig, RopeScaling};
    use std::path::Path;

    fn llama() -> TestFile {
        TestFile::default()
            .pair("general.architecture", 8, &text("llama"))
            .pair("llama.block_count", 4, &u32_value(1))
            .pair("llama.context_length", 4, &u32_value(64))
            .pair("llama.embedding_length", 4, &u32_value(8))
            .pair("llama.feed_forward_length", 4, &u32_value(16))
            .pair("llama.attention.head_count", 4, &u32_value(2))
            .pair("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes())
            .tensor("token_embd.weight", &[8, 4], 0, &[0; 128])
    }

    fn read(file: TestFile) -> Result<Map<String, Value>, GgufError> {
        let header = parse(&file.build())?;
        hugging_face(&header, family(&header)?, None)
    }

    #[test]
    fn a_llama_has_the_configuration_of_hugging_face() {
        let map = read(llama().pair("tokenizer.ggml.eos_token_id", 4, &u32_value(3))).unwrap();
        let config = ModelConfig::from_json(map, Path::new("x.gguf")).unwrap();
        assert_eq!((config.vocab_size, config.hidden_size, config.intermediate_size), (4, 8, 16));
        assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (2, 2, 4));
        let anatomy = &config.anatomy;
        assert_eq!((anatomy.norm_eps, anatomy.ropes[0].theta), (1e-5, 10_000.0));
        assert_eq!((anatomy.ropes[0].scaling, config.max_position_embeddings), (RopeScaling::Default, 64));
        assert_eq!((config.bos_token_id, config.eos_token_ids), (None, vec![3]));
        assert!(anatomy.tie_word_embeddings && !anatomy.qkv_bias && !anatomy.mlp_bias);
    }

    #[test]
    fn an_output_tensor_and_biases_are_recognised() {
        let file = llama()
            .tensor("output.weight", &[8, 4], 0, &[0; 128])
            .tensor("blk.0.attn_q.bias", &[8], 0, &[0; 32])
            .tensor("blk.0.ffn_gate.bias", &[16], 0, &[0; 64]);
        let map = read(file).unwrap();
        assert_eq!(map["tie_word_embeddings"], json!(false));
        assert_eq!((&map["attention_bias"], &map["mlp_bias"]), (&json!(true), &json!(true)));
    }

    #[test]
    fn linear_scaling_is_read_in_both_spellings() {
        let factor = 4f32.to_le_bytes();
        let new =
            llama().pair("llama.rope.scaling.type", 8, &text("linear")).pair("llama.rope.scaling.factor", 6, &factor);
        let old = llama().pair("llama.rope.scale_linear", 6, &factor);
        for file in [new, old] {
            let config = ModelConfig::from_json(read(file).unwrap(), Path::new("x")).unwrap();
            assert_eq!(config.anatomy.ropes[0].scaling, RopeScaling::Linear { factor: 4.0 });
        }
    }

    #[test]
    fn unimplemented_keys_are_refused_by_name() {
        let error = |file: TestFile| read(file).unwrap_err().to_string();
        assert_eq!(
            error(TestFile::default().pair("general.architecture", 8, &text("mamba"))),
            "architecture `mamba` is not supported\nhint: supported: `llama`, `qwen2`, `qwen3`, `smollm3`, `olmo2`, `gemma`, `gemma2`, `gemma3`, `nanbeige`; use the model's Hugging Face folder"
        );
        assert!(error(TestFile::default()).starts_with("metadata key `general.architecture` is missing"));
        let cases: [(&str, u32, Vec<u8>); 5] = [
            ("llama.expert_count", 4, u32_value(8)),
            ("llama.attention.sliding_window", 4, u32_value(512)),
            ("llama.rope.scaling.type", 8, text("yarn")),
            ("llama.rope.dimension_count", 4, u32_value(2)),
            ("llama.logit_scale", 6, 2f32.to_le_bytes().to_vec()),
        ];
        for (key, type_id, value) in cases {
            assert!(error(llama().pair(key, type_id, &value)).starts_with(&format!("`{key}: ")), "{key}");
        }
        let zero = TestFile::default().pair("general.architecture", 8, &text("llama"));
        let zero = zero.pair("llama.block_count", 4, &u32_value(0));
        let zero =
            zero.pair("llama.embedding_length", 4, &u32_value(8)).pair("llama.attention.head_count", 4, &u32_value(0));
        assert!(error(zero).contains("expected a positive integer"));
    }
}
