//! Tests of the worker on a simulated clock, with a tiny model.

use super::*;
use crate::{
    job::{Events, FinishReason, Piece},
    queue::QueueLimits,
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};
use retie_engine::{EngineOptions, Request, Sampling, StopConditions};
use retie_model::{CausalLm, KvBlocks};
use retie_testing::{CONTEXT, VOCAB_SIZE, random_model};
use std::{cell::Cell, path::Path};
use tokio::sync::mpsc;

const SLOTS: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(20);
/// Simulated time of a pass.
const TICK: Duration = Duration::from_millis(100);

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/tiny_tokenizer.json"))
        .unwrap()
}

fn engine(model: &CausalLm, num_slots: usize, max_step_tokens: usize) -> Engine {
    Engine::new(model.clone(), EngineOptions { num_slots, context: CONTEXT, max_step_tokens }).unwrap()
}

/// What a worker borrows.
struct Place {
    model: CausalLm,
    tokenizer: Tokenizer,
    inbox: Inbox,
    metrics: Metrics,
    now: Cell<Instant>,
}

impl Place {
    fn new(limits: QueueLimits) -> Self {
        Self {
            model: random_model(None),
            tokenizer: tokenizer(),
            inbox: Inbox::new(limits),
            metrics: Metrics::new("tiny"),
            now: Cell::new(Instant::now()),
        }
    }

    fn worker(&self, max_step_tokens: usize) -> Worker<'_> {
        Worker::new(engine(&self.model, SLOTS, max_step_tokens), &self.tokenizer, &self.inbox, &self.metrics, TIMEOUT)
    }

    /// A worker whose engine has so many blocks of four tokens.
    fn worker_in_blocks(&self, max_step_tokens: usize, count: usize) -> Worker<'_> {
        let engine = engine(&self.model, SLOTS, max_step_tokens).with_kv_blocks(KvBlocks { tokens: 4, count }).unwrap();
        Worker::new(engine.with_prefix_reuse(), &self.tokenizer, &self.inbox, &self.metrics, TIMEOUT)
    }

    /// One pass; time goes on while it runs.
    fn pass(&self, worker: &mut Worker) -> Pass {
        let pass = worker.pass(|| self.now.get());
        self.now.set(self.now.get() + TICK);
        pass
    }

    /// Offers a request with `choices` equal prompts.
    fn offer(&self, request: &Request, choices: usize, stop: &[&str]) -> Option<Client> {
        let (events, receiver) = Events::channel(choices);
        let stop: Vec<String> = stop.iter().map(|text| (*text).to_owned()).collect();
        let job = |choice| Job {
            request: request.clone(),
            recursion_counts: false,
            stop: stop.clone(),
            choice,
            events: events.clone(),
            arrived: self.now.get(),
        };
        self.inbox.offer((0..choices).map(job).collect()).ok()?;
        Some(Client { receiver: Some(receiver), answers: vec![Answer::default(); choices], failed: None })
    }

    /// Tokens of a request in an engine of its own, an EOS token included.
    fn alone(&self, request: &Request) -> Vec<u32> {
        let mut engine = engine(&self.model, 1, CONTEXT);
        engine.admit(request.clone()).unwrap();
        let mut tokens = Vec::new();
        while !engine.is_idle() {
            tokens.extend(engine.step().into_iter().filter_map(|progress| progress.token));
        }
        tokens
    }

    fn text(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, true).unwrap()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    text: String,
    tokens: Vec<u32>,
    finish: Option<(FinishReason, usize)>,
}

/// The other end of a request.
#[derive(Debug)]
struct Client {
    /// `None` after it has left.
    receiver: Option<mpsc::Receiver<Event>>,
    answers: Vec<Answer>,
    failed: Option<Failure>,
}

