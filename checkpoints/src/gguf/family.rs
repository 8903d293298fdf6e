//! Architectures of GGUF files that are read, and how their files differ from Hugging Face's folders.
//!
//! Tensor names: <https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py>.

use super::{GgufError, metadata::Metadata};
use serde_json::{Map, Value, json};

/// A family of models.
pub(super) struct Family {
    /// `general.architecture`, and the beginning of its keys.
    pub name: &'static str,
    /// Class and `model_type` in Hugging Face's `config.json`.
    pub class_name: &'static str,
    pub model_type: &'static str,
    pub hidden_act: (&'static str, &'static str),
    /// Keys that it has beyond those of every family.
    pub keys: &'static [&'static str],
    /// Parts of a layer: under `blk.{i}.` there, and under `model.layers.{i}.` here.
    pub layer: &'static [(&'static str, &'static str)],
    /// Whether the rows of q and k are stored for the interleaved form of RoPE.
    pub interleaved_rope: bool,
    /// Whether norms are stored as `1 + w`.
    pub norms_plus_one: bool,
    /// What `config.json` says beyond the sizes.
    pub json: fn(&Metadata, &mut Map<String, Value>) -> Result<(), GgufError>,
}

/// Every family.
pub(super) static FAMILIES: [Family; 2] = [LLAMA, GEMMA3];

const ATTENTION: [(&str, &str); 4] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
];
const MLP: [(&str, &str); 3] =
    [("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];

const LLAMA: Family = Family {
    name: "llama",
    class_name: "LlamaForCausalLM",
    model_type: "llama",
    hidden_act: ("hidden_act", "silu"),
    keys: &[],
    layer: &[
        ("attn_norm", "input_layernorm"),
        ATTENTION[0],
        ATTENTION[1],
        ATTENTION[2],
        ATTENTION[3],
        ("ffn_norm", "post_attention_layernorm"),
        MLP[0],
        MLP[1],
        MLP[2],
    ],
    interleaved_rope: true,
    norms_plus_one: false,
    json: |_, _| Ok(()),
};

/// Gemma 3's files say neither of these: they are those of every published size but 27B, whose scores have another scale.
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
        ("attn_norm", "input_layernorm"),
        ATTENTION[0],
        ATTENTION[1],
        ATTENTION[2],
        ATTENTION[3],
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        MLP[0],
        MLP[1],
        MLP[2],
        ("post_ffw_norm", "post_feedforward_layernorm"),
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
    /// The family of a `general.architecture`.
    pub fn of(architecture: &str) -> Result<&'static Self, GgufError> {
        FAMILIES.iter().find(|family| family.name == architecture).ok_or_else(|| GgufError::Architecture {
            found: architecture.to_owned(),
            supported: FAMILIES.iter().map(|family| family.name).collect(),
        })
    }

    /// A key of the family.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }
}
