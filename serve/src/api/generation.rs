//! What the requests of `completions` and `chat` have in common: sampling, stop conditions, the
//! choices of a request, and their submission to the engine.

use super::{context::Context, exits::AskedExits, fields::Fields, refusal::Refusal};
use crate::job::{Event, Events, Finish, Job};
use retie_engine::{Request, Sampling, StopConditions};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Instant,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Most choices of a prompt.
const MAX_CHOICES: usize = 8;
/// Most stop strings.
const MAX_STOPS: usize = 16;
/// Most bytes of a stop string.
const MAX_STOP_BYTES: usize = 256;
/// Most probable tokens that log-probabilities are given of.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// Fields that would change the result and are not supported, with the values that change nothing.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("audio", &[]),
    ("bad_words", &[]),
    ("best_of", &["1"]),
    ("continue_final_message", &[]),
    ("chat_template", &[]),
    ("documents", &[]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("length_penalty", &["1", "1.0"]),
    ("logit_bias", &[]),
    ("min_tokens", &[]),
    ("modalities", &["[\"text\"]"]),
    ("prompt_logprobs", &[]),
    ("reasoning_effort", &[]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("stop_token_ids", &[]),
    ("structured_outputs", &[]),
    ("suffix", &[]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("tools", &[]),
    ("truncate_prompt_tokens", &[]),
    ("use_beam_search", &[]),
    ("verbosity", &["\"medium\""]),
    ("web_search_options", &[]),
];

/// Fields that both kinds of requests have.
#[derive(Debug)]
pub struct Generation {
    pub sampling: Sampling,
    /// Choices of each prompt.
    pub num_choices: usize,
    pub stop_strings: Vec<String>,
    /// True if an EOS token does not end a text.
    pub ignore_eos: bool,
    pub stream: bool,
    /// True if a stream ends with its usage.
    pub include_usage: bool,
    /// When tokens leave the loop.
    pub exits: AskedExits,
    /// True if the answer has the recursion counts of its tokens.
    pub recursion_counts: bool,
    /// Only requests with the same salt reuse what others have read.
    pub salt: String,
}

impl Generation {
    /// Takes the fields.
    ///
    /// # Errors
    /// A value has the wrong type, is out of its range, or is not supported.
    pub fn take(fields: &mut Fields, context: &Context) -> Result<Self, Refusal> {
        fields.refuse(UNSUPPORTED)?;
        let seed =
            fields.read("seed", "an integer", |value| value.as_i64().map(|seed| seed as u64).or(value.as_u64()))?;
        let sampling = Sampling {
            temperature: fields.number("temperature")?.unwrap_or(1.0),
            top_k: fields.read("top_k", "an integer", top_k)?.unwrap_or(0),
            top_p: fields.number("top_p")?.unwrap_or(1.0),
            min_p: fields.number("min_p")?.unwrap_or(0.0),
            repetition_penalty: fields.number("repetition_penalty")?.unwrap_or(1.0),
            presence_penalty: fields.number("presence_penalty")?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(0.0),
            seed: seed.unwrap_or_else(random),
        };
        sampling.check()?;
        let num_choices = fields.integer_in("n", 1, MAX_CHOICES)?.unwrap_or(1);
        let expected = format!("a text or up to {MAX_STOPS} texts, of 1 to {MAX_STOP_BYTES} bytes each");
        let stop_strings = fields.read("stop", &expected, stop_strings)?.unwrap_or_default();
        let ignore_eos = fields.flag("ignore_eos")?.unwrap_or(false);
        let stream = fields.flag("stream")?.unwrap_or(false);
        let mut include_usage = false;
        if let Some(mut options) = fields.object("stream_options")? {
            if !stream {
                return Err(Refusal::of_field("stream_options", "`stream_options` needs `stream: true`"));
            }
            include_usage = options.flag("include_usage")?.unwrap_or(false);
            fields.absorb(&options);
        }
        let salt = fields.text("cache_salt")?.unwrap_or_default();
        let mut own = fields.object("retie")?.unwrap_or_default();
        let exits = context.model.exits.take(&mut own)?;
        let recursion_counts = own.flag("recursion_counts")?.unwrap_or(false);
        fields.absorb(&own);
        Ok(Self {
            sampling,
            num_choices,
            stop_strings,
            ignore_eos,
            stream,
            include_usage,
            exits,
            recursion_counts,
            salt,
        })
    }

    /// The request of one choice of a prompt, without log-probabilities. The draws of choice `i`
    /// begin with the seed plus `i`.
    pub fn request(
        &self,
        context: &Context,
        prompt: Vec<u32>,
        choice: usize,
        max_new_tokens: Option<usize>,
    ) -> Request {
        let eos_token_ids = if self.ignore_eos { Vec::new() } else { context.model.eos_token_ids.clone() };
        let seed = self.sampling.seed.wrapping_add(choice as u64);
        Request {
            prompt,
            sampling: Sampling { seed, ..self.sampling.clone() },
            stop: StopConditions { max_new_tokens, eos_token_ids, sequences: Vec::new() },
            max_recursions: self.exits.max_recursions,
            exit_threshold: self.exits.threshold,
            salt: self.salt.clone(),
            ..Request::default()
        }
    }
}

/// `-1` is vLLM's value for all tokens.
fn top_k(value: &Value) -> Option<usize> {
    match value.as_i64()? {
        -1 => Some(0),
        k => usize::try_from(k).ok(),
    }
}

fn stop_strings(value: &Value) -> Option<Vec<String>> {
    let strings = match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<_>>()?,
        _ => return None,
    };
    let fits = |text: &String| (1..=MAX_STOP_BYTES).contains(&text.len());
    (strings.len() <= MAX_STOPS && strings.iter().all(fits)).then_some(strings)
}

/// A number that cannot be foreseen.
fn random() -> u64 {
    RandomState::new().hash_one(Instant::now())
}

/// The id of a response.
pub fn response_id(kind: &str) -> String {
    format!("{kind}-{:016x}{:016x}", random(), random())
}

/// A request that the engine has accepted. The engine ends its sequences when this is dropped.
#[derive(Debug)]
pub struct Submitted {
    events: mpsc::Receiver<Event>,
    _open: OwnedSemaphorePermit,
}

impl Submitted {
    /// Hands the choices of a request, in their order, to the engine.
    ///
    /// # Errors
    /// A choice does not fit the model, or there is no room.
    pub fn submit(context: &Context, requests: Vec<Request>, generation: &Generation) -> Result<Self, Refusal> {
        for request in &requests {
            request.check(context.model.vocab_size, context.options.engine.context)?;
        }
        let open = Arc::clone(&context.open).try_acquire_owned().map_err(|_| Refusal::overloaded())?;
        let (events, receiver) = Events::channel(requests.len());
        let arrived = Instant::now();
        let job = |(choice, request)| Job {
            request,
            recursion_counts: generation.recursion_counts,
            stop: generation.stop_strings.clone(),
            choice,
            events: events.clone(),
            arrived,
        };
        let jobs = requests.into_iter().enumerate().map(job).collect();
        context.inbox.offer(jobs)?;
        Ok(Self { events: receiver, _open: open })
    }

    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// [`Submitted::next`] for a stream.
    pub fn poll_next(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<Event>> {
        self.events.poll_recv(context)
    }
}

/// Numbers of tokens of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompts, each counted once.
    pub prompt_tokens: usize,
    /// Choices of each prompt.
    pub num_choices: usize,
    /// Tokens of the prompts that the first choice of each did not have to read.
    pub cached_tokens: usize,
    /// Generated tokens of all choices.
    pub completion_tokens: usize,
    /// Generated tokens by the recursion count of the computation that they were chosen from; 0 for
    /// those that a router let pass every recursion.
    pub by_recursions: BTreeMap<usize, usize>,
}

impl Usage {
    /// The object under `usage`.
    pub fn to_json(&self) -> Value {
        let Self { prompt_tokens, cached_tokens, completion_tokens, by_recursions, .. } = self;
        let recursions: usize = by_recursions.iter().map(|(recursions, tokens)| recursions * tokens).sum();
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
            "retie": {
                "tokens_by_recursions": by_recursions,
                "mean_recursions": (*completion_tokens > 0).then(|| recursions as f64 / *completion_tokens as f64),
            },
        })
    }

    /// Adds the tokens of a choice that has ended.
    pub fn add(&mut self, choice: usize, finish: &Finish) {
        self.completion_tokens += finish.num_tokens;
        if choice.is_multiple_of(self.num_choices.max(1)) {
            self.cached_tokens += finish.cached_tokens;
        }
        for (recursions, tokens) in &finish.by_recursions {
            *self.by_recursions.entry(*recursions).or_default() += tokens;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::FinishReason;

    #[test]
    fn usage_counts_tokens_that_pass_every_recursion() {
        let mut usage = Usage { prompt_tokens: 4, num_choices: 2, ..Usage::default() };
        for (choice, by_recursions) in [(0, [(0, 2), (2, 1)].into()), (1, [(2, 5)].into())] {
            let num_tokens = 3 + 2 * choice;
            usage.add(choice, &Finish { reason: FinishReason::Length, num_tokens, cached_tokens: 1, by_recursions });
        }
        let usage = usage.to_json();
        assert_eq!(usage["retie"], json!({"tokens_by_recursions": {"0": 2, "2": 6}, "mean_recursions": 1.5}));
        assert_eq!((&usage["completion_tokens"], &usage["total_tokens"]), (&json!(8), &json!(12)));
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 1);
    }
}
