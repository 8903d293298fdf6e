//! Log-probabilities in the forms of `completions` (lists side by side) and `chat` (an object for
//! each token).

use retie_data::Tokenizer;
use retie_engine::TokenLogprobs;
use serde_json::{Map, Value, json};

/// Stands for −∞, which JSON does not have.
const LEAST: f32 = -9999.0;

/// The `logprobs` of a choice of `completions`.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<Value>,
}

impl Lists {
    /// Appends the first token of a prompt, which has no log-probability.
    pub fn push_first(&mut self, tokenizer: &Tokenizer, token: u32, offset: usize) {
        self.tokens.push(label(tokenizer, token).into());
        self.token_logprobs.push(Value::Null);
        self.top_logprobs.push(Value::Null);
        self.text_offset.push(offset.into());
    }

    /// Appends a token that begins at character `offset` of the text.
    pub fn push(&mut self, tokenizer: &Tokenizer, found: &TokenLogprobs, offset: usize) {
        self.tokens.push(label(tokenizer, found.token).into());
        self.token_logprobs.push(finite(found.logprob).into());
        let mut top = Map::new();
        let chosen = (!found.top.iter().any(|(id, _)| *id == found.token)).then_some((found.token, found.logprob));
        for (id, logprob) in found.top.iter().copied().chain(chosen) {
            let name = label(tokenizer, id);
            // Two tokens may have the same text.
            let name = if top.contains_key(&name) { id_label(id) } else { name };
            top.insert(name, finite(logprob).into());
        }
        self.top_logprobs.push(top.into());
        self.text_offset.push(offset.into());
    }

    /// Appends the tokens of `later`.
    pub fn append(&mut self, mut later: Self) {
        self.tokens.append(&mut later.tokens);
        self.token_logprobs.append(&mut later.token_logprobs);
        self.top_logprobs.append(&mut later.top_logprobs);
        self.text_offset.append(&mut later.text_offset);
    }

    /// The object under `logprobs`.
    pub fn into_json(self) -> Value {
        let Self { tokens, token_logprobs, top_logprobs, text_offset } = self;
        json!({
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": top_logprobs,
            "text_offset": text_offset,
        })
    }
}

/// The entry of a token under `logprobs.content` of a choice of `chat`.
pub fn content(tokenizer: &Tokenizer, found: &TokenLogprobs) -> Value {
    let entry = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id);
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": finite(logprob), "bytes": bytes})
    };
    let top: Vec<Value> = found.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
    let mut content = entry(found.token, found.logprob);
    content["top_logprobs"] = top.into();
    content
}

/// The text of a token, or its id if it is no text: a part of a character, or a token without text.
fn label(tokenizer: &Tokenizer, id: u32) -> String {
    let text = String::from_utf8(tokenizer.token_bytes(id)).ok().filter(|text| !text.is_empty());
    text.unwrap_or_else(|| id_label(id))
}

fn id_label(id: u32) -> String {
    format!("token_id:{id}")
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST)
}
