//! Sizes and constants of a decoder, as Hugging Face's `config.json` states them.
//!
//! Reference: `LlamaConfig` of transformers (<https://huggingface.co/docs/transformers/model_doc/llama>). Both spellings of
//! the rotary settings are read: `rope_theta` + `rope_scaling` (before transformers 5) and `rope_parameters` (since).

use crate::{ConfigError, RecursionConfig};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// `model_type` of a converted checkpoint: other loaders refuse it instead of loading a wrong model in silence.
const RECURSIVE_MODEL_TYPE: &str = "recursive_llama";
const RECURSIVE_ARCHITECTURE: &str = "RecursiveLlamaForCausalLM";

/// Families of decoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU.
    Llama,
}

/// Change of the rotary frequencies for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the pretraining.
        original_max_position_embeddings: f64,
    },
}

/// A decoder's shape. Field names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    /// Length of the (unrolled) stack.
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    /// Biases on q, k, v and o.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
    /// Present in a converted checkpoint.
    pub recursion: Option<RecursionConfig>,
    /// Every key of the file that was read, so that a copy loses nothing.
    pub other: Map<String, Value>,
}

/// Typed access to one JSON object; errors name the file and the key.
struct Keys<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Keys<'_> {
    fn present(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn bad(&self, key: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::BadValue {
            path: self.path.to_owned(),
            key: key.to_owned(),
            found: found.to_string(),
            expected: expected.to_owned(),
        }
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.present(key)
            .map(|v| {
                v.as_u64()
                    .filter(|n| *n > 0)
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or_else(|| self.bad(key, v, "a positive integer"))
            })
            .transpose()
    }

    fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or_else(|| ConfigError::MissingKey { path: self.path.to_owned(), key })
    }

    fn optional_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.present(key)
            .map(|v| {
                v.as_f64().filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| self.bad(key, v, "a positive number"))
            })
            .transpose()
    }

    fn number(&self, key: &'static str) -> Result<f64, ConfigError> {
        self.optional_number(key)?.ok_or_else(|| ConfigError::MissingKey { path: self.path.to_owned(), key })
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        self.present(key).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.bad(key, v, "`true` or `false`")))
    }

    fn token_ids(&self, key: &str) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.present(key) else { return Ok(Vec::new()) };
        let one = |v: &Value| {
            v.as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| self.bad(key, value, "a token id or a list of token ids"))
        };
        match value {
            Value::Array(ids) => ids.iter().map(one).collect(),
            id => Ok(vec![one(id)?]),
        }
    }

    fn only(&self, key: &'static str, accepted: &[&str], hint: &str) -> Result<(), ConfigError> {
        match self.present(key) {
            None => Ok(()),
            Some(Value::String(s)) if accepted.contains(&s.as_str()) => Ok(()),
            Some(other) => Err(ConfigError::Unsupported {
                path: self.path.to_owned(),
                key,
                found: other.as_str().map_or_else(|| other.to_string(), str::to_owned),
                hint: hint.to_owned(),
            }),
        }
    }
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, or as [`ModelConfig::from_json`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs_err::read_to_string(path)?;
        let value: Value =
            serde_json::from_str(&text).map_err(|source| ConfigError::Json { path: path.to_owned(), source })?;
        let Value::Object(map) = value else {
            return Err(ConfigError::BadValue {
                path: path.to_owned(),
                key: "(the whole file)".into(),
                found: value.to_string(),
                expected: "an object".into(),
            });
        };
        Self::from_json(map, path)
    }

    /// Reads the keys of a `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// When a size is missing or senseless, or a known key asks for what is not implemented.
    pub fn from_json(map: Map<String, Value>, path: &Path) -> Result<Self, ConfigError> {
        let keys = Keys { path, map: &map };
        keys.only(
            "model_type",
            &["llama", RECURSIVE_MODEL_TYPE],
            "supported: `llama` (Llama, SmolLM, SmolLM2, TinyLlama) and the folders that `retie convert` writes",
        )?;
        keys.only("hidden_act", &["silu"], "supported: `silu`")?;
        if let Some(found) = keys.present("quantization_config") {
            return Err(ConfigError::Unsupported {
                path: path.to_owned(),
                key: "quantization_config",
                found: found.to_string(),
                hint: "use an unquantised checkpoint (f32, bf16 or f16), or a GGUF file".into(),
            });
        }
        if keys.present("model_type").is_none() {
            return Err(ConfigError::MissingKey { path: path.to_owned(), key: "model_type" });
        }
        let hidden_size = keys.size("hidden_size")?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let num_key_value_heads = keys.optional_size("num_key_value_heads")?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let found = json!(num_key_value_heads);
            let expected = format!("a divisor of num_attention_heads = {num_attention_heads}");
            return Err(keys.bad("num_key_value_heads", &found, &expected));
        }
        let head_dim = match keys.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                let expected = format!("a divisor of hidden_size = {hidden_size}, or a key `head_dim`");
                return Err(keys.bad("num_attention_heads", &json!(num_attention_heads), &expected));
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(keys.bad("head_dim", &json!(head_dim), "an even number"));
        }
        let (rope_theta, rope_scaling) = rope(&keys)?;
        let recursion = keys.present("recursion").map(|v| RecursionConfig::deserialize_from(v, path)).transpose()?;
        let config = Self {
            architecture: Architecture::Llama,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers: keys.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: keys.number("rms_norm_eps")?,
            rope_theta,
            rope_scaling,
            max_position_embeddings: keys.optional_size("max_position_embeddings")?.unwrap_or(2048),
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            attention_bias: keys.flag("attention_bias", false)?,
            mlp_bias: keys.flag("mlp_bias", false)?,
            bos_token_id: keys.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: keys.token_ids("eos_token_id")?,
            recursion,
            other: Map::new(),
        };
        if let Some(recursion) = &config.recursion {
            recursion.share_map(&config)?;
        }
        Ok(Self { other: map, ..config })
    }

    /// The keys of `config.json`: everything that was read, with `recursion` and what it implies set from this value.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = self.other.clone();
        match &self.recursion {
            Some(recursion) => {
                map.insert("model_type".into(), json!(RECURSIVE_MODEL_TYPE));
                map.insert("architectures".into(), json!([RECURSIVE_ARCHITECTURE]));
                map.insert("recursion".into(), json!(recursion));
            }
            None => {
                map.insert("model_type".into(), json!("llama"));
                map.insert("architectures".into(), json!(["LlamaForCausalLM"]));
                map.remove("recursion");
            }
        }
        map
    }

    /// Total width of the queries, `N × H`.
    #[must_use]
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Total width of the keys (and of the values), `K × H`.
    #[must_use]
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// `[out_features, in_features]` of the seven linears of a layer, in the order of [`ModelConfig::PROJECTIONS`].
    #[must_use]
    pub fn projection_shapes(&self) -> [(&'static str, [usize; 2]); 7] {
        let (d, f, q, kv) = (self.hidden_size, self.intermediate_size, self.query_size(), self.key_value_size());
        let shapes = [[q, d], [kv, d], [kv, d], [d, q], [f, d], [f, d], [d, f]];
        std::array::from_fn(|i| (Self::PROJECTIONS[i], shapes[i]))
    }

    /// The linears of a layer, as they are called in a checkpoint under `model.layers.{i}.`.
    pub const PROJECTIONS: [&'static str; 7] = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];

    /// The norms of a layer, as they are called in a checkpoint under `model.layers.{i}.`.
    pub const NORMS: [&'static str; 2] = ["input_layernorm", "post_attention_layernorm"];

    /// Whether `projection` (one of [`ModelConfig::PROJECTIONS`]) has a bias.
    #[must_use]
    pub fn has_bias(&self, projection: &str) -> bool {
        if projection.starts_with("mlp.") { self.mlp_bias } else { self.attention_bias }
    }
}

impl RecursionConfig {
    fn deserialize_from(value: &Value, path: &Path) -> Result<Self, ConfigError> {
        serde_json::from_value(value.clone()).map_err(|e| ConfigError::BadValue {
            path: PathBuf::from(path),
            key: "recursion".into(),
            found: value.to_string(),
            expected: format!("a recursion object ({e})"),
        })
    }
}

fn rope(keys: &Keys<'_>) -> Result<(f64, RopeScaling), ConfigError> {
    const DEFAULT_THETA: f64 = 10_000.0; // `LlamaConfig` when the key is absent
    let object = |key: &'static str| match keys.present(key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(Keys { path: keys.path, map })),
        Some(other) => Err(keys.bad(key, other, "an object or null")),
    };
    let parameters = object("rope_parameters")?;
    let scaling = match &parameters {
        Some(_) => parameters,
        None => object("rope_scaling")?,
    };
    let Some(scaling) = scaling else {
        return Ok((keys.optional_number("rope_theta")?.unwrap_or(DEFAULT_THETA), RopeScaling::Default));
    };
    let theta = match scaling.optional_number("rope_theta")? {
        Some(theta) => theta,
        None => keys.optional_number("rope_theta")?.unwrap_or(DEFAULT_THETA),
    };
    let kind = scaling.present("rope_type").or_else(|| scaling.present("type"));
    let kind = kind.and_then(Value::as_str).unwrap_or("default");
    let rope_scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: scaling.number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: scaling.number("factor")?,
            low_freq_factor: scaling.number("low_freq_factor")?,
            high_freq_factor: scaling.number("high_freq_factor")?,
            original_max_position_embeddings: scaling.number("original_max_position_embeddings")?,
        },
        other => {
            return Err(ConfigError::Unsupported {
                path: keys.path.to_owned(),
                key: "rope_type",
                found: other.to_owned(),
                hint: "supported: `default`, `linear`, `llama3`".into(),
            });
        }
    };
    Ok((theta, rope_scaling))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(patch: &[(&str, Value)]) -> Result<ModelConfig, ConfigError> {
        let mut map = Map::new();
        for (key, value) in [
            ("model_type", json!("llama")),
            ("vocab_size", json!(100)),
            ("hidden_size", json!(64)),
            ("intermediate_size", json!(96)),
            ("num_hidden_layers", json!(6)),
            ("num_attention_heads", json!(4)),
            ("num_key_value_heads", json!(2)),
            ("rms_norm_eps", json!(1e-5)),
            ("unknown_key", json!("kept")),
        ] {
            map.insert(key.into(), value);
        }
        for (key, value) in patch {
            map.insert((*key).into(), value.clone());
        }
        ModelConfig::from_json(map, Path::new("dir/config.json"))
    }

    #[test]
    fn both_spellings_of_the_rotary_settings_are_read() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        let old = parse(&[("rope_theta", json!(5e5)), ("rope_scaling", llama3.clone())]).unwrap();
        let mut new = llama3;
        new["rope_theta"] = json!(5e5);
        let new = parse(&[("rope_parameters", new)]).unwrap();
        assert_eq!((old.rope_theta, old.rope_scaling), (new.rope_theta, new.rope_scaling));
        assert_eq!(old.rope_theta, 5e5);
    }

    #[test]
    fn a_known_key_with_an_unsupported_value_is_refused() {
        let error = parse(&[("model_type", json!("mamba"))]).unwrap_err().to_string();
        assert!(error.starts_with("`dir/config.json`: `model_type: mamba` is not supported\nhint: "), "{error}");
        assert!(parse(&[("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0}))]).is_err());
        assert!(parse(&[("hidden_size", json!("64"))]).is_err());
        assert!(parse(&[("num_key_value_heads", json!(3))]).is_err());
    }

    #[test]
    fn unknown_keys_survive_a_round_trip_and_recursion_changes_the_model_type() {
        let mut config = parse(&[]).unwrap();
        assert_eq!(config.to_json()["unknown_key"], json!("kept"));
        config.recursion = Some(RecursionConfig {
            share_norms: false,
            lora: Some(crate::LoraConfig::uniform(4)),
            ..RecursionConfig::new(2, crate::Sharing::Cycle, crate::Init::Average)
        });
        let json = config.to_json();
        assert_eq!(json["model_type"], json!("recursive_llama"));
        let again = ModelConfig::from_json(json, Path::new("x")).unwrap();
        assert_eq!(again.recursion, config.recursion);
    }
}
