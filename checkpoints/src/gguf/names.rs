//! Tensor names of the `llama` architecture: GGUF's → Hugging Face's.
//!
//! Source: <https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py>.

/// Tensor of Llama 3.1's rotary factors, `[H / 2]`; it belongs to the configuration.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";
/// Name of the output projection; absent when the embeddings are tied.
pub(super) const OUTPUT: &str = "output.weight";
/// Name of the embeddings.
pub(super) const TOKEN_EMBEDDINGS: &str = "token_embd.weight";

const MODEL: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Under `blk.{i}.` there and `model.layers.{i}.` here.
const LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

fn lookup(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(gguf, _)| *gguf == name).map(|(_, hugging_face)| *hugging_face)
}

/// Hugging Face's name, or `None` for a tensor that a Llama does not have.
pub(super) fn to_hugging_face(name: &str) -> Option<String> {
    let (stem, suffix) = name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))?;
    if let Some(model) = lookup(MODEL, stem) {
        return Some(format!("{model}.{suffix}"));
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    Some(format!("model.layers.{layer}.{}.{suffix}", lookup(LAYER, part)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_hugging_face() {
        let pairs = [
            ("token_embd.weight", Some("model.embed_tokens.weight")),
            ("output.weight", Some("lm_head.weight")),
            ("output_norm.weight", Some("model.norm.weight")),
            ("blk.12.attn_output.weight", Some("model.layers.12.self_attn.o_proj.weight")),
            ("blk.0.attn_k.bias", Some("model.layers.0.self_attn.k_proj.bias")),
            ("blk.0.ffn_gate_inp.weight", None),
            ("blk.x.attn_k.weight", None),
            ("blk.0.attn_k.scale", None),
            ("v.blk.0.attn_k.weight", None),
            ("token_embd", None),
        ];
        for (gguf, expected) in pairs {
            assert_eq!(to_hugging_face(gguf).as_deref(), expected, "{gguf}");
        }
    }
}
