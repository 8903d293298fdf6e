//! `POST /v1/chat/completions`: the answer to a conversation, by the chat template of the model.

use super::{
    body::JsonBody,
    context::{Context, now},
    fields::Fields,
    generation::{Generation, MAX_TOP_LOGPROBS, Submitted, Usage, response_id},
    logprobs::content,
    refusal::Refusal,
    stream::{Part, Shape, add_recursions, respond},
};
use crate::job::{Event, Piece};
use axum::{extract::State, response::Response};
use retie_data::ChatTemplate;
use serde_json::{Map, Value, json};
use std::sync::Arc;

const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];

/// Answers a request.
///
/// # Errors
/// The request is wrong, there is no room, or the engine fails.
pub async fn handle(State(context): State<Arc<Context>>, JsonBody(mut fields): JsonBody) -> Result<Response, Refusal> {
    context.check_model(&mut fields)?;
    let generation = Generation::take(&mut fields, &context)?;
    let max_tokens = fields.integer_in("max_tokens", 1, usize::MAX)?;
    let max_tokens = fields.integer_in("max_completion_tokens", 1, usize::MAX)?.or(max_tokens);
    let with_logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let num_top = fields.count("top_logprobs", MAX_TOP_LOGPROBS)?;
    if num_top.is_some() && !with_logprobs {
        return Err(Refusal::of_field("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
    }
    let chat = Chat::take(&mut fields)?;
    context.note_unknown(&fields);
    context.inbox.check()?;
    let prompt = chat.encode(&context).await?;
    let prompt_tokens = prompt.len();
    let end_tokens = context.model.chat_template.as_ref().map_or(&[][..], ChatTemplate::end_tokens);
    let request = |choice| {
        let mut request = generation.request(&context, prompt.clone(), choice, max_tokens);
        request.logprobs = with_logprobs.then_some(num_top.unwrap_or(0));
        if !generation.ignore_eos {
            request.stop.eos_token_ids.extend(end_tokens);
        }
        request
    };
    let num_choices = generation.num_choices;
    let submitted = Submitted::submit(&context, (0..num_choices).map(request).collect(), &generation)?;
    let shape = Answers { id: response_id("chatcmpl"), created: now(), with_logprobs, context: Arc::clone(&context) };
    respond(shape, submitted, &generation, num_choices, prompt_tokens).await
}

/// A conversation, and the variables of the template that a request sets.
#[derive(Clone, Debug)]
pub struct Chat {
    messages: Value,
    variables: Map<String, Value>,
}

impl Chat {
    /// Takes the fields `messages`, `add_generation_prompt` and `chat_template_kwargs`.
    ///
    /// # Errors
    /// There is no message, or one is wrong.
    pub fn take(fields: &mut Fields) -> Result<Self, Refusal> {
        let expected = "an array of messages";
        let list = fields.read("messages", expected, |value| value.as_array().cloned())?;
        let list = list.filter(|list| !list.is_empty()).ok_or_else(|| fields.missing("messages", expected))?;
        let messages = list.into_iter().enumerate();
        let messages = messages.map(|(i, value)| message(value, &format!("messages[{i}]"), fields));
        let messages = messages.collect::<Result<Vec<_>, _>>()?.into();
        let add_generation_prompt = fields.flag("add_generation_prompt")?.unwrap_or(true);
        let given = fields.read("chat_template_kwargs", "an object", |value| value.as_object().cloned())?;
        let mut variables = given.unwrap_or_default();
        variables.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        Ok(Self { messages, variables })
    }

    /// Token ids of the prompt.
    ///
    /// # Errors
    /// The model has no template, or it does not take the messages.
    pub async fn encode(&self, context: &Context) -> Result<Vec<u32>, Refusal> {
        let Some(template) = &context.model.chat_template else {
            return Err(Refusal::bad_request(
                "the model has no chat template, expected one in `tokenizer_config.json` or `chat_template.jinja`; \
                 `/v1/completions` needs none",
            ));
        };
        let text = template.render(&self.messages, &self.variables)?;
        // The template writes the BOS token where there is one.
        context.with_tokenizer(move |tokenizer| tokenizer.encode(&text)).await
    }
}

/// A message as templates expect it: its content is one text. What is unknown in it is left to
/// `all`.
fn message(value: Value, place: &str, all: &mut Fields) -> Result<Value, Refusal> {
    let mut fields = Fields::of(value, place)?;
    let expected = format!("one of {}", ROLES.join(", "));
    let role = |value: &Value| value.as_str().filter(|role| ROLES.contains(role)).map(str::to_owned);
    let role = fields.read("role", &expected, role)?.ok_or_else(|| fields.missing("role", &expected))?;
    let expected = "a text or an array of text parts";
    let content = match fields.take("content") {
        None => return Err(fields.missing("content", expected)),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let parts = parts.into_iter().enumerate();
            let texts = parts.map(|(i, part)| text_part(part, &format!("{place}.content[{i}]"), all));
            texts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        Some(other) => return Err(fields.wrong("content", &other, expected)),
    };
    let name = fields.text("name")?;
    for unsupported in ["tool_calls", "function_call", "audio"] {
        if fields.take(unsupported).is_some() {
            let name = format!("{place}.{unsupported}");
            return Err(Refusal::of_field(name.clone(), format!("`{name}` is not supported")));
        }
    }
    all.absorb(&fields);
    let mut message = json!({"role": role, "content": content});
    if let Some(name) = name {
        message["name"] = name.into();
    }
    Ok(message)
}

fn text_part(value: Value, place: &str, all: &mut Fields) -> Result<String, Refusal> {
    let mut fields = Fields::of(value, place)?;
    let kind = fields.text("type")?.ok_or_else(|| fields.missing("type", "`text`"))?;
    if kind != "text" {
        return Err(fields.wrong("type", &kind.into(), "`text`: the model reads nothing else"));
    }
    let text = fields.text("text")?.ok_or_else(|| fields.missing("text", "a text"))?;
    all.absorb(&fields);
    Ok(text)
}

/// The form of the answers.
struct Answers {
    id: String,
    created: u64,
    with_logprobs: bool,
    context: Arc<Context>,
}

impl Answers {
    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.context.model.name,
            "choices": choices,
        })
    }

    fn logprobs(&self, content: Vec<Value>) -> Value {
        if self.with_logprobs { json!({"content": content, "refusal": null}) } else { Value::Null }
    }

    fn chunk(&self, choice: usize, delta: Value, logprobs: Value, finish_reason: Value) -> Value {
        let choice = json!({"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason});
        self.object("chat.completion.chunk", vec![choice])
    }
}

impl Shape for Answers {
    type Logprobs = Vec<Value>;

    fn opening(&mut self) -> Vec<Part<Vec<Value>>> {
        Vec::new()
    }

    fn part(&mut self, event: Event) -> Option<Part<Vec<Value>>> {
        let Event::Piece(piece) = event else { return None };
        // An EOS token is no part of the answer.
        let token = piece.token.filter(|token| !token.is_eos);
        let logprobs = token.iter().map(|token| content(&self.context.model.tokenizer, &token.logprobs)).collect();
        let Piece { choice, text, recursions, finish, .. } = piece;
        Some(Part { choice, text, logprobs, recursions, finish })
    }

    fn append(earlier: &mut Vec<Value>, later: Vec<Value>) {
        earlier.extend(later);
    }

    fn first_chunk(&self, choice: usize) -> Option<Value> {
        Some(self.chunk(choice, json!({"role": "assistant", "content": ""}), Value::Null, Value::Null))
    }

    fn chunks(&self, part: Part<Vec<Value>>) -> Vec<Value> {
        let mut chunks = Vec::new();
        if !part.text.is_empty() || !part.logprobs.is_empty() {
            let logprobs = self.logprobs(part.logprobs);
            let mut chunk = self.chunk(part.choice, json!({"content": part.text}), logprobs, Value::Null);
            add_recursions(&mut chunk["choices"][0], &part.recursions);
            chunks.push(chunk);
        }
        if let Some(finish) = part.finish {
            chunks.push(self.chunk(part.choice, json!({}), Value::Null, finish.reason.name().into()));
        }
        chunks
    }

    fn usage_chunk(&self, usage: &Usage) -> Value {
        let mut chunk = self.object("chat.completion.chunk", Vec::new());
        chunk["usage"] = usage.to_json();
        chunk
    }

    fn response(&self, answers: Vec<Part<Vec<Value>>>, usage: &Usage) -> Value {
        let choice = |answer: Part<Vec<Value>>| {
            let mut choice = json!({
                "index": answer.choice,
                "message": {"role": "assistant", "content": answer.text, "refusal": null},
                "logprobs": self.logprobs(answer.logprobs),
                "finish_reason": answer.finish.map(|finish| finish.reason.name()),
            });
            add_recursions(&mut choice, &answer.recursions);
            choice
        };
        let mut response = self.object("chat.completion", answers.into_iter().map(choice).collect());
        response["usage"] = usage.to_json();
        response
    }
}
