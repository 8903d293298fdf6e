//! A sequence that has a slot: its new tokens become text here.

use crate::{
    job::{Event, Events, Failure, Finish, FinishReason, Job, NewToken, Piece},
    metrics::{Ended, Metrics, Sample},
};
use retie_data::{DataError, DecodeStream, Tokenizer};
use retie_engine::{FinishReason as Reason, Progress, SequenceId, StopText};
use std::{collections::BTreeMap, time::Instant};

/// State of a sequence between passes.
#[derive(Debug)]
pub struct Active<'a> {
    pub id: SequenceId,
    pub events: Events,
    /// Time of the request.
    pub arrived: Instant,
    pub prompt_tokens: usize,
    /// Number of tokens of the prompt that it did not have to read.
    pub cached_tokens: usize,
    /// Number of new tokens.
    pub num_tokens: usize,
    /// True while the engine leaves it out.
    pub paused: bool,
    choice: usize,
    /// True if pieces have recursion counts.
    recursion_counts: bool,
    /// Recursion counts of the tokens since the last piece.
    recursions: Vec<usize>,
    /// Number of tokens by recursion count.
    by_recursions: BTreeMap<usize, usize>,
    decoder: DecodeStream<'a>,
    stop: StopText,
    /// Characters of the new text, stop strings included.
    num_chars: usize,
    started: Instant,
    /// Times of the first and the last token.
    tokens_at: Option<(Instant, Instant)>,
}

impl<'a> Active<'a> {
    /// The sequence of `job`, which has just got a slot.
    ///
    /// # Errors
    /// When the end of the prompt cannot be decoded.
    pub fn new(id: SequenceId, job: Job, tokenizer: &'a Tokenizer, now: Instant) -> Result<Self, DataError> {
        let Job { request, recursion_counts, stop, choice, events, arrived } = job;
        Ok(Self {
            id,
            events,
            arrived,
            prompt_tokens: request.prompt.len(),
            cached_tokens: 0,
            num_tokens: 0,
            paused: false,
            choice,
            recursion_counts,
            recursions: Vec::new(),
            by_recursions: BTreeMap::new(),
            decoder: DecodeStream::after(tokenizer, true, &request.prompt)?,
            stop: StopText::new(stop),
            num_chars: 0,
            started: now,
            tokens_at: None,
        })
    }

    /// Sends what a pass has brought. Returns the reason if the sequence has ended with it.
    pub fn advance(&mut self, progress: Progress, now: Instant, metrics: &Metrics) -> Option<Ended> {
        let Progress { token, recursions, logprobs, prompt_logprobs, finish, failed, .. } = progress;
        if let Some(error) = failed {
            let message = error.to_string().lines().next().unwrap_or_default().to_owned();
            tracing::error!(%message, "a request failed");
            self.events.send(Event::Failed(Failure::Model(message)));
            return Some(Ended::Abort);
        }
        if !prompt_logprobs.is_empty() {
            self.events.send(Event::Prompt { choice: self.choice, logprobs: prompt_logprobs });
        }
        let is_eos = finish == Some(Reason::EndOfText);
        if token.is_some() {
            self.num_tokens += 1;
            self.count(recursions);
            metrics.token(recursions);
            self.time(now, metrics);
        }
        let offset = self.num_chars;
        let (text, stopped) = match self.text(token.filter(|_| !is_eos), finish.is_some()) {
            Ok(found) => found,
            Err(error) => {
                self.events.send(Event::Failed(Failure::Model(error.to_string())));
                return Some(Ended::Abort);
            }
        };
        let reason = match finish {
            _ if stopped || is_eos => Some(FinishReason::Stop),
            Some(Reason::StopSequence) => Some(FinishReason::Stop),
            Some(_) => Some(FinishReason::Length),
            None => None,
        };
        let token = logprobs.map(|logprobs| NewToken { logprobs, offset, is_eos });
        if !text.is_empty() || token.is_some() || reason.is_some() {
            let finish = reason.map(|reason| Finish {
                reason,
                num_tokens: self.num_tokens,
                cached_tokens: self.cached_tokens,
                by_recursions: self.by_recursions.clone(),
            });
            let recursions = std::mem::take(&mut self.recursions);
            self.events.send(Event::Piece(Piece { choice: self.choice, text, token, recursions, finish }));
        }
        reason.map(|reason| match reason {
            FinishReason::Stop => Ended::Stop,
            FinishReason::Length => Ended::Length,
        })
    }

    /// The text that is certain after `token`, and after the end of the sequence if it `ends`; true
    /// if a stop string follows it.
    fn text(&mut self, token: Option<u32>, ends: bool) -> Result<(String, bool), DataError> {
        let mut piece = token.map(|token| self.decoder.step(token)).transpose()?.unwrap_or_default();
        if ends {
            piece += &self.decoder.flush()?;
        }
        self.num_chars += piece.chars().count();
        let (mut text, stopped) = self.stop.push(&piece);
        if ends && !stopped {
            text += &std::mem::take(&mut self.stop).finish();
        }
        Ok((text, stopped))
    }

    /// Counts a token that was chosen after so many recursions.
    fn count(&mut self, recursions: usize) {
        *self.by_recursions.entry(recursions).or_default() += 1;
        if self.recursion_counts {
            self.recursions.push(recursions);
        }
    }

    fn time(&mut self, now: Instant, metrics: &Metrics) {
        self.tokens_at = Some(match self.tokens_at {
            None => {
                metrics.first_token(now.saturating_duration_since(self.arrived));
                (now, now)
            }
            Some((first, last)) => {
                metrics.next_token(now.saturating_duration_since(last));
                (first, now)
            }
        });
    }

    /// Numbers of the sequence, which ends now.
    pub fn sample(&self, ended: Ended, now: Instant) -> Sample {
        Sample {
            ended,
            prompt_tokens: self.prompt_tokens,
            new_tokens: self.num_tokens,
            queued: self.started.saturating_duration_since(self.arrived),
            prefill: self.tokens_at.map(|(first, _)| first.saturating_duration_since(self.started)),
            decode: self.tokens_at.map(|(first, last)| last.saturating_duration_since(first)),
            total: now.saturating_duration_since(self.arrived),
        }
    }
}
