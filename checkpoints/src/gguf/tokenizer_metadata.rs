//! Conversion of `tokenizer.json` and `tokenizer_config.json` into tokenizer metadata: the inverse
//! of [`super::tokenizer`].
//!
//! Written: byte-level BPE whose pre-tokenizer is one of [`PRE_TOKENIZERS`]; and SentencePiece
//! without a space put before the text, whose scores are in `tokenizer.model`. Keys and token types
//! are those of llama.cpp's converter
//! (<https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/vocab.py>).

use super::{
    GgufValue,
    sentencepiece::{CONTROL, NORMAL, SPACE, UNUSED, USER_DEFINED},
    sentencepiece_model,
    tokenizer::PRE_TOKENIZERS,
};
use retie_config::ModelConfig;
use serde_json::Value;
use std::collections::BTreeMap;

/// Metadata of a tokenizer.
#[derive(Debug, Default)]
pub(super) struct TokenizerMetadata {
    pub metadata: Vec<(String, GgufValue)>,
    /// What llama.cpp does otherwise.
    pub note: Option<String>,
}

/// Metadata of the tokenizer in `companions`; that of none if there is no `tokenizer.json`. The
/// error is the reason why it cannot be written.
pub(super) fn tokenizer_metadata(
    config: &ModelConfig,
    companions: &[(String, Vec<u8>)],
) -> Result<TokenizerMetadata, String> {
    let json = |file: &str| -> Result<Option<Value>, String> {
        let found = companions.iter().find(|(name, _)| name == file);
        let parsed = found.map(|(_, bytes)| serde_json::from_slice(bytes)).transpose();
        parsed.map_err(|error| format!("`{file}` is not valid JSON: {error}"))
    };
    let Some(tokenizer) = json("tokenizer.json")? else {
        let metadata = vec![key("model", GgufValue::Text("none".to_owned()))];
        return Ok(TokenizerMetadata {
            metadata,
            note: Some("the model has no tokenizer, so the file has none".into()),
        });
    };
    let settings = json("tokenizer_config.json")?.unwrap_or_default();
    let mut vocabulary = Vocabulary::read(&tokenizer, config.vocab_size)?;
    let TokenizerMetadata { mut metadata, note } = match tokenizer["model"]["byte_fallback"] == true {
        true => sentencepiece_metadata(&tokenizer, companions, &mut vocabulary)?,
        false => byte_level_metadata(&tokenizer)?,
    };
    metadata.push(key("tokens", GgufValue::Texts(vocabulary.tokens.clone())));
    metadata.push(key("token_type", GgufValue::Integers(vocabulary.types.clone())));
    let special = [
        ("bos", "bos_token", config.bos_token_id),
        ("eos", "eos_token", config.eos_token_ids.first().copied()),
        ("unknown", "unk_token", None),
        ("padding", "pad_token", None),
    ];
    for (name, setting, id) in special {
        let id = settings.get(setting).and_then(content).and_then(|token| vocabulary.id(token)).or(id);
        metadata.extend(id.map(|id| key(&format!("{name}_token_id"), GgufValue::U32(id))));
    }
    let [bos, eos] = added_by_template(&tokenizer)?;
    metadata.push(key("add_bos_token", GgufValue::Bool(bos)));
    metadata.push(key("add_eos_token", GgufValue::Bool(eos)));
    if let Some(template) = chat_template(&settings, companions) {
        metadata.push(("tokenizer.chat_template".to_owned(), GgufValue::Text(template)));
    }
    Ok(TokenizerMetadata { metadata, note })
}

fn key(name: &str, value: GgufValue) -> (String, GgufValue) {
    (format!("tokenizer.ggml.{name}"), value)
}

/// Keys of byte-level BPE beside the tokens, and what llama.cpp leaves out.
fn byte_level_metadata(tokenizer: &Value) -> Result<TokenizerMetadata, String> {
    let (pre, note) = pre_tokenizer(tokenizer)?;
    let metadata = vec![
        key("model", GgufValue::Text("gpt2".to_owned())),
        key("pre", GgufValue::Text(pre.to_owned())),
        key("merges", GgufValue::Texts(merges(tokenizer)?)),
    ];
    Ok(TokenizerMetadata { metadata, note })
}

