//! Answers: the events of a request as one response, or as a stream of server-sent events.
//!
//! Both are made of the same parts, so that the pieces of a stream together are the response.

use super::{
    generation::{Generation, Submitted, Usage},
    json::Json,
    refusal::Refusal,
};
use crate::job::{Event, Finish};
use axum::response::{
    IntoResponse, Response,
    sse::{Event as SseEvent, KeepAlive, Sse},
};
use futures_core::Stream;
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// Last datum of a stream.
const DONE: &str = "[DONE]";

/// A part of the answer of a choice.
#[derive(Clone, Debug, Default)]
pub struct Part<L> {
    /// Index of the choice.
    pub choice: usize,
    pub text: String,
    /// Log-probabilities of its tokens, as far as they are asked for.
    pub logprobs: L,
    /// Recursion counts of its tokens, as far as they are asked for.
    pub recursions: Vec<usize>,
    /// The end of the choice.
    pub finish: Option<Finish>,
}

/// The form of the answers of a kind of requests.
pub trait Shape: Send + Unpin + 'static {
    /// Log-probabilities of tokens.
    type Logprobs: Default + Send + Unpin;

    /// Parts that are there before the first event.
    fn opening(&mut self) -> Vec<Part<Self::Logprobs>>;
    /// The part that an event makes, if it makes one.
    fn part(&mut self, event: Event) -> Option<Part<Self::Logprobs>>;
    /// Appends later log-probabilities of a choice to earlier ones.
    fn append(earlier: &mut Self::Logprobs, later: Self::Logprobs);
    /// The chunk of a stream before all parts of a choice, if there is one.
    fn first_chunk(&self, choice: usize) -> Option<Value>;
    /// Chunks of a stream for a part.
    fn chunks(&self, part: Part<Self::Logprobs>) -> Vec<Value>;
    /// The chunk of a stream that holds its usage.
    fn usage_chunk(&self, usage: &Usage) -> Value;
    /// The response with the whole answers, by choice.
    fn response(&self, answers: Vec<Part<Self::Logprobs>>, usage: &Usage) -> Value;
}

/// Adds the recursion counts of its tokens to a choice, if they are asked for.
pub fn add_recursions(choice: &mut Value, recursions: &[usize]) {
    if !recursions.is_empty() {
        choice["retie"] = json!({"recursion_counts": recursions});
    }
}

/// The response to a request with `num_choices` choices in all.
///
/// # Errors
/// The engine fails, and the response is no stream: a stream ends with the error.
pub async fn respond<S: Shape>(
    shape: S,
    submitted: Submitted,
    generation: &Generation,
    num_choices: usize,
    prompt_tokens: usize,
) -> Result<Response, Refusal> {
    let usage = Usage { prompt_tokens, num_choices: generation.num_choices, ..Usage::default() };
    if generation.stream {
        let stream = Chunks::new(shape, submitted, generation.include_usage, num_choices, usage);
        return Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response());
    }
    whole(shape, submitted, num_choices, usage).await
}

async fn whole<S: Shape>(
    mut shape: S,
    mut submitted: Submitted,
    num_choices: usize,
    mut usage: Usage,
) -> Result<Response, Refusal> {
    let empty = |choice| Part { choice, ..Part::default() };
    let mut answers: Vec<Part<S::Logprobs>> = (0..num_choices).map(empty).collect();
    let mut left = num_choices;
    let mut add = |part: Part<S::Logprobs>, left: &mut usize| {
        let Some(answer) = answers.get_mut(part.choice) else { return };
        answer.text += &part.text;
        S::append(&mut answer.logprobs, part.logprobs);
        answer.recursions.extend(part.recursions);
        if let Some(finish) = part.finish {
            usage.add(part.choice, &finish);
            answer.finish = Some(finish);
            *left -= 1;
        }
    };
    shape.opening().into_iter().for_each(|part| add(part, &mut left));
    while left > 0 {
        match submitted.next().await {
            None => return Err(Refusal::stopped()),
            Some(Event::Failed(failure)) => return Err(failure.into()),
            Some(event) => shape.part(event).into_iter().for_each(|part| add(part, &mut left)),
        }
    }
    Ok(Json(shape.response(answers, &usage)).into_response())
}

/// The data of a stream.
struct Chunks<S> {
    shape: S,
    /// `None` after the end.
    submitted: Option<Submitted>,
    ready: VecDeque<String>,
    /// Choices that have not ended.
    left: usize,
    usage: Usage,
    include_usage: bool,
}

impl<S: Shape> Chunks<S> {
    fn new(shape: S, submitted: Submitted, include_usage: bool, num_choices: usize, usage: Usage) -> Self {
        let mut chunks =
            Self { shape, submitted: Some(submitted), ready: VecDeque::new(), left: num_choices, usage, include_usage };
        for choice in 0..num_choices {
            if let Some(chunk) = chunks.shape.first_chunk(choice) {
                chunks.push(chunk);
            }
        }
        for part in chunks.shape.opening() {
            chunks.add(part);
        }
        chunks
    }

    fn push(&mut self, mut chunk: Value) {
        if self.include_usage && chunk["usage"].is_null() {
            chunk["usage"] = Value::Null;
        }
        self.ready.push_back(chunk.to_string());
    }

    fn add(&mut self, part: Part<S::Logprobs>) {
        if let Some(finish) = &part.finish {
            self.usage.add(part.choice, finish);
            self.left -= 1;
        }
        for chunk in self.shape.chunks(part) {
            self.push(chunk);
        }
        if self.left == 0 {
            if self.include_usage {
                self.push(self.shape.usage_chunk(&self.usage));
            }
            self.ready.push_back(DONE.to_owned());
            self.submitted = None;
        }
    }

    /// Ends the stream with an error, which clients tell by its form and by the missing `[DONE]`.
    fn fail(&mut self, refusal: &Refusal) {
        self.ready.push_back(refusal.to_json().to_string());
        self.submitted = None;
    }
}

impl<S: Shape> Stream for Chunks<S> {
    type Item = Result<SseEvent, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(datum) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(SseEvent::default().data(datum))));
            }
            let Some(submitted) = &mut self.submitted else { return Poll::Ready(None) };
            match ready!(submitted.poll_next(context)) {
                None => self.fail(&Refusal::stopped()),
                Some(Event::Failed(failure)) => self.fail(&failure.into()),
                Some(event) => {
                    if let Some(part) = self.shape.part(event) {
                        self.add(part);
                    }
                }
            }
        }
    }
}
