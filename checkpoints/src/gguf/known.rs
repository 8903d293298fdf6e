//! Metadata keys outside of a family's own, sorted into those that refuse a file, those that are
//! read or change nothing, and the rest, which is named in a warning.
//!
//! Keys: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use super::{GgufError, metadata::Metadata};

/// Beginnings of keys that are notes, or that the family's reader has judged.
const PREFIXES: [&str; 6] = ["general.", "split.", "quantize.", "imatrix.", "tokenizer.chat_template", "training."];

/// Keys of the tokenizer that are read, or that change nothing for the tokenizers that are
/// supported: names of tokens that no text is cut by.
const TOKENIZER: [&str; 29] = [
    "model",
    "pre",
    "tokens",
    "token_type",
    "token_type_count",
    "scores",
    "merges",
    "bos_token_id",
    "eos_token_id",
    "eot_token_id",
    "eom_token_id",
    "unknown_token_id",
    "padding_token_id",
    "separator_token_id",
    "seperator_token_id",
    "cls_token_id",
    "mask_token_id",
    "prefix_token_id",
    "suffix_token_id",
    "middle_token_id",
    "fim_pre_token_id",
    "fim_suf_token_id",
    "fim_mid_token_id",
    "fim_pad_token_id",
    "fim_rep_token_id",
    "fim_sep_token_id",
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
];

/// Keys that are ignored and may matter. Those of the family itself are refused elsewhere where
/// they are not known.
pub(super) fn ignored(metadata: &Metadata) -> impl Iterator<Item = &str> {
    let family = metadata.optional_text("general.architecture").ok().flatten().unwrap_or_default();
    metadata.iter().map(|(key, _)| key).filter(move |key| {
        let of_tokenizer = key.strip_prefix("tokenizer.ggml.").is_some_and(|key| TOKENIZER.contains(&key));
        let of_family = key.strip_prefix(family).is_some_and(|rest| rest.starts_with('.'));
        let is_note = PREFIXES.iter().any(|prefix| key.starts_with(prefix)) || *key == "tokenizer.huggingface.json";
        !of_tokenizer && !of_family && !is_note && !HARMLESS.contains(key)
    })
}

/// Other keys that change nothing: `remove_extra_whitespaces` is for Unigram tokenizers.
const HARMLESS: [&str; 1] = ["tokenizer.ggml.remove_extra_whitespaces"];

/// Refuses a file that is no whole model.
pub(super) fn refuse_parts(metadata: &Metadata) -> Result<(), GgufError> {
    if let Some(count) = metadata.optional_size("split.count")?.filter(|count| *count > 1) {
        let number = metadata.optional_size("split.no")?.unwrap_or(0);
        return Err(GgufError::Part { number: number.saturating_add(1), count });
    }
    match metadata.optional_text("general.type")? {
        None | Some("model") => Ok(()),
        Some(found) => Err(GgufError::Unsupported {
            key: "general.type".to_owned(),
            found: found.to_owned(),
            hint: "supported: `model`; `llama-export-lora` merges an adapter into its model".to_owned(),
        }),
    }
}
