//! A Hugging Face `tokenizer.json` (<https://github.com/huggingface/tokenizers>): text ↔ ids.
//!
//! Encoding adds no token of its own (no BOS, no EOS), and recognises added tokens written in the
//! text, as the library does by default. Truncation and padding that a `tokenizer.json` may ask for
//! are switched off: every token of a text comes back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::bos::{configured_bos, template_bos};
use crate::error::DataError;
use crate::token_bytes::Spelling;

/// A model that pads its vocabulary to a round size has few rows that no token uses (the most seen
/// is about 3 %); where tokens cover less than one part in this many, the tokenizer is another
/// model's.
const LEAST_COVERAGE: usize = 2;

/// Names of the files that make a tokenizer, in a model's folder.
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Turns text into ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    origin: PathBuf,
    vocab_size: usize,
    largest_id: u32,
    fingerprint: String,
    bos_token: Option<u32>,
    spelling: Spelling,
    /// Tokens outside of the vocabulary proper, by id; true for special ones.
    added: BTreeMap<u32, bool>,
}

impl Tokenizer {
    /// From the bytes of a `tokenizer.json`; `origin` names them in errors.
    ///
    /// # Errors
    /// The JSON is not a tokenizer, or one without any token.
    pub fn from_bytes(json: &[u8], origin: &Path) -> Result<Self, DataError> {
        let wrap = |source| DataError::Tokenizer { path: origin.to_owned(), source };
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(wrap)?;
        inner.with_truncation(None).map_err(wrap)?;
        inner.with_padding(None);
        let vocab = inner.get_vocab(true);
        let largest_id = vocab.values().copied().max().ok_or_else(|| wrap("the vocabulary is empty".into()))?;
        let fingerprint = hex(&Sha256::digest(json));
        let value: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
        let added = inner.get_added_tokens_decoder().iter().map(|(id, token)| (*id, token.special)).collect();
        Ok(Self {
            vocab_size: vocab.len(),
            inner,
            origin: origin.to_owned(),
            largest_id,
            fingerprint,
            bos_token: template_bos(&value),
            spelling: Spelling::of(&value),
            added,
        })
    }

    /// From the small files of a model, by name: its `tokenizer.json`, and the BOS token that its
    /// `tokenizer_config.json` may ask for; `None` without the first. `place` is the model's folder
    /// or file, for errors.
    ///
    /// # Errors
    /// As [`Tokenizer::from_bytes`], or `tokenizer_config.json` is not JSON.
    pub fn from_model_files(files: &[(String, Vec<u8>)], place: &Path) -> Result<Option<Self>, DataError> {
        let file = |name: &str| files.iter().find(|(file, _)| file == name).map(|(_, bytes)| bytes.as_slice());
        let path = |name: &str| if place.is_file() { place.to_owned() } else { place.join(name) };
        let Some(json) = file(TOKENIZER) else { return Ok(None) };
        let mut tokenizer = Self::from_bytes(json, &path(TOKENIZER))?;
        if let (None, Some(config)) = (tokenizer.bos_token, file(TOKENIZER_CONFIG)) {
            let config: serde_json::Value = serde_json::from_slice(config)
                .map_err(|source| DataError::TokenizerConfig { path: path(TOKENIZER_CONFIG), source })?;
            tokenizer.bos_token = configured_bos(&config).and_then(|name| tokenizer.token_id(name));
        }
        Ok(Some(tokenizer))
    }