/// Score of a token that is not a piece, and of one that no text has.
const ADDED_SCORE: f32 = -1000.0;
const UNUSED_SCORE: f32 = -10000.0;

/// Keys of SentencePiece beside the tokens, which take the types of the pieces.
fn sentencepiece_metadata(
    tokenizer: &Value,
    companions: &[(String, Vec<u8>)],
    vocabulary: &mut Vocabulary,
) -> Result<TokenizerMetadata, String> {
    let replace = serde_json::json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    if tokenizer["normalizer"] != replace {
        return Err("its tokenizer changes a text before it is split (a space put before it, another normal form), \
                    which is not written"
            .to_owned());
    }
    let Some((_, model)) = companions.iter().find(|(name, _)| name == "tokenizer.model") else {
        return Err("its `tokenizer.json` has no scores of pieces, and there is no `tokenizer.model`".to_owned());
    };
    let pieces = sentencepiece_model::pieces(model).ok_or("`tokenizer.model` is no SentencePiece model")?;
    let mut scores = vec![UNUSED_SCORE; vocabulary.tokens.len()];
    for (id, score) in scores.iter_mut().enumerate() {
        let kind = i64::from(vocabulary.types[id]);
        match pieces.get(id) {
            _ if matches!(kind, CONTROL | USER_DEFINED) => *score = ADDED_SCORE,
            Some(piece) if piece.text == vocabulary.tokens[id] => {
                *score = piece.score;
                vocabulary.types[id] = piece.kind as i32;
            }
            Some(piece) => {
                let (ours, theirs) = (&vocabulary.tokens[id], &piece.text);
                return Err(format!("token {id} is `{ours}` in `tokenizer.json` and `{theirs}` in `tokenizer.model`"));
            }
            None => {}
        }
        if i64::from(vocabulary.types[id]) == USER_DEFINED {
            vocabulary.tokens[id] = vocabulary.tokens[id].replace(SPACE, " ");
        }
    }
    let metadata = vec![
        key("model", GgufValue::Text("llama".to_owned())),
        key("pre", GgufValue::Text("default".to_owned())),
        key("scores", GgufValue::Floats(scores)),
        key("add_space_prefix", GgufValue::Bool(false)),
    ];
    Ok(TokenizerMetadata { metadata, note: None })
}

/// True for an added token that llama.cpp's converter takes for a control token, whatever
/// `tokenizer.json` says.
fn looks_special(token: &str) -> bool {
    let between = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// Text of a special token, which stands alone or in an object.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content").and_then(Value::as_str))
}

/// Name of the pre-tokenizer, and what llama.cpp leaves out.
fn pre_tokenizer(tokenizer: &Value) -> Result<(&'static str, Option<String>), String> {
    let model = &tokenizer["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" {
        return Err(format!("its tokenizer is neither byte-level BPE nor SentencePiece with merges (`{kind}`)"));
    }
    let ignore_merges = model["ignore_merges"] == true;
    let found = PRE_TOKENIZERS.iter().find(|known| {
        same_pre_tokenizer(&tokenizer["pre_tokenizer"], &(known.json)()) && known.ignore_merges == ignore_merges
    });
    let Some(found) = found else {
        let names: Vec<_> = PRE_TOKENIZERS.iter().map(|known| format!("`{}`", known.name)).collect();
        return Err(format!("its pre-tokenizer is none of {}; no other is written", names.join(", ")));
    };
    match tokenizer["normalizer"]["type"].as_str() {
        None => Ok((found.name, None)),
        Some("NFC") => Ok((found.name, Some("llama.cpp does not bring text into the normal form NFC".to_owned()))),
        Some(other) => Err(format!("its tokenizer normalises text (`{other}`), which the file cannot state")),
    }
}

/// True if two pre-tokenizers split text alike: `trim_offsets` only moves offsets.
fn same_pre_tokenizer(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = |map: &serde_json::Map<String, Value>| {
                map.keys().filter(|key| *key != "trim_offsets").cloned().collect::<std::collections::BTreeSet<_>>()
            };
            keys(a) == keys(b) && keys(a).iter().all(|key| same_pre_tokenizer(&a[key], &b[key]))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_pre_tokenizer(a, b))
        }
        _ => a == b,
    }
}

/// Tokens by id.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
}

