//! Supported architectures of GGUF files, and their differences from Hugging Face's folders.
//!
//! Tensor names:
//! <https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py>.

use super::{GgufError, GgufValue, metadata::Metadata};
use retie_config::{ModelConfig, NormPosition, Projection, TensorPart, TensorRole};
use serde_json::{Map, Value, json};

/// A family of models.
pub(super) struct Family {
    /// Value of `general.architecture`, and prefix of its keys.
    pub name: &'static str,
    /// Class and `model_type` in Hugging Face's `config.json`.
    pub class_name: &'static str,
    pub model_type: &'static str,
    pub hidden_act: (&'static str, &'static str),
    /// Keys beyond those of every family.
    pub keys: &'static [&'static str],
    /// Modules of a layer, with their names under `blk.{i}`.
    pub layer: &'static [(TensorRole, &'static str)],
    /// True if the rows of q and k are stored for the interleaved form of RoPE.
    pub interleaved_rope: bool,
    /// True if norms are stored as `1 + w`.
    pub norms_plus_one: bool,
    /// Linears that llama.cpp reads a bias of.
    pub biases: &'static [Projection],
    /// Heads that llama.cpp reads.
    pub head: HeadKind,
    /// Adds the keys of `config.json` beyond the sizes.
    pub json: fn(&Metadata, &mut Map<String, Value>) -> Result<(), GgufError>,
    /// Keys of the file beyond those of every family, without the prefix.
    pub metadata: fn(&ModelConfig) -> Vec<(&'static str, GgufValue)>,
}

/// Heads that llama.cpp reads of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadKind {
    /// Tied embeddings, or a head.
    Either,
    /// Tied embeddings only.
    Tied,
    /// A head only.
    Own,
}

/// Every family.
pub(super) static FAMILIES: [Family; 9] = [LLAMA, QWEN2, QWEN3, SMOLLM3, OLMO2, GEMMA, GEMMA2, GEMMA3, NANBEIGE];

/// Families whose models are stored as those of another: `model_type` and the other's.
const STORED_AS: [(&str, &str); 1] = [("mistral", "llama")];

const ATTENTION: [(TensorRole, &str); 4] = [
    (TensorRole::Projection(Projection::Q), "attn_q"),
    (TensorRole::Projection(Projection::K), "attn_k"),
    (TensorRole::Projection(Projection::V), "attn_v"),
    (TensorRole::Projection(Projection::O), "attn_output"),
];
const MLP: [(TensorRole, &str); 3] = [
    (TensorRole::Projection(Projection::Gate), "ffn_gate"),
    (TensorRole::Projection(Projection::Up), "ffn_up"),
    (TensorRole::Projection(Projection::Down), "ffn_down"),
];

const QKV: &[Projection] = &[Projection::Q, Projection::K, Projection::V];

/// Modules of a layer with norms before its parts.
const PRE_NORM: [(TensorRole, &str); 9] = [
    (TensorRole::Norm(NormPosition::Input), "attn_norm"),
    ATTENTION[0],
    ATTENTION[1],
    ATTENTION[2],
    ATTENTION[3],
    (TensorRole::Norm(NormPosition::PostAttention), "ffn_norm"),
    MLP[0],
    MLP[1],
    MLP[2],
];
const QUERY_NORM: (TensorRole, &str) = (TensorRole::Norm(NormPosition::Query), "attn_q_norm");
const KEY_NORM: (TensorRole, &str) = (TensorRole::Norm(NormPosition::Key), "attn_k_norm");

/// Modules of a Gemma's layer with norms before and behind its parts.
const SANDWICH: [(TensorRole, &str); 11] = [
    (TensorRole::Norm(NormPosition::Input), "attn_norm"),
    ATTENTION[0],
    ATTENTION[1],
    ATTENTION[2],
    ATTENTION[3],
    (TensorRole::Norm(NormPosition::PostAttention), "post_attention_norm"),
    (TensorRole::Norm(NormPosition::PreFeedforward), "ffn_norm"),
    MLP[0],
    MLP[1],
    MLP[2],
    (TensorRole::Norm(NormPosition::PostFeedforward), "post_ffw_norm"),
];

const LLAMA: Family = Family {
    name: "llama",
    class_name: "LlamaForCausalLM",
    model_type: "llama",
    hidden_act: ("hidden_act", "silu"),
    keys: &[],
    layer: &PRE_NORM,
    interleaved_rope: true,
    norms_plus_one: false,
    biases: &Projection::ALL,
    head: HeadKind::Either,
    json: |_, _| Ok(()),
    metadata: |config| vec![("vocab_size", size(config.vocab_size)), rope_dimensions(config)],
};

