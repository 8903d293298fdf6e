//! A Hugging Face `tokenizer.json` (<https://github.com/huggingface/tokenizers>): text ↔ ids.
//!
//! Encoding adds no token of its own (no BOS, no EOS), and recognises added tokens written in the
//! text, as the library does by default. Truncation and padding that a `tokenizer.json` may ask for
//! are switched off: every token of a text comes back.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tokenizers::AddedToken;

use crate::bos::Around;
use crate::companions::Companions;
use crate::error::DataError;
use crate::guarded::guarded;
use crate::token_bytes::Spelling;

/// A model that pads its vocabulary to a round size has few rows that no token uses (the most seen
/// is about 3 %); where tokens cover less than one part in this many, the tokenizer is another
/// model's.
const LEAST_COVERAGE: usize = 2;

/// Name of the file in a model's folder.
const TOKENIZER: &str = "tokenizer.json";

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
    /// Rows of the model's embeddings; an id past them is no input.
    rows: usize,
    /// Fingerprint with the rows, where some tokens are past them.
    fingerprint_with_rows: Option<String>,
}

impl Tokenizer {
    /// From the bytes of a `tokenizer.json`; `origin` names them in errors.
    ///
    /// # Errors
    /// The JSON is not a tokenizer, or one without any token.
    pub fn from_bytes(json: &[u8], origin: &Path) -> Result<Self, DataError> {
        let wrap = |source| DataError::Tokenizer { path: origin.to_owned(), source };
        let unparseable = |message| DataError::Unparseable { path: origin.to_owned(), message };
        let mut value: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
        let steady = without_dropout(&mut value, origin);
        let read = steady.as_deref().unwrap_or(json);
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(read)).map_err(unparseable)?.map_err(wrap)?;
        inner.with_truncation(None).map_err(wrap)?;
        inner.with_padding(None);
        let vocab = inner.get_vocab(true);
        let largest_id = vocab.values().copied().max().ok_or_else(|| wrap("the vocabulary is empty".into()))?;
        let fingerprint = hex(&Sha256::digest(json));
        let around = Around::of(&value);
        if around.before.len() > 1 {
            let tokens = around.before.join("`, `");
            return Err(DataError::SeveralBefore { path: origin.to_owned(), tokens });
        }
        if !around.after.is_empty() {
            let (path, tokens) = (origin.display(), around.after.join("`, `"));
            tracing::warn!(%path, "its template also puts `{tokens}` behind a text, which is not done: a text may go on");
        }
        let added = added_tokens(&inner);
        Ok(Self {
            vocab_size: vocab.len(),
            inner,
            origin: origin.to_owned(),
            largest_id,
            fingerprint,
            bos_token: around.bos,
            spelling: Spelling::of(&value),
            added,
            rows: usize::MAX,
            fingerprint_with_rows: None,
        })
    }

    /// From the small files of a model, by name: its `tokenizer.json`, and the tokens that
    /// `tokenizer_config.json` and other files beside it add; `None` without the first. `place` is
    /// the model's folder or file, for errors.
    ///
    /// # Errors
    /// As [`Tokenizer::from_bytes`], or one of the other files is not JSON.
    pub fn from_model_files(files: &[(String, Vec<u8>)], place: &Path) -> Result<Option<Self>, DataError> {
        let file = |name: &str| files.iter().find(|(file, _)| file == name).map(|(_, bytes)| bytes.as_slice());
        let path = |name: &str| if place.is_file() { place.to_owned() } else { place.join(name) };
        let Some(json) = file(TOKENIZER) else { return Ok(None) };
        let mut tokenizer = Self::from_bytes(json, &path(TOKENIZER))?;
        tokenizer.add(&Companions::read(files, path)?, json)?;
        Ok(Some(tokenizer))
    }

    /// Adds the tokens that `tokenizer.json`, of content `json`, lacks.
    fn add(&mut self, companions: &Companions, json: &[u8]) -> Result<(), DataError> {
        let path = self.origin.display();
        if let Some(stated) = companions.add_bos_token.filter(|stated| *stated != self.bos_token.is_some()) {
            tracing::warn!(%path, "`add_bos_token: {stated}` beside it is ignored, as in transformers 5: its template counts");
        }
        if let Some(stated) = companions.add_prefix_space.filter(|stated| prefix_space(json) == Some(!stated)) {
            tracing::warn!(%path, "`add_prefix_space: {stated}` beside it is ignored: its pre-tokenizer counts");
        }
        let before = self.inner.get_added_tokens_decoder();
        // A token that `tokenizer.json` has keeps how that says it is found in a text.
        let known: HashMap<&str, &AddedToken> = before.values().map(|token| (token.content.as_str(), token)).collect();
        let tokens = companions.tokens.iter().map(|(token, _)| match known.get(token.content.as_str()) {
            Some(known) => AddedToken { special: known.special || token.special, ..(*known).clone() },
            None => token.clone(),
        });
        let added = self.inner.add_tokens(tokens.collect::<Vec<_>>());
        added.map_err(|source| DataError::Tokenizer { path: self.origin.clone(), source })?;
        self.inner.set_encode_special_tokens(companions.split_special_tokens);
        if self.inner.get_added_tokens_decoder() != before || companions.split_special_tokens {
            let mut hasher = Sha256::new_with_prefix(json);
            hasher.update([u8::from(companions.split_special_tokens)]);
            companions.tokens.iter().for_each(|(token, _)| hasher.update(format!("{token:?}")));
            self.fingerprint = hex(&hasher.finalize());
            let vocab = self.inner.get_vocab(true);
            self.vocab_size = vocab.len();
            self.largest_id = vocab.values().copied().max().unwrap_or(self.largest_id);
            self.added = added_tokens(&self.inner);
        }
        for (token, stated) in &companions.tokens {
            let found = self.token_id(&token.content);
            if let Some(stated) = stated.filter(|stated| found != Some(*stated)) {
                let token = &token.content;
                tracing::warn!(%path, token, stated, found, "a file beside it states another id of a token");
            }
        }
        Ok(())
    }

    /// The same tokenizer for a model with `rows` rows of embeddings: encoding gives no id past
    /// them.
    ///
    /// # Errors
    /// A token of the vocabulary itself (not one that was added to it) is past them, or the BOS
    /// token, or tokens cover less than half of them.
    pub fn for_model(mut self, rows: usize) -> Result<Self, DataError> {
        let past = |id: u32| id as usize >= rows;
        let is_other = self.inner.get_vocab(false).values().any(|id| past(*id)) || self.bos_token.is_some_and(past);
        if is_other || self.vocab_size < rows.div_ceil(LEAST_COVERAGE) {
            return Err(DataError::VocabMismatch {
                path: self.origin,
                tokenizer: self.vocab_size,
                largest_id: self.largest_id,
                model: rows,
            });
        }
        if past(self.largest_id) {
            let path = self.origin.display();
            let (added, largest_id) = (self.inner.get_added_tokens_decoder(), self.largest_id);
            let tokens = added.keys().filter(|id| past(**id)).count();
            tracing::info!(%path, tokens, largest_id, rows, "the model has no row for some added tokens: no text may hold one");
        }
        let with_rows = || hex(&Sha256::digest(format!("{} of {rows} rows", self.fingerprint)));
        self.fingerprint_with_rows = past(self.largest_id).then(with_rows);
        self.rows = rows;
        Ok(self)
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
    /// The library cannot encode it, for example for want of an unknown token; or it holds a token
    /// that the model has no row of embeddings for.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|source| self.failed("encode text", source))?;
        let ids = encoding.get_ids();
        match ids.iter().find(|id| **id as usize >= self.rows) {
            None => Ok(ids.to_vec()),
            Some(id) => Err(self.no_row(*id)),
        }
    }

    /// Ids of `text` as [`Tokenizer::encode`] gives them, and where each is in it, in bytes.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_places(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>), DataError> {
        let encoding = self.inner.encode(text, false).map_err(|source| self.failed("encode text", source))?;
        match encoding.get_ids().iter().find(|id| **id as usize >= self.rows) {
            None => {
                let places = encoding.get_offsets().iter().map(|(start, end)| *start..*end);
                Ok((encoding.get_ids().to_vec(), places.collect()))
            }
            Some(id) => Err(self.no_row(*id)),
        }
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

    /// The token that belongs before every text: what the template in `tokenizer.json` begins with.
    /// Encoding does not add it.
    pub fn bos_token(&self) -> Option<u32> {
        self.bos_token
    }

    /// What stands before a text that starts at the beginning, in words.
    #[must_use]
    pub fn start_in_words(&self) -> String {
        match self.bos_token.and_then(|bos| self.token(bos)) {
            Some(bos) => format!("a text begins with the BOS token `{bos}`"),
            None => "a text begins without a BOS token, as its tokenizer wants it".to_owned(),
        }
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

    /// The same of what a text becomes: another one for each number of rows where some tokens are
    /// past them, so that no model gets tokens that were made for a larger one.
    pub(crate) fn fingerprint_of_tokens(&self) -> &str {
        self.fingerprint_with_rows.as_deref().unwrap_or(&self.fingerprint)
    }

    /// File that the tokenizer was read from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Checks that `id` is one of this tokenizer's and of its model's, as an end-of-text id must
    /// be.
    ///
    /// # Errors
    /// It is not.
    pub fn check_token(&self, id: u32) -> Result<(), DataError> {
        match self.token(id) {
            None => Err(DataError::NoSuchToken { path: self.origin.clone(), id }),
            Some(_) if id as usize >= self.rows => Err(self.no_row(id)),
            Some(_) => Ok(()),
        }
    }

    /// Tokens by id, added ones included.
    pub(crate) fn tokens(&self) -> std::collections::BTreeMap<u32, String> {
        self.inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect()
    }

    fn no_row(&self, id: u32) -> DataError {
        let token = self.token(id).unwrap_or_default();
        DataError::NoRow { path: self.origin.clone(), token, id, rows: self.rows }
    }

    fn failed(&self, action: &'static str, source: tokenizers::Error) -> DataError {
        DataError::Tokenize { path: self.origin.clone(), action, source }
    }
}

