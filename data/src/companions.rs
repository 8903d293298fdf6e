//! What the files beside a `tokenizer.json` add to it: tokens that it lacks. Where they disagree
//! with it, `tokenizer.json` counts, as in transformers 5 (`_from_pretrained` of
//! <https://github.com/huggingface/transformers/blob/main/src/transformers/tokenization_utils_base.py>).

use std::path::{Path, PathBuf};

use retie_config::parse_json;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::error::DataError;

/// Names of the files.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// Keys of special tokens, in the order in which they are added.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the files say.
#[derive(Debug, Default)]
pub(crate) struct Companions {
    /// Tokens to add where they are missing, with the id that a file states for them.
    pub(crate) tokens: Vec<(AddedToken, Option<u32>)>,
    /// `add_bos_token` of `tokenizer_config.json`.
    pub(crate) add_bos_token: Option<bool>,
    /// `add_prefix_space` of `tokenizer_config.json`.
    pub(crate) add_prefix_space: Option<bool>,
    /// `split_special_tokens` of `tokenizer_config.json`: special tokens that are written in a text
    /// are cut like any other text.
    pub(crate) split_special_tokens: bool,
}

impl Companions {
    /// From the small files of a model by name; `path` gives the path of one, for errors.
    pub(crate) fn read(files: &[(String, Vec<u8>)], path: impl Fn(&str) -> PathBuf) -> Result<Self, DataError> {
        let object = |name: &str| match files.iter().find(|(file, _)| file == name) {
            Some((_, bytes)) => parse(bytes, &path(name)),
            None => Ok(Map::new()),
        };
        let mut config = object(TOKENIZER_CONFIG)?;
        let add_bos_token = config.get("add_bos_token").and_then(Value::as_bool);
        let add_prefix_space = config.get("add_prefix_space").and_then(Value::as_bool);
        let split_special_tokens = config.get("split_special_tokens") == Some(&Value::Bool(true));
        let mut tokens: Vec<(AddedToken, Option<u32>)> = Vec::new();
        if let Some(Value::Object(stated)) = config.get("added_tokens_decoder") {
            let mut stated: Vec<(u32, AddedToken)> =
                stated.iter().filter_map(|(id, token)| Some((id.parse().ok()?, added(token)?))).collect();
            stated.sort_by_key(|(id, _)| *id);
            tokens.extend(stated.into_iter().map(|(id, token)| (token, Some(id))));
        } else {
            // Files of versions that kept the tokens apart.
            config.extend(object(SPECIAL_TOKENS_MAP)?);
            let is_special = |name: &str| special(&config).any(|token| token.content == name);
            let stated = object(ADDED_TOKENS)?;
            let stated = stated.iter().filter_map(|(name, id)| Some((name, u32::try_from(id.as_u64()?).ok()?)));
            let mut stated: Vec<_> =
                stated.map(|(name, id)| (AddedToken::from(name, is_special(name)), Some(id))).collect();
            stated.sort_by_key(|(_, id)| *id);
            tokens = stated;
        }
        for token in special(&config) {
            if !tokens.iter().any(|(known, _)| known.content == token.content) {
                tokens.push((token, None));
            }
        }
        Ok(Self { tokens, add_bos_token, add_prefix_space, split_special_tokens })
    }
}

fn parse(bytes: &[u8], path: &Path) -> Result<Map<String, Value>, DataError> {
    match parse_json(&String::from_utf8_lossy(bytes)) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Ok(Map::new()),
        Err(source) => Err(DataError::TokenizerConfig { path: path.to_owned(), source }),
    }
}

/// Special tokens that `config` names, each once.
fn special(config: &Map<String, Value>) -> impl Iterator<Item = AddedToken> {
    let more = ["extra_special_tokens", "additional_special_tokens"].into_iter().filter_map(|key| config.get(key));
    let listed = more.filter_map(Value::as_array).flatten();
    let named = SPECIAL.into_iter().filter_map(|key| config.get(key)).chain(listed);
    named.filter_map(|token| Some(AddedToken { special: true, ..added(token)? }))
}

/// A token that is written as its text or as an object.
fn added(token: &Value) -> Option<AddedToken> {
    let flag = |key: &str| token.get(key).and_then(Value::as_bool);
    let content = token.as_str().or_else(|| token.get("content")?.as_str()).filter(|content| !content.is_empty())?;
    let special = flag("special").unwrap_or(token.is_string());
    Some(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}
