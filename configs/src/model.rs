//! Sizes and constants of a decoder, as in Hugging Face's `config.json`.

use crate::{
    Anatomy, ConfigError, Disguise, MlpKind, NormPosition, Projection, QkNorm, RecursionConfig, ShareMap, TensorPart,
    TensorRole,
    arch::{ARCHITECTURES, Architecture, Sizes},
    json::parse_json,
    keys::Keys,
    nanbeige,
};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Prefix of the `model_type` of a converted checkpoint: other loaders then refuse it instead of
/// silently loading a wrong model.
const RECURSIVE_MODEL_TYPE: &str = "recursive_";
const RECURSIVE_CLASS: &str = "Recursive";
const KEY_VALUE_HEADS: &str = "num_key_value_heads";
/// Keys that belong to Python files beside a `config.json`, which are not copied with it: those of
/// other models' own code, and those that `retie export --to hf` writes.
const OF_PYTHON_FILES: [&str; 2] = ["auto_map", "stack"];

/// Largest size of a dimension of a tensor (a vocabulary of four million tokens), and most layers.
const MOST_WIDTH: usize = 1 << 22;
const MOST_LAYERS: usize = 1 << 14;

/// Shape of a decoder. Field names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct ModelConfig {
    pub architecture: &'static Architecture,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    /// Length of the unrolled stack.
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    /// Components of the layers.
    pub anatomy: Anatomy,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
    /// Recursion of a converted checkpoint; `None` for a plain model.
    pub recursion: Option<RecursionConfig>,
    /// Every key of the file that was read, so that a copy keeps all of them.
    pub other: Map<String, Value>,
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, and every error of [`ModelConfig::from_json`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = fs_err::read(path)?;
        if let Some(found) = Disguise::of(&bytes) {
            return Err(ConfigError::Disguised { path: path.to_owned(), found });
        }
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| ConfigError::NotUtf8 { path: path.to_owned(), offset: error.valid_up_to() })?;
        let value = parse_json(text).map_err(|source| ConfigError::Json { path: path.to_owned(), source })?;
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
    /// When a size is missing or impossible, or a known key has a value that is not implemented.
    pub fn from_json(map: Map<String, Value>, path: &Path) -> Result<Self, ConfigError> {
        let map = match map.get("model_type").and_then(Value::as_str) {
            Some(nanbeige::MODEL_TYPE) => nanbeige::as_recursive(&map, path)?,
            _ => map,
        };
        let keys = Keys { path, map: &map, defaults: &[] };
        let architecture = architecture(&keys)?;
        let keys = Keys { defaults: architecture.defaults(), ..keys };
        if let Some(found) = keys.present("quantization_config") {
            let hint = "use an unquantised checkpoint (f32, bf16 or f16), or a GGUF file";
            return Err(keys.unsupported("quantization_config", found, hint));
        }
        let hidden_size = keys.size_up_to("hidden_size", MOST_WIDTH)?;
        let num_attention_heads = keys.size_up_to("num_attention_heads", MOST_WIDTH)?;
        let num_key_value_heads = match architecture.has_key(KEY_VALUE_HEADS) {
            true => keys.optional_size(KEY_VALUE_HEADS)?.unwrap_or(num_attention_heads),
            false => num_attention_heads,
        };
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let found = json!(num_key_value_heads);
            let expected = format!("a divisor of num_attention_heads = {num_attention_heads}");
            return Err(keys.bad(KEY_VALUE_HEADS, &found, &expected));
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
        if head_dim > MOST_WIDTH / num_attention_heads {
            let expected = format!("at most {MOST_WIDTH} in all heads together");
            return Err(keys.bad("head_dim", &json!(head_dim), &expected));
        }
        let num_hidden_layers = keys.size_up_to("num_hidden_layers", MOST_LAYERS)?;
        let anatomy = architecture.anatomy(&keys, Sizes { hidden_size, num_hidden_layers, head_dim })?;
        let recursion = keys.present("recursion").map(|v| RecursionConfig::deserialize_from(v, path)).transpose()?;
        let vocab_size = keys.size_up_to("vocab_size", MOST_WIDTH)?;
        let config = Self {
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size: keys.size_up_to("intermediate_size", MOST_WIDTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings: keys.size("max_position_embeddings")?,
            anatomy,
            bos_token_id: keys.token_ids("bos_token_id", vocab_size)?.first().copied(),
            eos_token_ids: keys.token_ids("eos_token_id", vocab_size)?,
            recursion,
            other: Map::new(),
        };
        if let Some(recursion) = &config.recursion {
            recursion.validate(&config)?;
        }
        Ok(Self { other: map, ..config })
    }

    /// What a user should be told of the keys that were read: those that are ignored, and those
    /// that contradict one another, with the one that counts. Empty for most files.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let keys = Keys { path: Path::new(""), map: &self.other, defaults: self.architecture.defaults() };
        let mut remarks = self.architecture.remarks(&keys);
        for (key, ids) in [("bos_token_id", self.bos_token_id.as_slice()), ("eos_token_id", &self.eos_token_ids)] {
            for id in ids.iter().filter(|id| **id as usize >= self.vocab_size) {
                let size = self.vocab_size;
                remarks.push(format!("`{key}: {id}` is no token of the model, which has {size}: no text holds it"));
            }
        }
        remarks
    }

    /// Keys of `config.json`: everything that was read but keys of Python files, with `recursion`
    /// and the keys that follow from it set from this value.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = self.other.clone();
        OF_PYTHON_FILES.iter().for_each(|key| _ = map.remove(*key));
        let Architecture { model_type, class_name, .. } = self.architecture;
        match &self.recursion {
            Some(recursion) => {
                map.insert("model_type".into(), json!(format!("{RECURSIVE_MODEL_TYPE}{model_type}")));
                map.insert("architectures".into(), json!([format!("{RECURSIVE_CLASS}{class_name}")]));
                map.insert("num_hidden_layers".into(), json!(self.num_hidden_layers));
                map.extend(self.architecture.depth_keys(&self.anatomy).map(|(key, value)| (key.to_owned(), value)));
                map.insert("recursion".into(), json!(recursion));
            }
            None => {
                map.insert("model_type".into(), json!(model_type));
                map.insert("architectures".into(), json!([class_name]));
                map.remove("recursion");
                if map.get("num_hidden_layers") != Some(&json!(self.num_hidden_layers)) {
                    map.insert("num_hidden_layers".into(), json!(self.num_hidden_layers));
                    map.extend(self.architecture.depth_keys(&self.anatomy).map(|(key, value)| (key.to_owned(), value)));
                }
            }
        }
        map
    }

    /// Sets the longest sequence that the model is used for.
    pub fn set_context(&mut self, tokens: usize) {
        self.max_position_embeddings = tokens;
        self.other.insert("max_position_embeddings".into(), json!(tokens));
    }

    /// Keys of a `nanbeige`, a Llama whose stored layers run in a loop; they state this model if
    /// reading them gives its anatomy, and it is a loop.
    #[must_use]
    pub fn to_nanbeige(&self) -> Map<String, Value> {
        let (mut map, depths) = (self.to_json(), self.share_map());
        map.insert("tie_word_embeddings".into(), json!(self.anatomy.tie_word_embeddings));
        nanbeige::from_recursive(&mut map, depths.num_layers(), depths.num_recursions());
        map
    }

    /// Gives the head a matrix of its own.
    pub fn untie(&mut self) {
        self.anatomy.tie_word_embeddings = false;
        self.other.insert("tie_word_embeddings".into(), json!(false));
    }

    /// Copy with other depths: each takes its attention settings from the depth of this model that
    /// `depths` names.
    ///
    /// # Panics
    /// When `depths` names a depth that does not exist.
    #[must_use]
    pub fn with_depths(&self, depths: &[usize]) -> Self {
        let kinds = depths.iter().map(|depth| self.anatomy.depths[*depth]).collect();
        let anatomy = Anatomy { depths: kinds, ..self.anatomy.clone() };
        Self { num_hidden_layers: depths.len(), anatomy, ..self.clone() }
    }

    /// Plain model with one layer for each depth of this one: its keys are those of the family,
    /// with the attention settings of every depth.
    #[must_use]
    pub fn unrolled(&self) -> Self {
        let mut other = self.other.clone();
        other.remove("recursion");
        other.insert("num_hidden_layers".into(), json!(self.num_hidden_layers));
        other.insert("tie_word_embeddings".into(), json!(self.anatomy.tie_word_embeddings));
        other.extend(self.architecture.depth_keys(&self.anatomy).map(|(key, value)| (key.to_owned(), value)));
        Self { recursion: None, other, ..self.clone() }
    }

    /// Refuses a recursion that does not fit the model. A configuration read from a file has passed
    /// this check; a changed one has to pass it again.
    ///
    /// # Errors
    /// Every error of [`RecursionConfig::validate`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.recursion.as_ref().map_or(Ok(()), |recursion| recursion.validate(self))
    }

    /// Share map of the model; a plain model has one layer per depth.
    ///
    /// # Panics
    /// When [`ModelConfig::validate`] refuses the configuration.
    #[must_use]
    pub fn share_map(&self) -> ShareMap {
        match self.recursion.as_ref().map(|recursion| recursion.lay(self.num_hidden_layers)) {
            None => ShareMap::identity(self.num_hidden_layers),
            Some(Ok(map)) => map,
            Some(Err(error)) => unreachable!("a configuration is validated before it is used: {error}"),
        }
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

    /// Linears of a layer with their shapes `[out, in]`, in the order of the forward pass.
    #[must_use]
    pub fn projection_shapes(&self) -> Vec<(Projection, [usize; 2])> {
        let all = Projection::ALL.into_iter().filter(|projection| self.has_projection(*projection));
        all.map(|projection| (projection, self.projection_shape(projection))).collect()
    }

    /// True if layers have this linear; a plain feed-forward network has no gate.
    #[must_use]
    pub fn has_projection(&self, projection: Projection) -> bool {
        projection != Projection::Gate || matches!(self.anatomy.mlp, MlpKind::Gated(_))
    }

    /// Shape of a linear, `[out, in]`.
    #[must_use]
    pub fn projection_shape(&self, projection: Projection) -> [usize; 2] {
        let (d, f, q, kv) = (self.hidden_size, self.intermediate_size, self.query_size(), self.key_value_size());
        match projection {
            Projection::Q => [q, d],
            Projection::K | Projection::V => [kv, d],
            Projection::O => [d, q],
            Projection::Gate | Projection::Up => [f, d],
            Projection::Down => [d, f],
        }
    }

    /// True if a linear has a bias.
    #[must_use]
    pub fn has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::Q | Projection::K | Projection::V => self.anatomy.qkv_bias,
            Projection::O => self.anatomy.output_bias,
            Projection::Gate | Projection::Up | Projection::Down => self.anatomy.mlp_bias,
        }
    }

    /// Norms and biases of a layer (or of a depth that has its own) with their lengths.
    #[must_use]
    pub fn layer_vectors(&self) -> Vec<(TensorRole, TensorPart, usize)> {
        let mut vectors = Vec::new();
        let mut norm = |position, size| {
            vectors.push((TensorRole::Norm(position), TensorPart::Weight, size));
            if self.anatomy.norm_bias() {
                vectors.push((TensorRole::Norm(position), TensorPart::Bias, size));
            }
        };
        for position in self.anatomy.layer_norms() {
            norm(*position, self.hidden_size);
        }
        let sizes = match self.anatomy.qk_norm {
            None => None,
            Some(QkNorm::Head) => Some([self.head_dim; 2]),
            Some(QkNorm::Full) => Some([self.query_size(), self.key_value_size()]),
        };
        if let Some([query, key]) = sizes {
            norm(NormPosition::Query, query);
            norm(NormPosition::Key, key);
        }
        let biases = self.projection_shapes().into_iter().filter(|(projection, _)| self.has_bias(*projection));
        let bias =
            |(projection, [out, _]): (_, [usize; 2])| (TensorRole::Projection(projection), TensorPart::Bias, out);
        vectors.extend(biases.map(bias));
        vectors
    }
}

fn architecture(keys: &Keys<'_>) -> Result<&'static Architecture, ConfigError> {
    let Some(found) = keys.present("model_type") else {
        return Err(ConfigError::MissingKey { path: keys.path.to_owned(), key: "model_type" });
    };
    let name = found.as_str().unwrap_or_default();
    Architecture::for_model_type(name.strip_prefix(RECURSIVE_MODEL_TYPE).unwrap_or(name)).ok_or_else(|| {
        let known: Vec<String> = ARCHITECTURES.iter().map(|a| format!("`{}` ({})", a.model_type, a.models)).collect();
        let hint = format!("supported: {}, and the folders that `retie convert` writes", known.join(", "));
        keys.unsupported("model_type", found, &hint)
    })
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
        assert_eq!(old.anatomy.ropes, new.anatomy.ropes);
        assert_eq!(old.anatomy.ropes[0].theta, 5e5);
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
        let mut config = parse(&[("auto_map", json!({})), ("stack", json!({}))]).unwrap();
        assert_eq!(config.to_json()["unknown_key"], json!("kept"));
        assert!(!config.to_json().contains_key("auto_map") && !config.to_json().contains_key("stack"));
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
