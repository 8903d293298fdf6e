//! The tokenizer over HTTP, as vLLM serves it: `POST /tokenize`, `POST /detokenize` and
//! `GET /tokenizer_info`. Evaluation harnesses use them in place of a tokenizer of their own.

use super::{body::JsonBody, chat::Chat, context::Context, fields::Fields, json::Json, refusal::Refusal};
use axum::extract::State;
use retie_data::Tokenizer;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Token ids of a `prompt`, or of `messages` under the chat template.
///
/// # Errors
/// The request is wrong.
pub async fn tokenize(State(context): State<Arc<Context>>, JsonBody(mut fields): JsonBody) -> Result<Json, Refusal> {
    context.check_model(&mut fields)?;
    let special = fields.flag("add_special_tokens")?;
    let with_texts = fields.flag("return_token_strs")?.unwrap_or(false);
    let ids = match fields.text("prompt")? {
        Some(prompt) => {
            let special = special.unwrap_or(true);
            let encode = move |tokenizer: &Tokenizer| {
                if special { tokenizer.encode_start(&prompt) } else { tokenizer.encode(&prompt) }
            };
            context.with_tokenizer(encode).await?
        }
        None => tokenize_chat(&context, &mut fields, special).await?,
    };
    context.note_unknown(&fields);
    let text = |id: &u32| context.model.tokenizer.token(*id);
    let texts = with_texts.then(|| ids.iter().map(text).collect::<Vec<_>>());
    Ok(Json(json!({
        "count": ids.len(),
        "max_model_len": context.options.engine.context,
        "tokens": ids,
        "token_strs": texts,
    })))
}

async fn tokenize_chat(context: &Context, fields: &mut Fields, special: Option<bool>) -> Result<Vec<u32>, Refusal> {
    if !fields.has("messages") {
        return Err(fields.missing("prompt", "a text, or `messages`"));
    }
    let chat = Chat::take(fields)?;
    if special == Some(true) {
        let message = "`add_special_tokens` is not supported with `messages`: the chat template writes special tokens";
        return Err(Refusal::of_field("add_special_tokens", message));
    }
    chat.encode(context).await
}

/// Text of token ids, special tokens included.
///
/// # Errors
/// The request is wrong, or the tokenizer fails.
pub async fn detokenize(State(context): State<Arc<Context>>, JsonBody(mut fields): JsonBody) -> Result<Json, Refusal> {
    context.check_model(&mut fields)?;
    let expected = "an array of token ids";
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = |value: &Value| value.as_array()?.iter().map(id).collect::<Option<Vec<u32>>>();
    let ids = fields.read("tokens", expected, ids)?.ok_or_else(|| fields.missing("tokens", expected))?;
    context.note_unknown(&fields);
    let prompt = context.with_tokenizer(move |tokenizer| tokenizer.decode(&ids, false)).await?;
    Ok(Json(json!({ "prompt": prompt })))
}

/// Special tokens and chat template.
pub async fn info(State(context): State<Arc<Context>>) -> Json {
    let model = &context.model;
    let token = |id: Option<u32>| id.and_then(|id| model.tokenizer.token(id));
    let mut info = Map::new();
    if let Some(template) = &model.chat_template {
        info.extend(template.special_tokens().clone());
        info.insert("chat_template".to_owned(), template.source().into());
    }
    let mut add = |name: &str, token: Option<String>| {
        if let Some(token) = token {
            info.entry(name).or_insert_with(|| token.into());
        }
    };
    add("eos_token", token(model.eos_token_ids.first().copied()));
    add("bos_token", token(model.tokenizer.bos_token()));
    Json(info.into())
}
