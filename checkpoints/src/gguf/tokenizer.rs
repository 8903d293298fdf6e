//! Conversion of tokenizer metadata into `tokenizer.json`, `tokenizer_config.json` and
//! `generation_config.json`.
//!
//! Supported: byte-level BPE (`tokenizer.ggml.model` = `gpt2`) with a pre-tokenizer that Hugging
//! Face's library reproduces exactly ([`PRE_TOKENIZERS`]); and SentencePiece (`llama`), see
//! [`sentencepiece`]. What a file does not state has the value that llama.cpp gives it: with
//! SentencePiece a space and a BOS before the text, and the ids 0, 1 and 2 for unknown, BOS and
//! EOS. Pre-tokenizers are those of
//! <https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp>, the file's form is that
//! of <https://huggingface.co/docs/tokenizers>.

use super::{
    GgufError,
    metadata::{Metadata, required},
    sentencepiece::{self, CONTROL, SPACE, USER_DEFINED},
};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";

const MODEL: &str = "tokenizer.ggml.model";
/// `tokenizer.ggml.model` of SentencePiece.
const SENTENCE_PIECE: &str = "llama";
/// Special tokens of SentencePiece where the file does not state them.
const SENTENCE_PIECE_IDS: [(&str, usize); 3] = [("unknown", 0), ("bos", 1), ("eos", 2)];

/// Id of a special token, `bos`, `eos`, `unknown`, `padding` and others.
pub(super) fn special_token_id(metadata: &Metadata, name: &str) -> Result<Option<usize>, GgufError> {
    let stated = metadata.optional_size(&format!("tokenizer.ggml.{name}_token_id"))?;
    if stated.is_some() || metadata.optional_text(MODEL)? != Some(SENTENCE_PIECE) {
        return Ok(stated);
    }
    let num_tokens = metadata.optional_texts(TOKENS)?.map_or(0, |tokens| tokens.len());
    let default = SENTENCE_PIECE_IDS.into_iter().find(|(known, _)| *known == name).map(|(_, id)| id);
    Ok(default.filter(|id| *id < num_tokens))
}

/// Tokens that end a generation: the end of a text, of a turn and of a message. One is a number,
/// several are a list, as in `config.json`.
pub(super) fn end_token_ids(metadata: &Metadata) -> Result<Value, GgufError> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ids.extend(special_token_id(metadata, name)?.filter(|id| !ids.contains(id)));
    }
    Ok(match ids.as_slice() {
        [] => Value::Null,
        [only] => json!(only),
        several => json!(several),
    })
}

/// Pre-tokenizer of byte-level BPE.
pub(super) struct PreTokenizer {
    /// Value of `tokenizer.ggml.pre`.
    pub name: &'static str,
    /// `pre_tokenizer` of `tokenizer.json`.
    pub json: fn() -> Value,
    /// True if a word that is a token is not split into merges.
    pub ignore_merges: bool,
    /// True if a text begins with BOS where no metadata say so (`llama_vocab::impl::load` of
    /// <https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp>).
    pub adds_bos: bool,
}

/// Every pre-tokenizer: the pattern of GPT-2; the same after every digit is split off; the pattern
/// of Llama 3, and that of Qwen 2, which splits off every digit.
pub(super) static PRE_TOKENIZERS: [PreTokenizer; 4] = [
    PreTokenizer { name: "gpt-2", json: byte_level, ignore_merges: false, adds_bos: false },
    PreTokenizer {
        name: "smollm",
        json: || sequence(&json!({ "type": "Digits", "individual_digits": true }), &byte_level()),
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer { name: "llama-bpe", json: || split_by(r"\p{N}{1,3}"), ignore_merges: true, adds_bos: true },
    PreTokenizer { name: "qwen2", json: || split_by(r"\p{N}"), ignore_merges: false, adds_bos: false },
];

fn sequence(first: &Value, second: &Value) -> Value {
    json!({ "type": "Sequence", "pretokenizers": [first, second] })
}

/// Pattern of Llama 3 with `digits` for a run of digits.
fn split_by(digits: &str) -> Value {
    let pattern = format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    sequence(
        &split,
        &json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }),
    )
}

