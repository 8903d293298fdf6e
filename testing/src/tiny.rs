//! A tiny Llama, random weights for any configuration, and models of the two.

use burn::tensor::Device;
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow};
use retie_config::{ModelConfig, RecursionConfig, TensorInit, TensorSpec};
use retie_model::CausalLm;
use serde_json::{Value, json};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
};

/// Vocabulary of [`tiny_llama`].
pub const VOCAB_SIZE: usize = 61;
/// Positions of [`tiny_llama`].
pub const CONTEXT: usize = 64;
/// The end of a text of [`tiny_llama`].
pub const EOS: u32 = 60;

/// A Llama of six layers of width 16 with grouped queries, not recursive.
pub fn tiny_llama() -> ModelConfig {
    let Value::Object(map) = json!({
        "model_type": "llama", "vocab_size": VOCAB_SIZE, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT, "eos_token_id": EOS,
    }) else {
        unreachable!()
    };
    ModelConfig::from_json(map, Path::new("tiny")).unwrap()
}

/// [`tiny_llama`] with a recursion and [`RandomWeights`], on the CPU.
pub fn random_model(recursion: Option<RecursionConfig>) -> CausalLm {
    let config = ModelConfig { recursion, ..tiny_llama() };
    CausalLm::load(&config, &RandomWeights::new(&config), &Device::flex()).unwrap()
}

/// A model of `config` with [`RandomWeights`] and a head so large that logits are infinite,
/// although no weight is.
pub fn overflowing_model(config: &ModelConfig) -> CausalLm {
    CausalLm::load(config, &LargeHead(RandomWeights::new(config)), &Device::flex()).unwrap()
}

/// The weights that a configuration asks for, drawn by name: between −½ and ½. Norms, scalars of
/// activations and whatever starts at 1 lie around 1, because a divisor near 0 would amplify
/// rounding.
#[derive(Debug)]
pub struct RandomWeights(BTreeMap<String, Drawn>);

#[derive(Debug)]
struct Drawn {
    info: TensorInfo,
    center: f32,
    width: f32,
}

impl RandomWeights {
    /// Weights for `config`.
    pub fn new(config: &ModelConfig) -> Self {
        let drawn = |spec: TensorSpec| {
            let name = spec.name();
            let is_factor = ["norm", "activation."].iter().any(|part| name.contains(part));
            let is_factor = is_factor || spec.init == TensorInit::Constant(1.0);
            let (center, width) = if is_factor { (1.0, 0.5) } else { (0.0, 1.0) };
            (name, Drawn { info: TensorInfo { dtype: Dtype::F32, shape: spec.shape }, center, width })
        };
        Self(config.tensors().into_iter().map(drawn).collect())
    }
}

/// [`RandomWeights`] with a head of almost the largest numbers of f32.
struct LargeHead(RandomWeights);

impl TensorSource for LargeHead {
    fn names(&self) -> Vec<&str> {
        self.0.names()
    }
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.0.info(name)
    }
    fn path_of(&self, name: &str) -> &Path {
        self.0.path_of(name)
    }
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        if !name.starts_with("lm_head") {
            return self.0.bytes(name);
        }
        let values: Vec<f32> = self.0.read_f32(name)?.into_iter().map(|value| value * f32::MAX).collect();
        Ok(Cow::Owned(narrow(&values, Dtype::F32)))
    }
}

impl TensorSource for RandomWeights {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.0.get(name).map(|drawn| &drawn.info)
    }
    fn path_of(&self, _: &str) -> &Path {
        Path::new("random")
    }
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let Drawn { info, center, width } = &self.0[name];
        let value = |i: usize| {
            let mut hasher = DefaultHasher::new();
            (name, i).hash(&mut hasher);
            let uniform = (hasher.finish() >> 11) as f32 / (1u64 << 53) as f32 - 0.5;
            center + width * uniform
        };
        let values: Vec<f32> = (0..info.num_elements()).map(value).collect();
        Ok(narrow(&values, Dtype::F32).into())
    }
}
