//! The field `prompt` of a completion: a text, several texts, token ids, or several lists of them.

use super::{context::Context, fields::Fields, refusal::Refusal};
use retie_data::{DataError, DecodeStream, Tokenizer};
use serde_json::Value;

const EXPECTED: &str = "a text, an array of texts, an array of token ids, or an array of such arrays";

/// A prompt as it was given.
#[derive(Clone, Debug)]
enum Given {
    Text(String),
    Ids(Vec<u32>),
}

/// The prompts of a request.
#[derive(Clone, Debug)]
pub struct Prompts(Vec<Given>);

/// A prompt as the engine takes it.
#[derive(Clone, Debug)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// Its text, as far as it is echoed.
    pub text: String,
    /// Character of the text at which each token begins.
    pub offsets: Vec<usize>,
}

impl Prompts {
    /// Takes the field.
    ///
    /// # Errors
    /// It is missing or not a prompt.
    pub fn take(fields: &mut Fields) -> Result<Self, Refusal> {
        let prompts = fields.read("prompt", EXPECTED, read)?;
        prompts.map(Self).ok_or_else(|| fields.missing("prompt", EXPECTED))
    }

    /// Tokenizes texts, after the BOS token if the tokenizer has one and `special` is true. An
    /// empty prompt becomes the token that stands for it. With `echo` the text of each prompt is
    /// made.
    ///
    /// # Errors
    /// The tokenizer fails, or an empty prompt has no token to stand for it.
    pub async fn encode(self, context: &Context, special: bool, echo: bool) -> Result<Vec<Prompt>, Refusal> {
        let prefix = context.model.prefix_token;
        let work = move |tokenizer: &Tokenizer| {
            self.0.into_iter().map(|given| encode(tokenizer, given, prefix, special, echo)).collect()
        };
        context.with_tokenizer(work).await
    }
}

fn read(value: &Value) -> Option<Vec<Given>> {
    let ids = |list: &Vec<Value>| -> Option<Vec<u32>> {
        list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
    };
    match value {
        Value::String(text) => Some(vec![Given::Text(text.clone())]),
        Value::Array(list) => match list.first()? {
            Value::Number(_) => Some(vec![Given::Ids(ids(list)?)]),
            Value::String(_) => list.iter().map(|text| Some(Given::Text(text.as_str()?.to_owned()))).collect(),
            _ => list.iter().map(|prompt| Some(Given::Ids(ids(prompt.as_array()?)?))).collect(),
        },
        _ => None,
    }
}

fn encode(
    tokenizer: &Tokenizer,
    given: Given,
    prefix: Option<u32>,
    special: bool,
    echo: bool,
) -> Result<Prompt, DataError> {
    let (text, mut ids) = match given {
        Given::Ids(ids) => (None, ids),
        Given::Text(text) => {
            let ids = if special { tokenizer.encode_start(&text)? } else { tokenizer.encode(&text)? };
            (Some(text), ids)
        }
    };
    if ids.is_empty() {
        ids.extend(prefix);
    }
    if !echo {
        return Ok(Prompt { ids, text: String::new(), offsets: Vec::new() });
    }
    let mut decoder = DecodeStream::new(tokenizer, true);
    let mut offsets = Vec::with_capacity(ids.len());
    let (mut decoded, mut num_chars) = (String::new(), 0);
    for id in &ids {
        offsets.push(num_chars);
        let piece = decoder.step(*id)?;
        num_chars += piece.chars().count();
        decoded += &piece;
    }
    decoded += &decoder.finish()?;
    Ok(Prompt { ids, text: text.unwrap_or(decoded), offsets })
}