/// Tokens outside of the vocabulary proper, by id; true for special ones.
fn added_tokens(inner: &tokenizers::Tokenizer) -> BTreeMap<u32, bool> {
    inner.get_added_tokens_decoder().iter().map(|(id, token)| (*id, token.special)).collect()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tokenizer without BPE dropout, where it has some: with it, a text has other tokens each
/// time.
fn without_dropout(value: &mut serde_json::Value, origin: &Path) -> Option<Vec<u8>> {
    let dropout = value.get_mut("model")?.get_mut("dropout")?;
    let stated = dropout.as_f64().filter(|stated| *stated > 0.0)?;
    tracing::warn!(path = %origin.display(), "`dropout: {stated}` is switched off: a text has the same tokens each time");
    *dropout = serde_json::Value::Null;
    serde_json::to_vec(value).ok()
}

/// `add_prefix_space` of the byte-level pre-tokenizer of a `tokenizer.json`, if it has one.
fn prefix_space(json: &[u8]) -> Option<bool> {
    let value: serde_json::Value = serde_json::from_slice(json).ok()?;
    let step = value.get("pre_tokenizer")?;
    let steps =
        step.get("pretokenizers").and_then(|steps| steps.as_array()).map_or(std::slice::from_ref(step), Vec::as_slice);
    steps.iter().find(|step| step["type"] == "ByteLevel")?.get("add_prefix_space")?.as_bool()
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
    fn a_file_that_is_cut_off_anywhere_is_an_error() {
        let json = include_bytes!("../../fuzz/corpus/tokenizer/bpe");
        for len in 0..json.len() - 2 {
            assert!(Tokenizer::from_bytes(&json[..len], Path::new("there")).is_err(), "{len}");
        }
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

    /// The tiny tokenizer with other files beside it.
    fn beside(others: &[(&str, &str)]) -> Result<Tokenizer, DataError> {
        let json = fs_err::read(tiny().origin()).unwrap();
        let others = others.iter().map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec()));
        let files: Vec<_> = [(TOKENIZER.to_owned(), json)].into_iter().chain(others).collect();
        Ok(Tokenizer::from_model_files(&files, Path::new("there"))?.unwrap())
    }

    /// The tiny tokenizer after a change of its JSON, with `config` beside it.
    fn changed(change: impl Fn(&mut serde_json::Value), config: &str) -> Result<Tokenizer, DataError> {
        let mut json: serde_json::Value = serde_json::from_slice(&fs_err::read(tiny().origin()).unwrap()).unwrap();
        change(&mut json);
        let file = |name: &str, text: String| (name.to_owned(), text.into_bytes());
        let files = [file(TOKENIZER, json.to_string()), file("tokenizer_config.json", config.to_owned())];
        Ok(Tokenizer::from_model_files(&files, Path::new("there"))?.unwrap())
    }

    #[test]
    fn a_token_is_found_in_a_text_as_tokenizer_json_says() {
        let strips = |json: &mut serde_json::Value| {
            let token = &mut json["added_tokens"][0];
            assert_eq!(token["content"], "<|endoftext|>");
            (token["lstrip"], token["rstrip"]) = (true.into(), true.into());
        };
        let plain = r#"{"eos_token": "<|endoftext|>"}"#;
        let stated =
            r#"{"added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": true, "lstrip": false}}}"#;
        for config in ["{}", plain, stated] {
            // As `AutoTokenizer` of transformers 5.24 has it.
            assert_eq!(changed(strips, config).unwrap().encode("a <|endoftext|> b").unwrap().len(), 3, "{config}");
        }
        assert_eq!(changed(|_| (), plain).unwrap().encode("a <|endoftext|> b").unwrap().len(), 5);
    }

    #[test]
    fn a_text_has_the_same_tokens_each_time_whatever_the_dropout() {
        let text = "The quick brown fox jumps over the lazy dog, twice, and once more.";
        let dropping = changed(|json| json["model"]["dropout"] = 0.9.into(), "{}").unwrap();
        assert_eq!(dropping.encode(text).unwrap(), tiny().encode(text).unwrap());
        assert_ne!(dropping.fingerprint(), tiny().fingerprint());
    }

    #[test]
    fn a_template_with_several_tokens_before_a_text_is_refused() {
        let twice = |json: &mut serde_json::Value| {
            let post = &mut json["post_processor"];
            let template = if post["type"] == "Sequence" { &mut post["processors"][1] } else { post };
            let first = template["single"][0].clone();
            template["single"].as_array_mut().unwrap().insert(0, first);
        };
        let error = changed(twice, "{}").unwrap_err().to_string();
        assert!(error.contains("puts several tokens before a text: `"), "{error}");
    }

    #[test]
    fn the_bos_token_is_that_of_the_template_whatever_stands_beside_it() {
        let bos = tiny().bos_token().unwrap();
        for config in ["{}", r#"{"add_bos_token": false}"#, r#"{"bos_token": "<|endoftext|>", "add_bos_token": true}"#]
        {
            assert_eq!(beside(&[("tokenizer_config.json", config)]).unwrap().bos_token(), Some(bos));
        }
        assert_eq!(tiny().encode_start("a").unwrap().first(), Some(&bos));
        let json = String::from_utf8(fs_err::read(tiny().origin()).unwrap()).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
        value["post_processor"] = serde_json::Value::Null;
        let files =
            [(TOKENIZER, value.to_string()), ("tokenizer_config.json", r#"{"add_bos_token": true}"#.to_owned())];
        let files = files.map(|(name, content)| (name.to_owned(), content.into_bytes()));
        assert_eq!(Tokenizer::from_model_files(&files, Path::new("there")).unwrap().unwrap().bos_token(), None);
        assert!(Tokenizer::from_model_files(&files[1..], Path::new("there")).unwrap().is_none());
        let error = beside(&[("tokenizer_config.json", "{")]).unwrap_err().to_string();
        assert_eq!(error, "`there/tokenizer_config.json` is not JSON");
    }

    // Ids of `AutoTokenizer` of transformers 5.24 on the same files, without the padding of the
    // first, which is with a token of its own there.
    #[test]
    fn tokens_that_only_the_files_beside_name_are_added_with_the_next_ids() {
        let decoder = r#"{"added_tokens_decoder": {"500": {"content": "<zz>", "special": true, "normalized": false}}}"#;
        let extra = r#"{"extra_special_tokens": ["<yy>"], "model_max_length": Infinity}"#;
        let ids = |others: &[(&str, &str)]| {
            let tokenizer = beside(others).unwrap();
            ["<zz>", "<yy>", "<ww>"].map(|token| tokenizer.token_id(token))
        };
        let (config, added) = ("tokenizer_config.json", ("added_tokens.json", r#"{"<ww>": 410}"#));
        assert_eq!(ids(&[(config, "{}")]), [None, None, None]);
        assert_eq!(ids(&[(config, decoder), added]), [Some(402), None, None]);
        assert_eq!(ids(&[(config, extra)]), [None, Some(402), None]);
        assert_eq!(ids(&[(config, extra), added]), [None, Some(403), Some(402)]);
        let tokenizer = beside(&[(config, extra)]).unwrap();
        assert_eq!(tokenizer.encode("a<yy>").unwrap().last(), Some(&402));
        assert_eq!((tokenizer.vocab_size(), tokenizer.largest_id()), (403, 402));
        assert_ne!(tokenizer.fingerprint(), tiny().fingerprint());
        let known = r#"{"eos_token": "<|endoftext|>"}"#;
        assert_eq!(beside(&[(config, known)]).unwrap().fingerprint(), tiny().fingerprint());
    }

    // Ids of `AutoTokenizer` of transformers 5.24.
    #[test]
    fn special_tokens_are_cut_like_text_where_the_configuration_says_so() {
        let config = r#"{"split_special_tokens": true}"#;
        let tokenizer = beside(&[("tokenizer_config.json", config)]).unwrap();
        assert_eq!(tokenizer.encode("a<|endoftext|>").unwrap(), [66, 29, 93, 70, 79, 69, 80, 71, 278, 93, 31]);
        assert_eq!(tiny().encode("a<|endoftext|>").unwrap(), [66, 0]);
        assert_ne!(tokenizer.fingerprint(), tiny().fingerprint());
    }

    #[test]
    fn an_added_token_past_the_table_is_refused_only_in_a_text_that_holds_it() {
        let extra = r#"{"extra_special_tokens": ["<image>"]}"#;
        let tokenizer = beside(&[("tokenizer_config.json", extra)]).unwrap().for_model(402).unwrap();
        assert_eq!(tokenizer.encode("a row").unwrap(), tiny().encode("a row").unwrap());
        let error = tokenizer.encode("a <image>").unwrap_err().to_string();
        assert!(error.contains("token `<image>` has the id 402, and the model 402 rows of embeddings"), "{error}");
        assert!(matches!(tokenizer.check_token(402), Err(DataError::NoRow { .. })));
        assert!(tokenizer.encode_batch(&["a", "<image>"]).is_err());
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
        tiny().for_model(402).unwrap();
        tiny().for_model(512).unwrap();
        for model in [300, 805] {
            let message = tiny().for_model(model).unwrap_err().to_string();
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