/// Tokenizer described by the metadata.
pub(super) struct Tokenizer<'a> {
    metadata: &'a Metadata,
    kind: Kind,
    tokens: Vec<String>,
    ids: HashMap<String, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Byte-level BPE, with merges.
    ByteLevel,
    /// Pieces with scores.
    SentencePiece,
}

impl<'a> Tokenizer<'a> {
    /// Reads the vocabulary. `num_embeddings` is the number of embedding rows.
    ///
    /// # Errors
    /// When there is no vocabulary, a token occurs twice, or there are more tokens than embeddings.
    pub fn read(metadata: &'a Metadata, num_embeddings: usize) -> Result<Self, GgufError> {
        let model = required(metadata.optional_text(MODEL)?, MODEL)?;
        let kind = match model {
            "gpt2" => Kind::ByteLevel,
            SENTENCE_PIECE => Kind::SentencePiece,
            found => {
                return Err(GgufError::Unsupported {
                    key: MODEL.to_owned(),
                    found: found.to_owned(),
                    hint: "supported: `gpt2` (byte-level BPE), `llama` (SentencePiece); use the model's Hugging Face folder"
                        .to_owned(),
                });
            }
        };
        let tokens = required(metadata.optional_texts(TOKENS)?, TOKENS)?;
        if tokens.len() > num_embeddings {
            return Err(GgufError::BadValue {
                key: TOKENS.to_owned(),
                found: format!("an array of {} items", tokens.len()),
                expected: format!("at most as many tokens as embeddings, {num_embeddings}"),
            });
        }
        let types = one_for_each(metadata.optional_integers(TOKEN_TYPES)?, TOKEN_TYPES, tokens.len())?;
        let type_of = |id: usize| types.as_ref().map_or(0, |types| types[id]);
        let tokens: Vec<String> = match kind {
            Kind::ByteLevel => tokens.into_iter().map(str::to_owned).collect(),
            Kind::SentencePiece => {
                tokens.iter().enumerate().map(|(id, token)| sentencepiece::piece(token, type_of(id))).collect()
            }
        };
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if ids.insert(token.clone(), id).is_some() {
                return Err(GgufError::Duplicate { what: "token", name: token.clone() });
            }
        }
        Ok(Self { metadata, kind, tokens, ids })
    }

    /// Content of `tokenizer.json`.
    ///
    /// # Errors
    /// When the pre-tokenizer cannot be reproduced, or a part of the metadata does not match the
    /// vocabulary.
    pub fn json(&self) -> Result<Value, GgufError> {
        let vocab: Map<String, Value> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let pieces = self.kind == Kind::SentencePiece;
        let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
        let prefixed = self.adds_space_prefix()?;
        let mut decoders = vec![replace(SPACE, " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
        if prefixed {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens()?,
            "normalizer": match (pieces, prefixed) {
                (true, true) => json!({
                    "type": "Sequence",
                    "normalizers": [{ "type": "Prepend", "prepend": SPACE }, replace(" ", SPACE)],
                }),
                (true, false) => replace(" ", SPACE),
                (false, _) => Value::Null,
            },
            "pre_tokenizer": self.pre_tokenizer()?,
            "post_processor": self.post_processor()?,
            "decoder": match self.kind {
                Kind::ByteLevel => byte_level(),
                Kind::SentencePiece => json!({ "type": "Sequence", "decoders": decoders }),
            },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": match self.special_id("unknown")?.filter(|_| pieces) {
                    Some(id) => json!(self.tokens[id]),
                    None => Value::Null,
                },
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": pieces,
                "byte_fallback": pieces,
                "ignore_merges": self.known_pre_tokenizer()?.is_some_and(|known| known.ignore_merges),
                "vocab": vocab,
                "merges": self.merges()?,
            },
        }))
    }

    /// Content of `tokenizer_config.json`: special tokens and the chat template. The tokenizer
    /// class is the one that uses `tokenizer.json` unchanged; model-specific classes add a
    /// pre-tokenizer of their own.
    ///
    /// # Errors
    /// When a special token is not in the vocabulary.
    pub fn config_json(&self, model_max_length: usize) -> Result<Value, GgufError> {
        let mut map = Map::new();
        map.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        map.insert("clean_up_tokenization_spaces".into(), json!(false));
        map.insert("model_max_length".into(), json!(model_max_length));
        for (name, ours) in [("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")] {
            if let Some(id) = self.special_id(name)? {
                map.insert(format!("{ours}_token"), json!(self.tokens[id]));
            }
        }
        for name in ["add_bos_token", "add_eos_token"] {
            if let Some(flag) = self.metadata.flag(&format!("tokenizer.ggml.{name}"))? {
                map.insert(name.into(), json!(flag));
            }
        }
        if let Some(template) = self.metadata.optional_text("tokenizer.chat_template")? {
            map.insert("chat_template".into(), json!(template));
        }
        Ok(Value::Object(map))
    }

    /// Content of `generation_config.json`: the ids of the BOS, EOS and padding tokens.
    ///
    /// # Errors
    /// When a special token is not in the vocabulary.
    pub fn generation_json(&self) -> Result<Value, GgufError> {
        let mut map = Map::new();
        for (name, ours) in [("bos", "bos"), ("padding", "pad")] {
            if let Some(id) = self.special_id(name)? {
                map.insert(format!("{ours}_token_id"), json!(id));
            }
        }
        let end = end_token_ids(self.metadata)?;
        if self.special_id("eos")?.is_some() || !end.is_null() {
            map.insert("eos_token_id".into(), end);
        }
        Ok(Value::Object(map))
    }

    fn special_id(&self, name: &str) -> Result<Option<usize>, GgufError> {
        match special_token_id(self.metadata, name)? {
            Some(id) if id >= self.tokens.len() => Err(GgufError::BadValue {
                key: format!("tokenizer.ggml.{name}_token_id"),
                found: id.to_string(),
                expected: format!("less than the number of tokens, {}", self.tokens.len()),
            }),
            id => Ok(id),
        }
    }

    /// True if a space stands before every text.
    fn adds_space_prefix(&self) -> Result<bool, GgufError> {
        const KEY: &str = "tokenizer.ggml.add_space_prefix";
        match (self.kind, self.metadata.flag(KEY)?) {
            (Kind::SentencePiece, stated) => Ok(stated.unwrap_or(true)),
            (Kind::ByteLevel, None | Some(false)) => Ok(false),
            (Kind::ByteLevel, Some(true)) => Err(GgufError::Unsupported {
                key: KEY.to_owned(),
                found: "true".to_owned(),
                hint: "supported with `gpt2`: `false`".to_owned(),
            }),
        }
    }

    fn pre_tokenizer(&self) -> Result<Value, GgufError> {
        Ok(self.known_pre_tokenizer()?.map_or(Value::Null, |known| (known.json)()))
    }

    /// The pre-tokenizer of byte-level BPE.
    fn known_pre_tokenizer(&self) -> Result<Option<&'static PreTokenizer>, GgufError> {
        const KEY: &str = "tokenizer.ggml.pre";
        if self.kind == Kind::SentencePiece {
            return Ok(None);
        }
        let found = required(self.metadata.optional_text(KEY)?, KEY)?;
        let known = PRE_TOKENIZERS.iter().find(|known| known.name == found).ok_or_else(|| {
            let names: Vec<_> = PRE_TOKENIZERS.iter().map(|known| format!("`{}`", known.name)).collect();
            let hint = format!("supported pre-tokenizers: {}; use the model's Hugging Face folder", names.join(", "));
            GgufError::Unsupported { key: KEY.to_owned(), found: found.to_owned(), hint }
        })?;
        Ok(Some(known))
    }

    fn added_tokens(&self) -> Result<Vec<Value>, GgufError> {
        let types = self.types()?.unwrap_or_default();
        let added =
            types.iter().zip(&self.tokens).enumerate().filter(|(_, (t, _))| matches!(**t, CONTROL | USER_DEFINED));
        let added = added.map(|(id, (token_type, token))| {
            json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": *token_type == CONTROL,
            })
        });
        Ok(added.collect())
    }

    fn types(&self) -> Result<Option<Vec<i64>>, GgufError> {
        one_for_each(self.metadata.optional_integers(TOKEN_TYPES)?, TOKEN_TYPES, self.tokens.len())
    }

    /// Post-processor that adds BOS and EOS if the metadata ask for it, and BOS with SentencePiece
    /// and the pre-tokenizer of Llama 3 unless they refuse it.
    fn post_processor(&self) -> Result<Value, GgufError> {
        let by_default = match self.kind {
            Kind::SentencePiece => true,
            Kind::ByteLevel => self.known_pre_tokenizer()?.is_some_and(|known| known.adds_bos),
        };
        let token = |name: &'static str| match self.metadata.flag(&format!("tokenizer.ggml.add_{name}_token"))? {
            Some(true) => required(self.special_id(name)?, &format!("tokenizer.ggml.{name}_token_id")).map(Some),
            None if by_default && name == "bos" => self.special_id(name),
            _ => Ok(None),
        };
        let (bos, eos) = (token("bos")?, token("eos")?);
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let special =
            |id: usize, sequence: usize| json!({ "SpecialToken": { "id": self.tokens[id], "type_id": sequence } });
        let text = |name: &str, sequence: usize| {
            let text = json!({ "Sequence": { "id": name, "type_id": sequence } });
            bos.map(|id| special(id, sequence)).into_iter().chain([text]).chain(eos.map(|id| special(id, sequence)))
        };
        let special_tokens: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|id| {
                let token = &self.tokens[id];
                (token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }))
            })
            .collect();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": text("A", 0).collect::<Vec<_>>(),
            "pair": text("A", 0).chain(text("B", 1)).collect::<Vec<_>>(),
            "special_tokens": special_tokens,
        }))
    }

    fn merges(&self) -> Result<Vec<[&str; 2]>, GgufError> {
        match self.kind {
            Kind::ByteLevel => self.stated_merges(),
            Kind::SentencePiece => {
                let scores = one_for_each(self.metadata.optional_floats(SCORES)?, SCORES, self.tokens.len())?;
                let types = required(self.types()?, TOKEN_TYPES)?;
                Ok(sentencepiece::merges(&self.tokens, &required(scores, SCORES)?, &types))
            }
        }
    }

    fn stated_merges(&self) -> Result<Vec<[&str; 2]>, GgufError> {
        let merges = required(self.metadata.optional_texts(MERGES)?, MERGES)?;
        let bad =
            |index: usize, problem: &'static str| GgufError::Merge { index, found: merges[index].to_owned(), problem };
        let split = |(index, merge): (usize, &&'a str)| {
            let (left, right) = merge.split_once(' ').ok_or_else(|| bad(index, "has no space"))?;
            let known = |token: &str| self.ids.contains_key(token);
            if !known(left) || !known(right) || !known(&format!("{left}{right}")) {
                return Err(bad(index, "has a side or a result that is not a token"));
            }
            Ok([left, right])
        };
        merges.iter().enumerate().map(split).collect()
    }
}