impl Client {
    /// Reads what is there.
    fn read(&mut self) {
        let Some(receiver) = &mut self.receiver else { return };
        while let Ok(event) = receiver.try_recv() {
            match event {
                Event::Prompt { .. } => panic!("not asked for"),
                Event::Failed(reason) => self.failed = Some(reason),
                Event::Piece(Piece { choice, text, token, finish, .. }) => {
                    let answer = &mut self.answers[choice];
                    assert_eq!(answer.finish, None, "nothing after the end");
                    answer.text += &text;
                    answer.tokens.extend(token.map(|token| token.logprobs.token));
                    answer.finish = finish.map(|finish| (finish.reason, finish.num_tokens));
                }
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.failed.is_some() || self.answers.iter().all(|answer| answer.finish.is_some())
    }
}

/// A request whose tokens are all sent, for their log-probabilities.
fn request(seed: u64, prompt: usize, new: usize) -> Request {
    let id = |i: usize| ((i * i * 7 + seed as usize * 13 + i) % (VOCAB_SIZE - 1)) as u32;
    let stop = StopConditions { max_new_tokens: Some(new), ..StopConditions::default() };
    let temperature = if seed.is_multiple_of(2) { 0.0 } else { 0.9 };
    let sampling = Sampling { temperature, seed, ..Sampling::default() };
    Request { prompt: (0..prompt).map(id).collect(), sampling, stop, logprobs: Some(0), ..Request::default() }
}

const ROOMY: QueueLimits = QueueLimits { sequences: 100, tokens: 10_000 };

#[test]
fn answers_are_those_of_each_request_alone() {
    let place = Place::new(ROOMY);
    let mut worker = place.worker(5);
    let requests: Vec<Request> = (0..7).map(|seed| request(seed, 3 + 4 * seed as usize, 12)).collect();
    let mut clients: Vec<Client> = requests.iter().map(|request| place.offer(request, 2, &[]).unwrap()).collect();
    while place.pass(&mut worker) != Pass::Idle {
        clients.iter_mut().for_each(Client::read);
    }
    for (client, request) in clients.iter().zip(&requests) {
        let tokens = place.alone(request);
        let finish = Some((FinishReason::Length, 12));
        let expected = Answer { text: place.text(&tokens), tokens, finish };
        // A text that ends within a character shows it.
        assert_eq!(client.answers, vec![expected; 2]);
    }
    let text = place.metrics.render();
    assert!(
        text.contains("request_success_total{engine=\"0\",model_name=\"tiny\",finished_reason=\"length\"} 14"),
        "{text}"
    );
    assert!(text.contains("generation_tokens_total{engine=\"0\",model_name=\"tiny\"} 168"), "{text}");
    let read: usize = requests.iter().map(|request| 2 * request.prompt.len()).sum();
    assert!(text.contains(&format!("vllm:prompt_tokens_total{{engine=\"0\",model_name=\"tiny\"}} {read}")), "{text}");
    assert!(text.contains("num_requests_running{engine=\"0\",model_name=\"tiny\"} 0"), "{text}");
}

#[test]
fn a_stop_string_ends_the_text_before_it_and_frees_the_slot() {
    let place = Place::new(ROOMY);
    let mut worker = place.worker(64);
    let request = request(4, 6, 20);
    let tokens = place.alone(&request);
    let whole = place.text(&tokens);
    // A string that begins within the text and goes over tokens.
    let at = whole.char_indices().nth(5).unwrap().0;
    let stop: String = whole[at..].chars().take(3).collect();
    let expected = &whole[..whole.find(&stop).unwrap()];
    let mut client = place.offer(&request, 1, &["never said", &stop]).unwrap();
    while place.pass(&mut worker) != Pass::Idle {}
    client.read();
    let Answer { text, tokens: found, finish } = &client.answers[0];
    assert_eq!(text, expected);
    let (reason, num_tokens) = finish.unwrap();
    assert_eq!((reason, num_tokens), (FinishReason::Stop, found.len()));
    assert!(num_tokens < 20 && tokens.starts_with(found));
    assert_eq!(worker.engine.num_free_slots(), SLOTS);
}

#[test]
fn an_eos_token_ends_the_text_and_is_counted() {
    let place = Place::new(ROOMY);
    let mut worker = place.worker(64);
    let mut request = request(2, 5, 20);
    let tokens = place.alone(&request);
    let at = (1..20).find(|at| !tokens[..*at].contains(&tokens[*at])).unwrap();
    request.stop.eos_token_ids = vec![tokens[at]];
    let mut client = place.offer(&request, 1, &[]).unwrap();
    while place.pass(&mut worker) != Pass::Idle {}
    client.read();
    let finish = Some((FinishReason::Stop, at + 1));
    assert_eq!(client.answers[0], Answer { text: place.text(&tokens[..at]), tokens: tokens[..=at].to_vec(), finish });
}

#[test]
fn a_client_that_leaves_is_gone_before_the_next_pass() {
    let place = Place::new(ROOMY);
    let mut worker = place.worker(64);
    let mut clients: Vec<Client> = (0..6).map(|seed| place.offer(&request(seed, 5, 30), 1, &[]).unwrap()).collect();
    place.pass(&mut worker);
    assert_eq!((worker.active.len(), place.inbox.num_waiting()), (3, 3));
    // One that runs, and one that waits.
    clients[1].receiver = None;
    clients[4].receiver = None;
    place.pass(&mut worker);
    assert_eq!((worker.active.len(), place.inbox.num_waiting()), (3, 1), "the next one has its slot");
    while place.pass(&mut worker) != Pass::Idle {
        clients.iter_mut().for_each(Client::read);
    }
    let ended = clients.iter().filter(|client| client.has_ended()).count();
    assert_eq!(ended, 4);
    assert!(place.metrics.render().contains("finished_reason=\"abort\"} 1"));
}

#[test]
fn a_client_that_does_not_read_stops_only_itself() {
    let place = Place::new(ROOMY);
    let mut worker = place.worker(64);
    let slow_request = request(1, 3, 60);
    let mut slow = place.offer(&slow_request, 1, &[]).unwrap();
    let mut other = place.offer(&request(2, 3, 60), 1, &[]).unwrap();
    while !other.has_ended() {
        assert_eq!(place.pass(&mut worker), Pass::Ran);
        other.read();
    }
    assert_eq!(place.pass(&mut worker), Pass::Paused);
    assert!(worker.active[0].num_tokens < 60, "it waits");
    // It reads again, and nothing is lost.
    while !slow.has_ended() {
        slow.read();
        place.pass(&mut worker);
    }
    assert_eq!(slow.answers[0].tokens, place.alone(&slow_request));
}

#[test]
fn requests_that_take_too_long_are_ended() {
    let place = Place::new(ROOMY);
    let mut worker = place.worker(64);
    let offer = |seed| place.offer(&request(seed, 3, 60), 1, &[]).unwrap();
    // Nobody reads, and all slots are taken.
    let mut clients: Vec<Client> = (0..4).map(offer).collect();
    let mut passes = 0;
    while place.pass(&mut worker) != Pass::Idle {
        passes += 1;
    }
    assert!(passes as u128 >= TIMEOUT.as_millis() / TICK.as_millis());
    for client in &mut clients {
        client.read();
        assert_eq!(client.failed, Some(Failure::Unavailable("the request took more than 20 s".to_owned())));
    }
    assert_eq!(worker.engine.num_free_slots(), SLOTS);
}

#[test]
fn a_service_that_drains_finishes_what_it_accepted_and_one_that_is_cancelled_does_not() {
    let place = Place::new(ROOMY);
    let mut worker = place.worker(64);
    let mut clients: Vec<Client> = (0..5).map(|seed| place.offer(&request(seed, 4, 10), 1, &[]).unwrap()).collect();
    place.pass(&mut worker);
    place.inbox.advance(State::Draining);
    assert!(place.offer(&request(9, 4, 10), 1, &[]).is_none(), "nothing new");
    while place.pass(&mut worker) != Pass::Done {
        clients.iter_mut().for_each(Client::read);
    }
    assert!(clients.iter().all(|client| client.failed.is_none() && client.has_ended()));

    let place = Place::new(ROOMY);
    let mut worker = place.worker(64);
    let mut clients: Vec<Client> = (0..5).map(|seed| place.offer(&request(seed, 4, 10), 1, &[]).unwrap()).collect();
    place.pass(&mut worker);
    place.inbox.advance(State::Cancelled);
    assert_eq!(place.pass(&mut worker), Pass::Done);
    for client in &mut clients {
        client.read();
        assert_eq!(client.failed, Some(Failure::Unavailable("the server shuts down".to_owned())));
    }
}

#[derive(Clone, Debug)]
enum Action {
    Arrive { seed: u64, prompt: usize, new: usize, choices: usize, reads: bool },
    Leave(usize),
    Passes(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let arrive = (0..9u64, 1..20usize, 1..44usize, 1..4usize, prop::bool::weighted(0.7));
    prop_oneof![
        4 => arrive.prop_map(|(seed, prompt, new, choices, reads)| Action::Arrive { seed, prompt, new, choices, reads }),
        1 => (0..20usize).prop_map(Action::Leave),
        3 => (1..9usize).prop_map(Action::Passes),
    ]
}

proptest! {
    // Tokens whose logits differ by less than the rounding of f32 can be chosen either way; the
    // fixed seed has no such case.
    #![proptest_config(Config { cases: 32, rng_seed: RngSeed::Fixed(22), ..Config::default() })]

    #[test]
    fn nobody_starves_and_memory_is_bounded(
        actions in prop::collection::vec(action(), 1..30),
        max_step_tokens in 3..30usize,
        waiting in 3..12usize,
        // One sequence of the whole context has 16.
        blocks in 16..49usize,
    ) {
        let place = Place::new(QueueLimits { sequences: waiting, tokens: 150 });
        let mut worker = place.worker_in_blocks(max_step_tokens, blocks);
        let mut clients: Vec<(Client, Request, bool)> = Vec::new();
        // Passes that the accepted sequences need if each runs alone.
        let mut work = 0;
        let run = |worker: &mut Worker, clients: &mut Vec<(Client, Request, bool)>| {
            let pass = place.pass(worker);
            clients.iter_mut().filter(|(_, _, reads)| *reads).for_each(|(client, _, _)| client.read());
            assert!(place.inbox.num_waiting() <= waiting);
            let running = worker.active.len() - worker.engine.num_preempted();
            assert_eq!(running + worker.engine.num_free_slots(), SLOTS);
            pass
        };
        for action in actions {
            match action {
                Action::Arrive { seed, prompt, new, choices, reads } => {
                    let request = request(seed, prompt, new);
                    let before = place.inbox.num_waiting();
                    match place.offer(&request, choices, &[]) {
                        Some(client) => {
                            work += choices * (prompt + new);
                            clients.push((client, request, reads));
                        }
                        None => prop_assert!(before + choices > waiting || 20 * (before + choices) > 150),
                    }
                }
                Action::Leave(index) => {
                    if let Some((client, _, _)) = clients.get_mut(index) {
                        client.receiver = None;
                    }
                }
                Action::Passes(count) => (0..count).for_each(|_| _ = run(&mut worker, &mut clients)),
            }
        }
        // Clients that do not read hold slots until their time is over.
        let most = work + (TIMEOUT.as_millis() / TICK.as_millis()) as usize + 2;
        let mut passes = 0;
        while run(&mut worker, &mut clients) != Pass::Idle {
            passes += 1;
            prop_assert!(passes <= most, "{passes} passes for {work} tokens");
        }
        prop_assert_eq!(worker.engine.num_free_slots(), SLOTS);
        prop_assert_eq!(worker.engine.kv_usage().unwrap().occupied, 0);
        for (client, request, reads) in &mut clients {
            client.read();
            if client.receiver.is_none() {
                continue;
            }
            prop_assert!(client.has_ended());
            let expected = place.alone(request);
            for answer in &client.answers {
                match (&client.failed, &*reads) {
                    (None, _) => prop_assert_eq!(&answer.tokens, &expected),
                    (Some(_), _) => prop_assert!(expected.starts_with(&answer.tokens)),
                }
            }
        }
    }
}
