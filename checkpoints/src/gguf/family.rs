//! Supported architectures of GGUF files, and their differences from Hugging Face's folders.
//!
//! Tensor names:
//! <https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py>.

use super::{GgufError, metadata::Metadata};
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
    /// Adds the keys of `config.json` beyond the sizes.
    pub json: fn(&Metadata, &mut Map<String, Value>) -> Result<(), GgufError>,
}

/// Every family.
pub(super) static FAMILIES: [Family; 2] = [LLAMA, GEMMA3];

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

const LLAMA: Family = Family {
    name: "llama",
    class_name: "LlamaForCausalLM",
    model_type: "llama",
    hidden_act: ("hidden_act", "silu"),
    keys: &[],
    layer: &[
        (TensorRole::Norm(NormPosition::Input), "attn_norm"),
        ATTENTION[0],
        ATTENTION[1],
        ATTENTION[2],
        ATTENTION[3],
        (TensorRole::Norm(NormPosition::PostAttention), "ffn_norm"),
        MLP[0],
        MLP[1],
        MLP[2],
    ],
    interleaved_rope: true,
    norms_plus_one: false,
    json: |_, _| Ok(()),
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
    hidden_act: ("hidden_activation", "gelu_pytorch_tanh"),
    keys: &["attention.sliding_window"],
    layer: &[
        (TensorRole::Norm(NormPosition::Input), "attn_norm"),
        ATTENTION[0],
        ATTENTION[1],
        ATTENTION[2],
        ATTENTION[3],
        (TensorRole::Norm(NormPosition::Query), "attn_q_norm"),
        (TensorRole::Norm(NormPosition::Key), "attn_k_norm"),
        (TensorRole::Norm(NormPosition::PostAttention), "post_attention_norm"),
        (TensorRole::Norm(NormPosition::PreFeedforward), "ffn_norm"),
        MLP[0],
        MLP[1],
        MLP[2],
        (TensorRole::Norm(NormPosition::PostFeedforward), "post_ffw_norm"),
    ],
    interleaved_rope: false,
    norms_plus_one: true,
    json: |metadata, map| {
        const WINDOW: &str = "gemma3.attention.sliding_window";
        let window = super::metadata::required(metadata.optional_size(WINDOW)?, WINDOW)?;
        if map["num_hidden_layers"] == json!(GEMMA3_27B_LAYERS) {
            return Err(GgufError::Unsupported {
                key: "gemma3.block_count".to_owned(),
                found: GEMMA3_27B_LAYERS.to_string(),
                hint: "the file does not say how scores are scaled at this size; use the model's Hugging Face folder"
                    .to_owned(),
            });
        }
        map.insert("query_pre_attn_scalar".into(), map["head_dim"].clone());
        map.insert("sliding_window".into(), json!(window));
        map.insert("sliding_window_pattern".into(), json!(GEMMA3_PATTERN));
        map.insert("rope_local_base_freq".into(), json!(GEMMA3_LOCAL_THETA));
        Ok(())
    },
};

impl Family {
    /// Family of a value of `general.architecture`.
    pub fn for_architecture(architecture: &str) -> Result<&'static Self, GgufError> {
        FAMILIES.iter().find(|family| family.name == architecture).ok_or_else(|| GgufError::Architecture {
            found: architecture.to_owned(),
            supported: FAMILIES.iter().map(|family| family.name).collect(),
        })
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
