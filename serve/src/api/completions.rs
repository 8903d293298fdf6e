//! `POST /v1/completions`: text that goes on from a prompt, and scores of given texts.

use super::{
    body::JsonBody,
    context::{Context, now},
    generation::{Generation, MAX_TOP_LOGPROBS, Submitted, Usage, response_id},
    logprobs::Lists,
    prompts::{Prompt, Prompts},
    refusal::Refusal,
    stream::{Part, Shape, add_recursions, respond},
};
use crate::job::{Event, Piece};
use axum::{extract::State, response::Response};
use retie_engine::{Request, TokenLogprobs};
use serde_json::{Value, json};
use std::sync::Arc;

/// Most new tokens of a request that names no number.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Answers a request.
///
/// # Errors
/// The request is wrong, there is no room, or the engine fails.
pub async fn handle(State(context): State<Arc<Context>>, JsonBody(mut fields): JsonBody) -> Result<Response, Refusal> {
    context.check_model(&mut fields)?;
    let generation = Generation::take(&mut fields, &context)?;
    let max_tokens = fields.count("max_tokens", usize::MAX)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let num_top = fields.count("logprobs", MAX_TOP_LOGPROBS)?;
    let special = fields.flag("add_special_tokens")?.unwrap_or(true);
    if max_tokens == Some(0) && !echo {
        return Err(Refusal::of_field("max_tokens", "`max_tokens` is `0`, expected at least 1 without `echo`"));
    }
    let prompts = Prompts::take(&mut fields)?;
    context.note_unknown(&fields);
    context.inbox.check()?;
    let prompts = prompts.encode(&context, special, echo).await?;
    let request = |(prompt, choice): (&Prompt, usize)| {
        let room = context.options.engine.context.saturating_sub(prompt.ids.len()).max(1);
        let max_new_tokens = max_tokens.unwrap_or(DEFAULT_MAX_TOKENS.min(room));
        let scored = echo && (num_top.is_some() || max_new_tokens == 0);
        Request {
            logprobs: num_top,
            prompt_logprobs: scored.then_some(num_top.unwrap_or(0)),
            ..generation.request(&context, prompt.ids.clone(), choice, Some(max_new_tokens))
        }
    };
    let num_choices = generation.num_choices;
    let each = prompts.iter().flat_map(|prompt| (0..num_choices).map(move |choice| (prompt, choice)));
    let requests: Vec<Request> = each.map(request).collect();
    let all_choices = requests.len();
    let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len()).sum();
    let submitted = Submitted::submit(&context, requests, &generation)?;
    let choice = |choice: usize| Choice { prompt: choice / num_choices, scored: Vec::new(), is_open: !echo };
    let shape = Completions {
        id: response_id("cmpl"),
        created: now(),
        num_top,
        choices: (0..all_choices).map(choice).collect(),
        prompts,
        context: Arc::clone(&context),
    };
    respond(shape, submitted, &generation, all_choices, prompt_tokens).await
}

/// The form of the answers.
struct Completions {
    id: String,
    created: u64,
    /// Number of most probable tokens of log-probabilities, if they are asked for.
    num_top: Option<usize>,
    prompts: Vec<Prompt>,
    choices: Vec<Choice>,
    context: Arc<Context>,
}

/// State of a choice.
struct Choice {
    /// Index of its prompt.
    prompt: usize,
    /// Log-probabilities of the tokens of the prompt but the first, as far as they are there.
    scored: Vec<TokenLogprobs>,
    /// False while the echo of its prompt has not been given.
    is_open: bool,
}

impl Completions {
    /// The echo of a choice, once the log-probabilities of its prompt are there.
    fn echo(&mut self, choice: usize) -> Option<Part<Lists>> {
        let state = self.choices.get_mut(choice)?;
        let prompt = &self.prompts[state.prompt];
        let waits = self.num_top.is_some() && state.scored.len() + 1 < prompt.ids.len();
        if state.is_open || waits {
            return None;
        }
        state.is_open = true;
        let mut logprobs = Lists::default();
        if self.num_top.is_some() {
            let tokenizer = &self.context.model.tokenizer;
            logprobs.push_first(tokenizer, prompt.ids[0], prompt.offsets[0]);
            for (found, offset) in state.scored.iter().zip(&prompt.offsets[1..]) {
                logprobs.push(tokenizer, found, *offset);
            }
        }
        Some(Part { choice, text: prompt.text.clone(), logprobs, ..Part::default() })
    }

    fn object(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.context.model.name,
            "choices": choices,
        })
    }

    fn choice(&self, part: Part<Lists>) -> Value {
        let mut choice = json!({
            "index": part.choice,
            "text": part.text,
            "logprobs": self.num_top.map(|_| part.logprobs.into_json()),
            "finish_reason": part.finish.map(|finish| finish.reason.name()),
        });
        add_recursions(&mut choice, &part.recursions);
        choice
    }
}

impl Shape for Completions {
    type Logprobs = Lists;

    fn opening(&mut self) -> Vec<Part<Lists>> {
        (0..self.choices.len()).filter_map(|choice| self.echo(choice)).collect()
    }

    fn part(&mut self, event: Event) -> Option<Part<Lists>> {
        match event {
            Event::Prompt { choice, logprobs } => {
                self.choices.get_mut(choice)?.scored.extend(logprobs);
                self.echo(choice)
            }
            Event::Piece(piece) => {
                let echoed = self.choices.get(piece.choice)?;
                let before = &self.prompts[echoed.prompt];
                let mut logprobs = Lists::default();
                if let Some(token) = &piece.token {
                    let offset = before.text.chars().count() + token.offset;
                    logprobs.push(&self.context.model.tokenizer, &token.logprobs, offset);
                }
                let Piece { choice, text, recursions, finish, .. } = piece;
                Some(Part { choice, text, logprobs, recursions, finish })
            }
            Event::Failed(_) => None,
        }
    }

    fn append(earlier: &mut Lists, later: Lists) {
        earlier.append(later);
    }

    fn first_chunk(&self, _: usize) -> Option<Value> {
        None
    }

    fn chunks(&self, part: Part<Lists>) -> Vec<Value> {
        vec![self.object(vec![self.choice(part)])]
    }

    fn usage_chunk(&self, usage: &Usage) -> Value {
        let mut chunk = self.object(Vec::new());
        chunk["usage"] = usage.to_json();
        chunk
    }

    fn response(&self, answers: Vec<Part<Lists>>, usage: &Usage) -> Value {
        let mut response = self.object(answers.into_iter().map(|answer| self.choice(answer)).collect());
        response["usage"] = usage.to_json();
        response
    }
}