const QWEN2: Family = Family {
    name: "qwen2",
    class_name: "Qwen2ForCausalLM",
    model_type: "qwen2",
    interleaved_rope: false,
    biases: QKV,
    metadata: |_| Vec::new(),
    ..LLAMA
};

const QWEN3: Family = Family {
    name: "qwen3",
    class_name: "Qwen3ForCausalLM",
    model_type: "qwen3",
    layer: &[
        PRE_NORM[0],
        PRE_NORM[1],
        PRE_NORM[2],
        PRE_NORM[3],
        PRE_NORM[4],
        QUERY_NORM,
        KEY_NORM,
        PRE_NORM[5],
        PRE_NORM[6],
        PRE_NORM[7],
        PRE_NORM[8],
    ],
    ..QWEN2
};

const SMOLLM3: Family =
    Family { name: "smollm3", class_name: "SmolLM3ForCausalLM", model_type: "smollm3", biases: QKV, ..LLAMA };

const OLMO2: Family = Family {
    name: "olmo2",
    class_name: "Olmo2ForCausalLM",
    model_type: "olmo2",
    layer: &[
        ATTENTION[0],
        ATTENTION[1],
        ATTENTION[2],
        ATTENTION[3],
        QUERY_NORM,
        KEY_NORM,
        (TensorRole::Norm(NormPosition::PostAttention), "post_attention_norm"),
        MLP[0],
        MLP[1],
        MLP[2],
        (TensorRole::Norm(NormPosition::PostFeedforward), "post_ffw_norm"),
    ],
    head: HeadKind::Own,
    ..QWEN2
};

const GEMMA: Family = Family {
    name: "gemma",
    class_name: "GemmaForCausalLM",
    model_type: "gemma",
    hidden_act: ("hidden_activation", "gelu_pytorch_tanh"),
    norms_plus_one: true,
    head: HeadKind::Tied,
    ..QWEN2
};

/// Layers of Gemma 2 27B, which scales attention scores differently; its file does not say so.
const GEMMA2_27B_LAYERS: usize = 46;
/// Window of Gemma 2 where its file states none.
const GEMMA2_WINDOW: usize = 4096;

const GEMMA2: Family = Family {
    name: "gemma2",
    class_name: "Gemma2ForCausalLM",
    model_type: "gemma2",
    keys: &["attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"],
    layer: &SANDWICH,
    json: |metadata, map| {
        refuse_other_scale("gemma2", GEMMA2_27B_LAYERS, map)?;
        let window = metadata.optional_size("gemma2.attention.sliding_window")?.unwrap_or(GEMMA2_WINDOW);
        map.insert("query_pre_attn_scalar".into(), map["head_dim"].clone());
        map.insert("sliding_window".into(), json!(window));
        for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
            map.insert(cap.into(), json!(metadata.optional_number(&format!("gemma2.{cap}"))?));
        }
        Ok(())
    },
    metadata: |config| {
        let anatomy = &config.anatomy;
        let caps = [
            ("attn_logit_softcapping", anatomy.attn_logit_softcapping),
            ("final_logit_softcapping", anatomy.final_logit_softcapping),
        ];
        let caps = caps.into_iter().filter_map(|(key, cap)| Some((key, GgufValue::F32(cap? as f32))));
        window(config).into_iter().chain(caps).collect()
    },
    ..GEMMA
};

/// Constants that Gemma 3's files do not state. They hold for every published size except 27B,
/// which scales attention scores differently.
const GEMMA3_PATTERN: usize = 6;
const GEMMA3_LOCAL_THETA: f64 = 10_000.0;
const GEMMA3_27B_LAYERS: usize = 62;

const GEMMA3: Family = Family {
    name: "gemma3",
    class_name: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    keys: &["attention.sliding_window", "final_logit_softcapping", "rope.freq_base_swa"],
    layer: &[
        SANDWICH[0],
        SANDWICH[1],
        SANDWICH[2],
        SANDWICH[3],
        SANDWICH[4],
        QUERY_NORM,
        KEY_NORM,
        SANDWICH[5],
        SANDWICH[6],
        SANDWICH[7],
        SANDWICH[8],
        SANDWICH[9],
        SANDWICH[10],
    ],
    head: HeadKind::Either,
    json: |metadata, map| {
        const WINDOW: &str = "gemma3.attention.sliding_window";
        let window = super::metadata::required(metadata.optional_size(WINDOW)?, WINDOW)?;
        refuse_other_scale("gemma3", GEMMA3_27B_LAYERS, map)?;
        let theta = metadata.optional_number("gemma3.rope.freq_base_swa")?.unwrap_or(GEMMA3_LOCAL_THETA);
        map.insert("query_pre_attn_scalar".into(), map["head_dim"].clone());
        map.insert("sliding_window".into(), json!(window));
        map.insert("sliding_window_pattern".into(), json!(GEMMA3_PATTERN));
        map.insert("rope_local_base_freq".into(), json!(theta));
        let cap = "final_logit_softcapping";
        map.insert(cap.into(), json!(metadata.optional_number(&format!("gemma3.{cap}"))?));
        Ok(())
    },
    metadata: |config| {
        let anatomy = &config.anatomy;
        let cap = anatomy.final_logit_softcapping.map(|cap| ("final_logit_softcapping", GgufValue::F32(cap as f32)));
        let local = anatomy.ropes.get(1).map(|rope| ("rope.freq_base_swa", GgufValue::F32(rope.theta as f32)));
        window(config).into_iter().chain(cap).chain(local).collect()
    },
    ..GEMMA2
};

