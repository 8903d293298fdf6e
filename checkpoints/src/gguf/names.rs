//! Names of tensors in a GGUF file.
//!
//! Source: <https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py>.

use super::family::Family;
use retie_config::{TensorOwner, TensorPart, TensorRole};

/// Llama 3.1's rotary factors, `[H / 2]`, which belong to the configuration.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";
/// Name of the embeddings.
pub(super) const TOKEN_EMBEDDINGS: &str = "token_embd.weight";

/// Tensors outside of layers, in every family.
const MODEL: &[(TensorRole, &str)] =
    &[(TensorRole::Embedding, "token_embd"), (TensorRole::FinalNorm, "output_norm"), (TensorRole::Head, "output")];

/// Name of a tensor in a file of `family`; `None` for a tensor that its files do not have.
pub(super) fn to_gguf(owner: TensorOwner, role: TensorRole, part: TensorPart, family: &Family) -> Option<String> {
    let lookup = |table: &'static [(TensorRole, &'static str)]| table.iter().find(|(known, _)| *known == role);
    let (prefix, (_, stem)) = match owner {
        TensorOwner::Model => (String::new(), lookup(MODEL)?),
        TensorOwner::Layer(layer) => (format!("blk.{layer}."), lookup(family.layer)?),
        TensorOwner::Depth(_) | TensorOwner::Router(..) => return None,
    };
    let part = match part {
        TensorPart::Weight => "weight",
        TensorPart::Bias => "bias",
    };
    Some(format!("{prefix}{stem}.{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::{Depth, LayerIndex, NormPosition, Projection};

    #[test]
    fn names_are_those_of_llama_cpp() {
        let family = Family::for_architecture("llama").unwrap();
        let layer = |index| TensorOwner::Layer(LayerIndex(index));
        for (owner, role, part, expected) in [
            (TensorOwner::Model, TensorRole::Embedding, TensorPart::Weight, Some("token_embd.weight")),
            (TensorOwner::Model, TensorRole::Head, TensorPart::Weight, Some("output.weight")),
            (TensorOwner::Model, TensorRole::FinalNorm, TensorPart::Weight, Some("output_norm.weight")),
            (layer(12), TensorRole::Projection(Projection::O), TensorPart::Weight, Some("blk.12.attn_output.weight")),
            (layer(0), TensorRole::Projection(Projection::K), TensorPart::Bias, Some("blk.0.attn_k.bias")),
            (layer(0), TensorRole::Norm(NormPosition::Query), TensorPart::Weight, None),
            (TensorOwner::Depth(Depth(0)), TensorRole::LoraA(Projection::K), TensorPart::Weight, None),
        ] {
            assert_eq!(to_gguf(owner, role, part, family).as_deref(), expected, "{owner:?} {role:?}");
        }
    }
}