impl Vocabulary {
    /// Reads the tokens and fills up to `num_embeddings` with unused ones.
    fn read(tokenizer: &Value, num_embeddings: usize) -> Result<Self, String> {
        let mut tokens: BTreeMap<usize, (String, i64)> = BTreeMap::new();
        let vocab = tokenizer["model"]["vocab"].as_object().ok_or("`tokenizer.json` has no `model.vocab`")?;
        for (token, id) in vocab {
            tokens.insert(token_id(id)?, (token.clone(), NORMAL));
        }
        for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let text = added["content"].as_str().ok_or("an added token of `tokenizer.json` has no `content`")?;
            let is_control = added["special"] == true || looks_special(text);
            let kind = if is_control { CONTROL } else { USER_DEFINED };
            tokens.insert(token_id(&added["id"])?, (text.to_owned(), kind));
        }
        if let Some((id, (token, _))) = tokens.last_key_value().filter(|(id, _)| **id >= num_embeddings) {
            return Err(format!("token `{token}` has the id {id}, but there are {num_embeddings} embeddings"));
        }
        let unused = |id: usize| (format!("[PAD{id}]"), UNUSED);
        let all = (0..num_embeddings).map(|id| tokens.remove(&id).unwrap_or_else(|| unused(id)));
        let (tokens, types) = all.map(|(token, kind)| (token, kind as i32)).unzip();
        Ok(Self { tokens, types })
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.tokens.iter().position(|other| other == token).and_then(|id| u32::try_from(id).ok())
    }
}

fn token_id(value: &Value) -> Result<usize, String> {
    let id = value.as_u64().and_then(|id| usize::try_from(id).ok());
    id.ok_or_else(|| format!("`tokenizer.json` has the token id `{value}`, expected a number"))
}

/// Merges as `left right`. A side has no space: byte-level BPE writes it as `Ġ`.
fn merges(tokenizer: &Value) -> Result<Vec<String>, String> {
    let merges = tokenizer["model"]["merges"].as_array().ok_or("`tokenizer.json` has no `model.merges`")?;
    let line = |merge: &Value| match merge {
        Value::String(line) => Some(line.clone()),
        Value::Array(sides) => match &sides[..] {
            [Value::String(left), Value::String(right)] => Some(format!("{left} {right}")),
            _ => None,
        },
        _ => None,
    };
    let split = |line: &String| line.split(' ').count() == 2;
    let read = |merge: &Value| line(merge).filter(split);
    merges.iter().map(|merge| read(merge).ok_or_else(|| format!("`tokenizer.json` has the merge `{merge}`"))).collect()
}

/// Whether the post-processor puts BOS before a text, and EOS behind it.
fn added_by_template(tokenizer: &Value) -> Result<[bool; 2], String> {
    let processor = &tokenizer["post_processor"];
    let all = match processor["processors"].as_array() {
        Some(list) => list.iter().collect(),
        None => vec![processor],
    };
    let mut added = [false; 2];
    for processor in all {
        match processor["type"].as_str() {
            None | Some("ByteLevel") => {}
            Some("TemplateProcessing") => {
                let single = processor["single"].as_array().map(Vec::as_slice).unwrap_or_default();
                let is_text = |part: &Value| part.get("Sequence").is_some();
                let text = single.iter().position(is_text).unwrap_or(0);
                match (text, single.len()) {
                    (before @ (0 | 1), len) if len <= before + 2 => added = [before == 1, len == before + 2],
                    _ => return Err("its tokenizer adds more than one token before or behind a text".to_owned()),
                }
            }
            Some(other) => return Err(format!("its tokenizer adds tokens by `{other}`, which the file cannot state")),
        }
    }
    Ok(added)
}