    /// From a `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be read or is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self, DataError> {
        Self::from_bytes(&fs_err::read(path)?, path)
    }

    /// Ids of `text`, without special tokens around it.
    ///
    /// # Errors
    /// The library cannot encode it, for example for want of an unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|source| self.failed("encode text", source))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of each text, in the order of `texts`; texts are encoded in parallel.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>, DataError> {
        texts.par_iter().map(|text| self.encode(text.as_ref())).collect()
    }

    /// Text of `ids`; with `skip_special` tokens that are marked special leave no text. Ids that
    /// the tokenizer does not have (padding rows of a model's vocabulary) leave none either.
    ///
    /// # Errors
    /// The library cannot decode them.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, DataError> {
        self.inner.decode(ids, skip_special).map_err(|source| self.failed("decode ids", source))
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Largest id that encoding can give.
    pub fn largest_id(&self) -> u32 {
        self.largest_id
    }

    /// The token that belongs before every text: what the template in `tokenizer.json` begins with
    /// or, in a file without a template, the `bos_token` of a `tokenizer_config.json` with
    /// `add_bos_token: true`. Encoding does not add it.
    pub fn bos_token(&self) -> Option<u32> {
        self.bos_token
    }

    /// Ids of a text that starts at the beginning: after the BOS token, if there is one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_start(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids: Vec<u32> = self.bos_token.into_iter().collect();
        ids.extend(self.encode(text)?);
        Ok(ids)
    }

    /// Id of a token, added ones included.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Token of an id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Bytes of the token of an id, which may be a part of a character; none for an id without a
    /// token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.token(id) else { return Vec::new() };
        if self.added.contains_key(&id) { token.into_bytes() } else { self.spelling.bytes(&token) }
    }

    /// True for a token that is marked special, which leaves no text where special tokens are
    /// skipped.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(&id).copied().unwrap_or(false)
    }

    /// SHA-256 of the JSON, in hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// File that the tokenizer was read from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Checks that a model with `model_vocab_size` embedding rows can take these ids.
    ///
    /// # Errors
    /// An id is past the model's vocabulary, or tokens cover less than half of it.
    pub fn check_vocab(&self, model_vocab_size: usize) -> Result<(), DataError> {
        let too_large = self.largest_id as usize >= model_vocab_size;
        if too_large || self.vocab_size < model_vocab_size.div_ceil(LEAST_COVERAGE) {
            return Err(DataError::VocabMismatch {
                path: self.origin.clone(),
                tokenizer: self.vocab_size,
                largest_id: self.largest_id,
                model: model_vocab_size,
            });
        }
        Ok(())
    }

    /// Checks that `id` is one of this tokenizer's, as an end-of-text id must be.
    ///
    /// # Errors
    /// It is not.
    pub fn check_token(&self, id: u32) -> Result<(), DataError> {
        if self.token(id).is_none() {
            return Err(DataError::NoSuchToken { path: self.origin.clone(), id });
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, source: tokenizers::Error) -> DataError {
        DataError::Tokenize { path: self.origin.clone(), action, source }
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A byte-level BPE of 400 tokens, made by tests/golden/make_tokenizer.py.
    pub(crate) fn tiny() -> Tokenizer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_tokenizer.json");
        Tokenizer::from_file(&path).unwrap()
    }

    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
        decoded: String,
        decoded_skipping_special: String,
    }

    fn cases() -> Vec<Case> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_tokenizer_cases.json");
        serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
    }

    #[test]
    fn ids_and_text_are_those_of_the_python_library() {
        let tokenizer = tiny();
        let cases = cases();
        for case in &cases {
            assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
            assert_eq!(tokenizer.decode(&case.ids, false).unwrap(), case.decoded, "{:?}", case.text);
            assert_eq!(tokenizer.decode(&case.ids, true).unwrap(), case.decoded_skipping_special, "{:?}", case.text);
        }
        let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
        let ids: Vec<Vec<u32>> = cases.iter().map(|case| case.ids.clone()).collect();
        assert_eq!(tokenizer.encode_batch(&texts).unwrap(), ids);
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_switched_off_and_no_token_is_added() {
        // The file asks for truncation to 8 tokens, padding to 16 and a BOS token before the text.
        let ids = tiny().encode("The quick brown fox jumps over the lazy dog, twice, and once more.").unwrap();
        assert!(ids.len() > 16, "{ids:?}");
        assert_eq!(tiny().encode("a").unwrap().len(), 1);
        assert!(tiny().encode("").unwrap().is_empty());
    }

    #[test]
    fn the_bos_token_is_that_of_the_template_or_of_the_configuration() {
        let json = fs_err::read(tiny().origin()).unwrap();
        let mut value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let file = |name: &str, content: &[u8]| (name.to_owned(), content.to_vec());
        let config = |text: &[u8]| file(TOKENIZER_CONFIG, text);
        let read = |files: &[(String, Vec<u8>)]| Tokenizer::from_model_files(files, Path::new("there"));
        let added = br#"{"bos_token": "<|endoftext|>", "add_bos_token": true}"#;
        // The template comes first.
        let bos = tiny().bos_token().unwrap();
        let both = [file(TOKENIZER, &json), config(added)];
        assert_eq!(read(&both).unwrap().unwrap().bos_token(), Some(bos));
        assert_eq!(tiny().encode_start("a").unwrap().first(), Some(&bos));

        value["post_processor"] = serde_json::Value::Null;
        let json = file(TOKENIZER, value.to_string().as_bytes());
        let end = tiny().token_id("<|endoftext|>");
        for (content, expected) in [(&added[..], end), (b"{\"add_bos_token\": true}", None), (b"{}", None)] {
            let tokenizer = read(&[json.clone(), config(content)]).unwrap().unwrap();
            assert_eq!(tokenizer.bos_token(), expected);
        }
        assert_eq!(read(std::slice::from_ref(&json)).unwrap().unwrap().bos_token(), None);
        assert!(read(&[config(added)]).unwrap().is_none());
        let error = read(&[json, config(b"{")]).unwrap_err().to_string();
        assert_eq!(error, "`there/tokenizer_config.json` is not JSON");
    }

    #[test]
    fn special_tokens_in_the_text_are_recognised() {
        let tokenizer = tiny();
        let end = tokenizer.token_id("<|endoftext|>").unwrap();
        let ids = tokenizer.encode("a<|endoftext|>b").unwrap();
        assert_eq!(ids.len(), 3);
        assert_eq!(ids[1], end);
        assert_eq!(tokenizer.token(end).unwrap(), "<|endoftext|>");
        assert_eq!(tokenizer.token_id("no such token"), None);
        assert_eq!(
            tokenizer.decode(&[9999, end], true).unwrap(),
            "",
            "neither an unknown id nor a special token is text"
        );
    }

    #[test]
    fn the_bytes_of_the_tokens_together_are_those_of_the_text() {
        let tokenizer = tiny();
        let text = "naïve 🦀 日本語 <|endoftext|> ok";
        let bytes = |id: &u32| tokenizer.token_bytes(*id);
        assert_eq!(tokenizer.encode(text).unwrap().iter().flat_map(bytes).collect::<Vec<u8>>(), text.as_bytes());
        assert!(tokenizer.token_bytes(9999).is_empty());
        assert!(tokenizer.is_special(tokenizer.token_id("<|endoftext|>").unwrap()) && !tokenizer.is_special(50));
    }

    #[test]
    fn sizes_count_added_tokens() {
        let tokenizer = tiny();
        assert_eq!(tokenizer.vocab_size(), 402);
        assert_eq!(tokenizer.largest_id(), 401);
    }

    #[test]
    fn a_vocabulary_that_does_not_fit_is_an_error_with_both_sizes() {
        let tokenizer = tiny();
        tokenizer.check_vocab(402).unwrap();
        tokenizer.check_vocab(512).unwrap();
        for model in [401, 805] {
            let message = tokenizer.check_vocab(model).unwrap_err().to_string();
            assert!(message.contains("does not match the model: it has 402 tokens with ids up to 401"), "{message}");
            assert!(message.contains(&format!("the model has a vocabulary of {model}")), "{message}");
        }
        tokenizer.check_token(401).unwrap();
        assert!(matches!(tokenizer.check_token(402), Err(DataError::NoSuchToken { id: 402, .. })));
    }

    #[test]
    fn json_that_is_no_tokenizer_is_an_error_with_its_origin() {
        let error = Tokenizer::from_bytes(b"{\"model\": 3}", Path::new("there/tokenizer.json")).unwrap_err();
        assert_eq!(error.to_string(), "tokenizer `there/tokenizer.json` cannot be read");
        assert!(std::error::Error::source(&error).is_some());
    }
}
