//! What passes between the handlers of requests and the engine thread: jobs one way, events the
//! other.

use retie_engine::{MOST_DRAFTS, Request, TokenLogprobs};
use std::{collections::BTreeMap, time::Instant};
use tokio::sync::mpsc;

/// Events that wait for a client at most, beyond those of one pass.
const EVENTS_AHEAD: usize = 32;
/// Most events of a sequence in one pass: log-probabilities of its prompt, and a piece of text.
const EVENTS_PER_PASS: usize = 2;
/// Most events of a step that speculates, which it does for one sequence: its new tokens.
const EVENTS_OF_DRAFTS: usize = MOST_DRAFTS + 1;

/// One sequence to generate: a choice of a request.
#[derive(Debug)]
pub struct Job {
    /// Prompt, sampling and stop conditions.
    pub request: Request,
    /// True if its pieces have recursion counts.
    pub recursion_counts: bool,
    /// Stop strings: the text ends before the first of them.
    pub stop: Vec<String>,
    /// Index of the choice in its request.
    pub choice: usize,
    /// Where its events go.
    pub events: Events,
    /// Time of the request.
    pub arrived: Instant,
}

/// Progress of a choice.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Log-probabilities of the next tokens of the prompt; the first token has none.
    Prompt {
        /// Index of the choice.
        choice: usize,
        /// One for each token.
        logprobs: Vec<TokenLogprobs>,
    },
    /// A piece of text.
    Piece(Piece),
    /// The engine cannot go on with the request.
    Failed(Failure),
}

/// Why the engine does not go on with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Not now; another time it may.
    Unavailable(String),
    /// Never: the model cannot answer it.
    Model(String),
}

/// A piece of the text of a choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Index of the choice.
    pub choice: usize,
    /// New text, whole characters; may be empty.
    pub text: String,
    /// New token, if its log-probabilities are asked for.
    pub token: Option<NewToken>,
    /// Recursion counts of the computations that the tokens of the text were chosen from, if they
    /// are asked for.
    pub recursions: Vec<usize>,
    /// The end of the choice, with its last piece.
    pub finish: Option<Finish>,
}

/// A new token with its log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct NewToken {
    /// Its log-probabilities.
    pub logprobs: TokenLogprobs,
    /// Characters of the new text before it, stop strings included.
    pub offset: usize,
    /// True for an EOS token, which is no part of the text.
    pub is_eos: bool,
}

/// The end of a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// Number of generated tokens, an EOS token and those of a stop string included.
    pub num_tokens: usize,
    /// Number of tokens of the prompt that it did not have to read.
    pub cached_tokens: usize,
    /// Number of generated tokens by the recursion count of the computation that they were chosen
    /// from.
    pub by_recursions: BTreeMap<usize, usize>,
}

/// `finish_reason` of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FinishReason {
    /// An EOS token or a stop string.
    Stop,
    /// The requested number of tokens, or the end of the context.
    Length,
}

impl FinishReason {
    /// The name in a response.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// The sending end of a request's channel, which all its choices share. Its size is bounded: the
/// choices of a client that does not read are paused.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<Event>,
    /// Most events of one pass.
    per_pass: usize,
}

impl Events {
    /// A channel for a request with `num_choices` choices.
    pub fn channel(num_choices: usize) -> (Self, mpsc::Receiver<Event>) {
        let per_pass = (EVENTS_PER_PASS * num_choices).max(EVENTS_OF_DRAFTS);
        // One more for the event that says why the engine does not go on.
        let (sender, receiver) = mpsc::channel(per_pass + EVENTS_AHEAD + 1);
        (Self { sender, per_pass }, receiver)
    }

    /// True if there is room for the events of one pass.
    pub fn has_room(&self) -> bool {
        self.sender.capacity() > self.per_pass
    }

    /// True if the client has left.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends an event. It is lost if the client has left, and if there is no room: a pass only runs
    /// sequences with room for its events.
    pub fn send(&self, event: Event) {
        _ = self.sender.try_send(event);
    }
}