/// The default chat template.
fn chat_template(settings: &Value, companions: &[(String, Vec<u8>)]) -> Option<String> {
    let file = companions.iter().find(|(name, _)| name == "chat_template.jinja");
    let in_settings = || match &settings["chat_template"] {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|template| template["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    };
    file.and_then(|(_, bytes)| String::from_utf8(bytes.clone()).ok()).or_else(in_settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gguf::{
            metadata::Metadata,
            tokenizer::{Tokenizer, special_token_id},
        },
        tiny::tiny_llama,
    };
    use serde_json::json;

    /// Byte-level BPE of 8 tokens, with the pre-tokenizer `name`; the embeddings of the tiny Llama
    /// have 11 rows.
    fn tokenizer(name: &str) -> Value {
        let pre = PRE_TOKENIZERS.iter().find(|known| known.name == name).unwrap();
        json!({
            "added_tokens": [{ "id": 0, "content": "<s>", "special": true }, { "id": 7, "content": "<tool>", "special": false }],
            "normalizer": null,
            "pre_tokenizer": (pre.json)(),
            "post_processor": null,
            "model": {
                "type": "BPE", "byte_fallback": false, "ignore_merges": pre.ignore_merges,
                "vocab": { "<s>": 0, "a": 1, "b": 2, "1": 3, "2": 4, "ab": 5, "12": 6 },
                "merges": [["a", "b"], "1 2"],
            },
        })
    }

    fn written(tokenizer: &Value, settings: &Value) -> Result<TokenizerMetadata, String> {
        let files = [("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)];
        let files = files.map(|(name, json)| (name.to_owned(), serde_json::to_vec(json).unwrap()));
        let config = ModelConfig { bos_token_id: None, ..tiny_llama(1) };
        tokenizer_metadata(&config, &files)
    }

    fn read(written: &TokenizerMetadata) -> Metadata {
        let mut metadata = Metadata::default();
        for (key, value) in &written.metadata {
            metadata.insert(key.clone(), value.read()).unwrap();
        }
        metadata
    }

    #[test]
    fn a_written_tokenizer_is_read_back() {
        for pre in &PRE_TOKENIZERS {
            let ours = tokenizer(pre.name);
            let settings = json!({ "eos_token": { "content": "<s>" }, "chat_template": [{ "name": "default", "template": "{{ x }}" }] });
            let metadata = read(&written(&ours, &settings).unwrap());
            let back = Tokenizer::read(&metadata, 11).unwrap();
            let json = back.json().unwrap();
            assert_eq!(json["pre_tokenizer"], ours["pre_tokenizer"], "{}", pre.name);
            assert_eq!(json["model"]["merges"], json!([["a", "b"], ["1", "2"]]));
            assert_eq!(json["model"]["ignore_merges"], ours["model"]["ignore_merges"]);
            assert_eq!(json["model"]["vocab"]["[PAD8]"], 8);
            assert_eq!(
                (&json["added_tokens"][1]["content"], &json["added_tokens"][1]["special"]),
                (&json!("<tool>"), &json!(false))
            );
            let config = back.config_json(64).unwrap();
            assert_eq!((&config["eos_token"], &config["chat_template"]), (&json!("<s>"), &json!("{{ x }}")));
            assert_eq!((&config["add_bos_token"], config.get("bos_token")), (&json!(false), None));
        }
    }

    #[test]
    fn ids_that_the_settings_do_not_name_are_those_of_the_configuration() {
        let files = [("tokenizer.json".to_owned(), serde_json::to_vec(&tokenizer("gpt-2")).unwrap())];
        let config = ModelConfig { bos_token_id: Some(3), eos_token_ids: vec![5, 6], ..tiny_llama(1) };
        let metadata = read(&tokenizer_metadata(&config, &files).unwrap());
        let ids = ["bos", "eos", "padding"].map(|name| special_token_id(&metadata, name).unwrap());
        assert_eq!(ids, [Some(3), Some(5), None]);
    }

    #[test]
    fn tokens_that_the_template_adds_are_stated() {
        let special = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        let added = |single: Value| {
            let mut ours = tokenizer("llama-bpe");
            ours["post_processor"] = json!({
                "type": "Sequence",
                "processors": [{ "type": "ByteLevel" }, { "type": "TemplateProcessing", "single": single }],
            });
            written(&ours, &Value::Null).map(|written| {
                let metadata = read(&written);
                ["bos", "eos"].map(|name| metadata.flag(&format!("tokenizer.ggml.add_{name}_token")).unwrap())
            })
        };
        assert_eq!(added(json!([special, text])).unwrap(), [Some(true), Some(false)]);
        assert_eq!(added(json!([special, text, special])).unwrap(), [Some(true), Some(true)]);
        assert_eq!(added(json!([text])).unwrap(), [Some(false), Some(false)]);
        assert!(added(json!([special, special, text])).unwrap_err().contains("more than one token"));
    }

    #[test]
    fn a_sentencepiece_model_is_read_back_with_its_scores() {
        let model = include_bytes!("../../tests/golden/sentencepiece_model.model");
        let pieces = sentencepiece_model::pieces(model).unwrap();
        let vocab: serde_json::Map<_, _> =
            pieces.iter().enumerate().map(|(id, piece)| (piece.text.clone(), json!(id))).collect();
        let id = |token: &str| vocab[token].clone();
        let added = |token: &str, special: bool| json!({ "id": id(token), "content": token, "special": special });
        let mut ours = json!({
            "added_tokens": [added("<pad>", false), added("<s>", true), added("\u{2581}\u{2581}", false)],
            "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": SPACE },
            "model": { "type": "BPE", "byte_fallback": true, "vocab": vocab, "merges": [] },
        });
        let config = ModelConfig { vocab_size: pieces.len() + 1, ..tiny_llama(1) };
        let write = |ours: &Value, model: &[u8]| {
            let json = serde_json::to_vec(ours).unwrap();
            tokenizer_metadata(&config, &[("tokenizer.json".into(), json), ("tokenizer.model".into(), model.to_vec())])
        };
        let metadata = read(&write(&ours, model).unwrap());
        let scores = metadata.optional_floats("tokenizer.ggml.scores").unwrap().unwrap();
        let types = metadata.optional_integers("tokenizer.ggml.token_type").unwrap().unwrap();
        for (id, piece) in pieces.iter().enumerate() {
            let expected = match piece.text.as_str() {
                "<pad>" | "<s>" => (ADDED_SCORE, CONTROL),
                "\u{2581}\u{2581}" => (ADDED_SCORE, USER_DEFINED),
                _ => (piece.score, piece.kind),
            };
            assert_eq!((scores[id], types[id]), expected, "{}", piece.text);
        }
        assert_eq!((scores[pieces.len()], types[pieces.len()]), (UNUSED_SCORE, UNUSED));
        let json = Tokenizer::read(&metadata, config.vocab_size).unwrap().json().unwrap();
        assert_eq!(json["normalizer"], ours["normalizer"]);
        assert!(pieces.iter().enumerate().all(|(id, piece)| json["model"]["vocab"][&piece.text] == id));
        assert!(json["model"]["merges"].as_array().unwrap().contains(&json!(["h", "e"])));
        assert!(write(&ours, b"x").unwrap_err().contains("is no SentencePiece model"));
        ours["normalizer"] = json!({ "type": "Sequence" });
        assert!(write(&ours, model).unwrap_err().contains("changes a text"));
    }

    #[test]
    fn what_llama_cpp_would_split_otherwise_is_refused() {
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut ours = tokenizer("qwen2");
            change(&mut ours);
            written(&ours, &Value::Null).map(|written| written.note)
        };
        let note = refused(&|ours| ours["normalizer"] = json!({ "type": "NFC" })).unwrap().unwrap();
        assert!(note.contains("NFC"), "{note}");
        assert!(
            refused(&|ours| ours["normalizer"] = json!({ "type": "Lowercase" })).unwrap_err().contains("`Lowercase`")
        );
        assert!(refused(&|ours| ours["model"]["type"] = json!("Unigram")).unwrap_err().contains("(`Unigram`)"));
        let message = refused(&|ours| ours["model"]["byte_fallback"] = json!(true)).unwrap_err();
        assert!(message.contains("changes a text before it is split"), "{message}");
        assert!(refused(&|ours| ours["model"]["ignore_merges"] = json!(true)).unwrap_err().contains("pre-tokenizer"));
        assert!(refused(&|ours| ours["pre_tokenizer"] = Value::Null).unwrap_err().contains("pre-tokenizer"));
        let message = refused(&|ours| ours["added_tokens"][1]["id"] = json!(11)).unwrap_err();
        assert_eq!(message, "token `<tool>` has the id 11, but there are 11 embeddings");
        assert!(
            refused(&|ours| ours["model"]["merges"][0] = json!(["a b", "c"])).unwrap_err().contains("has the merge")
        );
        assert!(refused(&|ours| ours["post_processor"] = json!({ "type": "RobertaProcessing" })).is_err());
        assert!(tokenizer_metadata(&tiny_llama(1), &[]).unwrap().note.is_some());
    }
}
