//! Tiny random models of every family, plain and recursive.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part of it")]

use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow};
use retie_config::{Architecture, ModelConfig, RecursionConfig, TensorSpec};
use retie_export::ExportModel;
use serde_json::{Map, Value, json};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
};

/// Depths of every model.
pub const DEPTHS: usize = 6;

/// A plain model of a family with 6 layers. Families whose depths differ in kind have both kinds.
pub fn family(architecture: &Architecture) -> ModelConfig {
    let Value::Object(mut map) = json!({
        "model_type": architecture.model_type, "vocab_size": 40, "hidden_size": 16, "intermediate_size": 12,
        "num_hidden_layers": DEPTHS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "eos_token_id": 2, "a_key_of_someone_else": "kept",
    }) else {
        unreachable!()
    };
    let more = match architecture.model_type {
        "llama" => json!({ "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true }),
        "mistral" => json!({ "sliding_window": 7 }),
        "qwen2" => json!({ "use_sliding_window": true, "sliding_window": 5, "max_window_layers": 3 }),
        "qwen3" => json!({ "attention_bias": true, "tie_word_embeddings": true }),
        "smollm3" => json!({ "no_rope_layer_interval": 2 }),
        "gemma" => json!({ "hidden_act": "gelu_pytorch_tanh" }),
        "gemma2" => json!({
            "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 5, "sliding_window": 6,
            "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
        }),
        "gemma3_text" => json!({
            "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 5, "sliding_window": 6,
            "sliding_window_pattern": 3,
        }),
        "gpt_neox" => json!({
            "num_key_value_heads": 4, "head_dim": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_pct": 0.5,
        }),
        "olmo2" => json!({ "tie_word_embeddings": false }),
        other => panic!("`{other}` has no line in this test"),
    };
    let Value::Object(more) = more else { unreachable!() };
    map.extend(more);
    read(map)
}

pub fn read(map: Map<String, Value>) -> ModelConfig {
    ModelConfig::from_json(map, Path::new("tiny")).unwrap()
}

/// `config` with a recursion, as a folder has it: its `config.json` is written and read again.
pub fn recursive(config: &ModelConfig, recursion: RecursionConfig) -> ModelConfig {
    read(ModelConfig { recursion: Some(recursion), ..config.clone() }.to_json())
}

/// A random model: its configuration, and the tensors that it asks for, drawn by name.
pub struct Tiny {
    pub config: ModelConfig,
    infos: BTreeMap<String, TensorInfo>,
    /// Tensors that hold zeros.
    zeros: Vec<String>,
    pub companions: Vec<(String, Vec<u8>)>,
}

impl Tiny {
    pub fn new(config: ModelConfig, dtype: Dtype) -> Self {
        let info = |spec: TensorSpec| (spec.name(), TensorInfo { dtype, shape: spec.shape });
        let infos = config.tensors().into_iter().map(info).collect();
        Self { config, infos, zeros: Vec::new(), companions: vec![("tokenizer.json".to_owned(), b"{}".to_vec())] }
    }

    /// The same with zeros in every tensor whose name contains `part`.
    pub fn with_zeros(mut self, part: &str) -> Self {
        self.zeros.extend(self.infos.keys().filter(|name| name.contains(part)).cloned());
        self
    }

    pub fn model(&self) -> ExportModel<'_> {
        ExportModel { name: "tiny", tensors: self, config: &self.config, companions: &self.companions }
    }
}

impl TensorSource for Tiny {
    fn names(&self) -> Vec<&str> {
        self.infos.keys().map(String::as_str).collect()
    }
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.infos.get(name)
    }
    fn path_of(&self, _: &str) -> &Path {
        Path::new("tiny")
    }
    /// Between −½ and ½; norms, scales and magnitudes around 1.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let info = &self.infos[name];
        let around_one = ["norm", "scale", "magnitude"].iter().any(|part| name.contains(part));
        let value = |i: usize| {
            let mut hasher = DefaultHasher::new();
            (name, i).hash(&mut hasher);
            let uniform = (hasher.finish() >> 11) as f32 / (1u64 << 53) as f32 - 0.5;
            let value = if around_one { 1.0 + 0.5 * uniform } else { uniform };
            if self.zeros.iter().any(|zero| zero == name) { 0.0 } else { value }
        };
        let values: Vec<f32> = (0..info.num_elements()).map(value).collect();
        Ok(narrow(&values, info.dtype).into())
    }
}