/// Checks that the list has one entry for each token.
fn one_for_each<T>(list: Option<Vec<T>>, key: &str, tokens: usize) -> Result<Option<Vec<T>>, GgufError> {
    match list {
        Some(list) if list.len() != tokens => Err(GgufError::BadValue {
            key: key.to_owned(),
            found: format!("an array of {} items", list.len()),
            expected: format!("one for each of the {tokens} tokens"),
        }),
        list => Ok(list),
    }
}

/// Byte-level BPE of GPT-2, its pattern and its mapping of bytes to characters, as pre-tokenizer
/// and as decoder.
fn byte_level() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{
        parse::parse,
        test_file::{TestFile, floats, integers, text, texts, u32_value},
    };
    use tokenizers::Tokenizer as Library;

    /// A small byte-level BPE tokenizer; `Ġ` stands for a space.
    fn small(pre: &str) -> TestFile {
        TestFile::default()
            .pair("tokenizer.ggml.model", 8, &text("gpt2"))
            .pair("tokenizer.ggml.pre", 8, &text(pre))
            .pair("tokenizer.ggml.tokens", 9, &texts(&["<s>", "a", "b", "1", "2", "Ġ", "ab", "12", "Ġab"]))
            .pair("tokenizer.ggml.token_type", 9, &integers(&[3, 1, 1, 1, 1, 1, 1, 1, 1]))
            .pair("tokenizer.ggml.merges", 9, &texts(&["a b", "1 2", "Ġ ab"]))
            .pair("tokenizer.ggml.bos_token_id", 4, &u32_value(0))
    }

    fn json(file: TestFile) -> Result<Value, GgufError> {
        Tokenizer::read(&parse(&file.build())?.metadata, 9)?.json()
    }

    fn ids(file: TestFile, text: &str) -> Vec<u32> {
        let bytes = serde_json::to_vec(&json(file).unwrap()).unwrap();
        Library::from_bytes(bytes).unwrap().encode(text, true).unwrap().get_ids().to_vec()
    }

    /// A SentencePiece model of `tests/golden/sentencepiece.json` as a GGUF file holds it.
    fn pieces(golden: &Value) -> TestFile {
        let list = |key: &str| golden[key].as_array().unwrap();
        let tokens: Vec<&str> = list("pieces").iter().map(|piece| piece.as_str().unwrap()).collect();
        let scores: Vec<f32> = list("scores").iter().map(|score| score.as_f64().unwrap() as f32).collect();
        let types: Vec<i32> = list("types").iter().map(|kind| kind.as_i64().unwrap() as i32).collect();
        TestFile::default()
            .pair("tokenizer.ggml.model", 8, &text("llama"))
            .pair("tokenizer.ggml.tokens", 9, &texts(&tokens))
            .pair("tokenizer.ggml.scores", 9, &floats(&scores))
            .pair("tokenizer.ggml.token_type", 9, &integers(&types))
    }

    fn library(file: TestFile) -> Library {
        let json = Tokenizer::read(&parse(&file.build()).unwrap().metadata, 320).unwrap().json().unwrap();
        Library::from_bytes(serde_json::to_vec(&json).unwrap()).unwrap()
    }

    // Made by SentencePiece: tests/golden/make_sentencepiece.py.
    #[test]
    fn sentencepiece_cuts_text_as_the_library_does_with_a_space_in_front_and_without() {
        let golden = include_str!("../../tests/golden/sentencepiece.json");
        let golden: Value = serde_json::from_str(golden).unwrap();
        for (name, stated) in [("prefix", None), ("prefix", Some(1)), ("none", Some(0))] {
            let mut file = pieces(&golden[name]).pair("tokenizer.ggml.add_bos_token", 7, &[0]);
            if let Some(flag) = stated {
                file = file.pair("tokenizer.ggml.add_space_prefix", 7, &[flag]);
            }
            let library = library(file);
            for case in golden[name]["texts"].as_array().unwrap() {
                let ids = library.encode(case["text"].as_str().unwrap(), true).unwrap();
                assert_eq!(json!(ids.get_ids()), case["ids"], "{name}: {case}");
                assert_eq!(json!(library.decode(ids.get_ids(), true).unwrap()), case["decoded"], "{name}: {case}");
            }
        }
    }

    // Defaults of llama.cpp: `llama_vocab::impl::load` of src/llama-vocab.cpp.
    #[test]
    fn what_a_sentencepiece_file_leaves_out_has_the_values_of_llama_cpp() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/sentencepiece.json")).unwrap();
        let file = || pieces(&golden["prefix"]);
        let first = |file: TestFile| library(file).encode("the", true).unwrap().get_ids()[0];
        assert_eq!(first(file()), 1);
        assert_eq!(first(file().pair("tokenizer.ggml.bos_token_id", 4, &u32_value(2))), 2);
        assert_ne!(first(file().pair("tokenizer.ggml.add_bos_token", 7, &[0])), 1);
        let metadata = parse(&file().build()).unwrap().metadata;
        let id = |name| special_token_id(&metadata, name).unwrap();
        assert_eq!(["unknown", "bos", "eos", "padding"].map(id), [Some(0), Some(1), Some(2), None]);
        let metadata = parse(&small("gpt-2").build()).unwrap().metadata;
        assert_eq!(special_token_id(&metadata, "eos").unwrap(), None);
    }

    #[test]
    fn a_turn_also_ends_a_generation() {
        let file = small("gpt-2").pair("tokenizer.ggml.eos_token_id", 4, &u32_value(0));
        let ends = |file: TestFile| {
            let header = parse(&file.build()).unwrap();
            Tokenizer::read(&header.metadata, 9).unwrap().generation_json().unwrap()["eos_token_id"].clone()
        };
        assert_eq!(ends(small("gpt-2").pair("tokenizer.ggml.eos_token_id", 4, &u32_value(0))), json!(0));
        assert_eq!(ends(file.pair("tokenizer.ggml.eot_token_id", 4, &u32_value(5))), json!([0, 5]));
    }

    #[test]
    fn smollm_splits_digits_and_gpt_2_does_not() {
        assert_eq!(ids(small("smollm"), "ab12 ab<s>"), [6, 3, 4, 8, 0]);
        assert_eq!(ids(small("gpt-2"), "ab12 ab<s>"), [6, 7, 8, 0]);
        assert_eq!(ids(small("qwen2"), "ab12 ab<s>"), [6, 3, 4, 8, 0]);
        // As in llama.cpp, BOS stands before the text of a Llama 3 unless the file refuses it.
        assert_eq!(ids(small("llama-bpe"), "ab12 ab<s>"), [0, 6, 7, 8, 0]);
        let without = small("llama-bpe").pair("tokenizer.ggml.add_bos_token", 7, &[0]);
        assert_eq!(ids(without, "ab12 ab<s>"), [6, 7, 8, 0]);
    }

    #[test]
    fn bos_and_eos_are_added_only_if_the_metadata_ask_for_it() {
        assert_eq!(ids(small("gpt-2").pair("tokenizer.ggml.add_bos_token", 7, &[0]), "ab"), [6]);
        assert_eq!(ids(small("gpt-2").pair("tokenizer.ggml.add_bos_token", 7, &[1]), "ab"), [0, 6]);
        let both = small("gpt-2")
            .pair("tokenizer.ggml.add_bos_token", 7, &[1])
            .pair("tokenizer.ggml.add_eos_token", 7, &[1])
            .pair("tokenizer.ggml.eos_token_id", 4, &u32_value(5));
        assert_eq!(ids(both, "ab"), [0, 6, 5]);
    }

    #[test]
    fn the_config_has_the_special_tokens_and_the_chat_template() {
        let file = small("gpt-2").pair("tokenizer.chat_template", 8, &text("{{ x }}"));
        let header = parse(&file.build()).unwrap();
        let tokenizer = Tokenizer::read(&header.metadata, 9).unwrap();
        let config = tokenizer.config_json(64).unwrap();
        assert_eq!((&config["bos_token"], &config["chat_template"]), (&json!("<s>"), &json!("{{ x }}")));
        assert_eq!(config.get("eos_token"), None);
        assert_eq!(tokenizer.generation_json().unwrap(), json!({ "bos_token_id": 0 }));
    }

    #[test]
    fn unsupported_tokenizers_are_refused_by_name() {
        let error = |file: TestFile| json(file).unwrap_err().to_string();
        assert!(error(small("falcon")).starts_with("`tokenizer.ggml.pre: falcon` is not supported"));
        let unigram = TestFile::default().pair("tokenizer.ggml.model", 8, &text("t5"));
        assert!(error(unigram).starts_with("`tokenizer.ggml.model: t5` is not supported"));
        let file = |tokens: &[&str], merges: &[&str]| {
            TestFile::default()
                .pair("tokenizer.ggml.model", 8, &text("gpt2"))
                .pair("tokenizer.ggml.pre", 8, &text("gpt-2"))
                .pair("tokenizer.ggml.tokens", 9, &texts(tokens))
                .pair("tokenizer.ggml.merges", 9, &texts(merges))
        };
        assert_eq!(error(file(&["a", "b", "a"], &[])), "token `a` occurs twice");
        assert!(
            error(file(&["a", "b"], &["a b"])).contains("merge 0, `a b`, has a side or a result that is not a token")
        );
        assert!(error(file(&["a", "b"], &["ab"])).contains("has no space"));
        assert!(error(file(&["x"; 10], &[])).contains("at most as many tokens as embeddings, 9"));
        let bos = file(&["a"], &[]).pair("tokenizer.ggml.add_bos_token", 7, &[1]);
        assert!(
            error(bos.pair("tokenizer.ggml.bos_token_id", 4, &u32_value(7))).contains("less than the number of tokens")
        );
    }
}