/// Keys of a loop in a file, and those of a folder that have the same names.
const NUM_LOOPS: &str = "num_loops";
const SKIP_LOOP_NORM: &str = "skip_loop_final_norm";

/// A Llama, or with biases of q, k and v a Qwen2, whose layers run `num_loops` times.
const NANBEIGE: Family = Family {
    name: "nanbeige",
    class_name: "NanbeigeForCausalLM",
    model_type: "nanbeige",
    keys: &[NUM_LOOPS, SKIP_LOOP_NORM],
    biases: QKV,
    json: |metadata, map| {
        let loops = metadata.optional_size(&format!("nanbeige.{NUM_LOOPS}"))?;
        map.insert(NUM_LOOPS.into(), json!(loops.unwrap_or(1)));
        map.insert(SKIP_LOOP_NORM.into(), json!(metadata.flag(&format!("nanbeige.{SKIP_LOOP_NORM}"))?));
        Ok(())
    },
    metadata: |config| {
        vec![
            ("vocab_size", size(config.vocab_size)),
            rope_dimensions(config),
            (NUM_LOOPS, size(config.share_map().num_recursions())),
            (SKIP_LOOP_NORM, GgufValue::Bool(true)),
        ]
    },
    ..LLAMA
};

fn size(n: usize) -> GgufValue {
    GgufValue::U32(u32::try_from(n).unwrap_or(u32::MAX))
}

fn rope_dimensions(config: &ModelConfig) -> (&'static str, GgufValue) {
    ("rope.dimension_count", size(config.head_dim))
}

/// Window of the first depth that has one.
fn window(config: &ModelConfig) -> Option<(&'static str, GgufValue)> {
    let window = config.anatomy.depths.iter().find_map(|depth| depth.window)?;
    Some(("attention.sliding_window", size(window)))
}

/// Refuses the size of a family at which llama.cpp scales attention scores by another number than
/// the size of a head.
fn refuse_other_scale(family: &str, layers: usize, map: &Map<String, Value>) -> Result<(), GgufError> {
    if map["num_hidden_layers"] != json!(layers) {
        return Ok(());
    }
    Err(GgufError::Unsupported {
        key: format!("{family}.block_count"),
        found: layers.to_string(),
        hint: "the file does not say how scores are scaled at this size; use the model's Hugging Face folder"
            .to_owned(),
    })
}

impl Family {
    /// Family of a value of `general.architecture`.
    pub fn for_architecture(architecture: &str) -> Result<&'static Self, GgufError> {
        FAMILIES.iter().find(|family| family.name == architecture).ok_or_else(|| GgufError::Architecture {
            found: architecture.to_owned(),
            supported: FAMILIES.iter().map(|family| family.name).collect(),
        })
    }

    /// Family that a model is stored as; `None` if there is none.
    pub fn for_model(config: &ModelConfig) -> Option<&'static Self> {
        if config.recursion.is_some() {
            return FAMILIES.iter().find(|family| family.name == NANBEIGE.name);
        }
        let model_type = config.architecture.model_type;
        let stored_as = STORED_AS.iter().find(|(other, _)| *other == model_type).map_or(model_type, |(_, name)| *name);
        FAMILIES.iter().find(|family| family.model_type == stored_as)
    }

    /// Number of heads whose rows are stored in another order, for a weight or bias of the query
    /// and key projections; `None` for other tensors.
    pub fn permuted_heads(&self, role: TensorRole, config: &ModelConfig) -> Option<usize> {
        match role {
            _ if !self.interleaved_rope => None,
            TensorRole::Projection(Projection::Q) => Some(config.num_attention_heads),
            TensorRole::Projection(Projection::K) => Some(config.num_key_value_heads),
            _ => None,
        }
    }

    /// True if the values of a tensor are stored with 1 added.
    pub fn is_plus_one(&self, role: TensorRole, part: TensorPart) -> bool {
        let is_norm = matches!(role, TensorRole::Norm(_) | TensorRole::FinalNorm);
        self.norms_plus_one && is_norm && part == TensorPart::Weight
    }

    /// Full name of a key of the family.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }
}
