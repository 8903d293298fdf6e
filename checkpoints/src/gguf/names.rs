//! Tensor names: GGUF's → Hugging Face's.
//!
//! Source: <https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py>.

use super::family::Family;

/// Tensor of Llama 3.1's rotary factors, `[H / 2]`; it belongs to the configuration.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";
/// Name of the output projection; absent when the embeddings are tied.
pub(super) const OUTPUT: &str = "output.weight";
/// Name of the embeddings.
pub(super) const TOKEN_EMBEDDINGS: &str = "token_embd.weight";

const MODEL: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

fn lookup(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(gguf, _)| *gguf == name).map(|(_, hugging_face)| *hugging_face)
}

/// Hugging Face's name, or `None` for a tensor that the family does not have.
pub(super) fn to_hugging_face(name: &str, family: &Family) -> Option<String> {
    let (stem, suffix) = name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))?;
    if let Some(model) = lookup(MODEL, stem) {
        return Some(format!("{model}.{suffix}"));
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    Some(format!("model.layers.{layer}.{}.{suffix}", lookup(family.layer, part)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_hugging_face() {
        let family = Family::of("llama").unwrap();
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
            assert_eq!(to_hugging_face(gguf, family).as_deref(), expected, "{gguf}");
        }
    }
}
