//! Facts that `retie inspect` reports. The fields are the keys of its JSON.

use crate::model;
use anyhow::Context;
use retie_checkpoint::{GgufFile, ModelSource, Provenance, StoredLayer, stored_layers};
use retie_config::{
    Anatomy, Cost, DepthKind, ModelConfig, RecursionConfig, Rope, RopeScaling, Sharing, dividing_recursions,
};
use retie_convert::{Alias, ConvertReport, ParameterCounts, REPORT_FILE};
use serde::Serialize;
use std::collections::BTreeMap;

/// All facts about a model.
#[derive(Debug, Serialize)]
pub struct Inspection {
    pub model: String,
    pub path: String,
    pub architecture: String,
    pub sizes: Sizes,
    pub parameters: Parameters,
    /// Stored tensors by element type.
    pub stored: BTreeMap<String, Stored>,
    pub kv_cache_bytes_per_token: KvCacheBytes,
    /// With `--cost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<SequenceCost>,
    pub tokenizer: Option<TokenizerFacts>,
    /// Numbers of recursions that divide the layers that a sharing pattern shares, by pattern. Only
    /// for a model that is not recursive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dividing_recursions: Option<BTreeMap<&'static str, Vec<usize>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recursion: Option<Recursion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// Sizes and flags from `config.json`.
#[derive(Debug, Serialize)]
pub struct Sizes {
    pub num_hidden_layers: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    /// Rotary position embeddings of the model.
    pub rope: Vec<RopeFacts>,
    pub norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// Attention of each depth; empty if all depths are alike and without a window.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub depths: Vec<DepthFacts>,
}

/// A rotary position embedding.
#[derive(Debug, Serialize)]
pub struct RopeFacts {
    pub theta: f64,
    pub scaling: &'static str,
    /// Rotated dimensions of a head.
    pub rotary_dim: usize,
}

/// Attention of one depth.
#[derive(Debug, Serialize)]
pub struct DepthFacts {
    /// Description in words.
    #[serde(skip)]
    pub kind: String,
    /// Base of the rotary position embedding, if there is one.
    pub rope_theta: Option<f64>,
    /// Attention window in tokens, if there is one.
    pub window: Option<usize>,
}

/// Numbers of stored parameters; a shared parameter counts once.
#[derive(Debug, Serialize)]
pub struct Parameters {
    pub embedding: usize,
    pub non_embedding: usize,
    pub total: usize,
    /// Parameters of the LoRA, part of `non_embedding`.
    pub lora: usize,
    /// Norms and biases that belong to one depth, part of `non_embedding`.
    pub depth_vectors: usize,
    /// Extras: vectors that the conversion added, part of `non_embedding`.
    pub extras: usize,
    /// Mechanisms of steps, part of `non_embedding`; absent without any.
    #[serde(skip_serializing_if = "is_zero")]
    pub steps: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Tensors of one element type.
#[derive(Debug, Default, Serialize)]
pub struct Stored {
    pub tensors: usize,
    pub parameters: usize,
    /// Size in bytes; absent for types that quantise elements in blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
}

/// Keys and values of one token at all depths, as a cache holds them.
#[derive(Debug, Serialize)]
pub struct KvCacheBytes {
    pub f32: usize,
}

/// Cost of the forward pass of one sequence, by formula.
#[derive(Debug, Serialize)]
pub struct SequenceCost {
    /// Tokens of the sequence.
    pub tokens: usize,
    /// Part of the tokens that is expected in each recursion; of a routed model only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<Vec<f64>>,
    /// The model, with these shares.
    pub expected: Cost,
    /// The same model without routers and KV sharing.
    pub full_recursion: Cost,
}

/// Facts about the tokenizer.
#[derive(Debug, Serialize)]
pub struct TokenizerFacts {
    pub tokens: usize,
    pub largest_id: u32,
    pub sha256: String,
    pub bos: Option<Token>,
    pub eos: Vec<Token>,
}

/// A token and its text.
#[derive(Debug, Serialize)]
pub struct Token {
    pub id: u32,
    pub text: Option<String>,
}

/// Facts about a recursive model.
#[derive(Debug, Serialize)]
pub struct Recursion {
    #[serde(flatten)]
    pub config: RecursionConfig,
    pub stored_layers: usize,
    /// Stored layers and the depths that run them, from the bytes on disk.
    pub layers: Vec<StoredLayer>,
    /// Layer of each depth; `sources` is empty if the folder has no `convert.json`.
    pub aliases: Vec<Alias>,
}

impl Inspection {
    /// Looks at `source`, whose tensors have been checked, and at a sequence of `cost_tokens`
    /// tokens.
    pub fn from_source(source: &ModelSource, cost_tokens: Option<usize>) -> anyhow::Result<Self> {
        let config = &source.config;
        let counts = ParameterCounts::from_config(config);
        let plain = config.recursion.is_none();
        Ok(Self {
            model: source.spec.clone(),
            path: source.path.display().to_string(),
            architecture: match plain {
                true => config.architecture.model_type.to_owned(),
                false => format!("recursive_{}", config.architecture.model_type),
            },
            sizes: Sizes::from_config(config),
            parameters: Parameters {
                embedding: counts.embedding,
                non_embedding: counts.non_embedding(),
                total: counts.total(),
                lora: counts.lora,
                depth_vectors: counts.depth_vectors,
                extras: counts.extras,
                steps: counts.steps,
            },
            stored: stored(source)?,
            kv_cache_bytes_per_token: KvCacheBytes::from_config(config),
            cost: cost_tokens.map(|tokens| SequenceCost::from_config(config, tokens)),
            tokenizer: source.tokenizer_json().map(|_| TokenizerFacts::from_source(source)).transpose()?,
            dividing_recursions: plain.then(|| {
                Sharing::ALL.iter().map(|s| (s.name(), dividing_recursions(config.num_hidden_layers, *s))).collect()
            }),
            recursion: config
                .recursion
                .as_ref()
                .map(|recursion| Recursion::from_recursion(recursion, source))
                .transpose()?,
            provenance: if source.path.is_dir() { Provenance::load(&source.path)? } else { None },
        })
    }
}

impl KvCacheBytes {
    fn from_config(config: &ModelConfig) -> Self {
        let cost = config.cost(1, config.expected_shares().as_deref());
        Self { f32: cost.cache_bytes.round() as usize }
    }
}

impl SequenceCost {
    fn from_config(config: &ModelConfig, tokens: usize) -> Self {
        let shares = config.expected_shares();
        let expected = config.cost(tokens, shares.as_deref());
        Self { tokens, shares, expected, full_recursion: config.full_recursion_cost(tokens) }
    }
}

impl Sizes {
    fn from_config(config: &ModelConfig) -> Self {
        let anatomy = &config.anatomy;
        Self {
            num_hidden_layers: config.num_hidden_layers,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
            rope: anatomy.ropes.iter().map(RopeFacts::from_rope).collect(),
            norm_eps: anatomy.norm_eps,
            tie_word_embeddings: anatomy.tie_word_embeddings,
            qkv_bias: anatomy.qkv_bias,
            output_bias: anatomy.output_bias,
            mlp_bias: anatomy.mlp_bias,
            depths: match anatomy.depths.windows(2).all(|pair| pair[0] == pair[1]) && anatomy.depths[0].window.is_none()
            {
                true => Vec::new(),
                false => anatomy.depths.iter().map(|kind| DepthFacts::from_kind(*kind, anatomy)).collect(),
            },
        }
    }
}

impl RopeFacts {
    fn from_rope(rope: &Rope) -> Self {
        let scaling = match rope.scaling {
            RopeScaling::Default => "none",
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Llama3 { .. } => "llama3",
        };
        Self { theta: rope.theta, scaling, rotary_dim: rope.rotary_dim }
    }
}

impl DepthFacts {
    fn from_kind(kind: DepthKind, anatomy: &Anatomy) -> Self {
        Self {
            kind: anatomy.describe(kind),
            rope_theta: kind.rope.map(|rope| anatomy.ropes[rope].theta),
            window: kind.window,
        }
    }
}

fn stored(source: &ModelSource) -> anyhow::Result<BTreeMap<String, Stored>> {
    // A GGUF source presents quantised tensors as F32, so their stored types come from the file.
    let gguf = if source.path.is_file() { Some(GgufFile::open(&source.path)?) } else { None };
    let mut stored: BTreeMap<String, Stored> = BTreeMap::new();
    for name in source.tensors.names() {
        let info = source.tensors.info(name).with_context(|| format!("tensor `{name}` has no description"))?;
        let compressed = gguf.as_ref().and_then(|file| file.stored_type(name));
        let is_plain = compressed.is_none_or(|name| matches!(name, "F32" | "F16" | "BF16"));
        let entry = stored.entry(compressed.unwrap_or(info.dtype.name()).to_owned()).or_default();
        entry.tensors += 1;
        entry.parameters += info.num_elements();
        if is_plain {
            *entry.bytes.get_or_insert(0) += info.num_bytes();
        }
    }
    Ok(stored)
}

impl TokenizerFacts {
    fn from_source(source: &ModelSource) -> anyhow::Result<Self> {
        let tokenizer = model::tokenizer(source)?;
        let token = |id: u32| Token { id, text: tokenizer.token(id) };
        Ok(Self {
            tokens: tokenizer.vocab_size(),
            largest_id: tokenizer.largest_id(),
            sha256: tokenizer.fingerprint().to_owned(),
            bos: source.config.bos_token_id.map(token),
            eos: source.config.eos_token_ids.iter().copied().map(token).collect(),
        })
    }
}

impl Recursion {
    fn from_recursion(recursion: &RecursionConfig, source: &ModelSource) -> anyhow::Result<Self> {
        let map = source.config.share_map();
        let report = source.path.join(REPORT_FILE);
        let converted: Option<ConvertReport> = match report.is_file() {
            true => {
                let text = fs_err::read(&report)?;
                Some(serde_json::from_slice(&text).with_context(|| format!("`{}` cannot be read", report.display()))?)
            }
            false => None,
        };
        let converted = |depth: usize| converted.as_ref().and_then(|report| report.aliases.get(depth));
        let aliases = map.depths().iter().map(|step| Alias {
            depth: step.depth.0,
            layer: step.layer.0,
            recursion: step.recursion,
            stands_for: converted(step.depth.0).and_then(|alias| alias.stands_for),
            sources: converted(step.depth.0).map(|alias| alias.sources.clone()).unwrap_or_default(),
        });
        Ok(Self {
            config: recursion.clone(),
            stored_layers: map.num_layers(),
            layers: stored_layers(&source.config, source.tensors.as_ref())?,
            aliases: aliases.collect(),
        })
    }
}
