//! A model that is being served: the engine thread, and what the handlers of requests share.

use crate::{
    ServeError,
    api::{self, Context, Exits},
    inbox::{Inbox, State},
    metrics::Metrics,
    options::{ServeOptions, ServedModel},
    worker::Worker,
};
use axum::Router;
use retie_data::Tokenizer;
use retie_engine::{BLOCK_TOKENS, Engine, EngineOptions};
use std::{sync::Arc, thread::JoinHandle, time::Duration};
use tokio::sync::oneshot;

/// A running engine thread with its HTTP interface.
#[derive(Debug)]
pub struct Service {
    context: Arc<Context>,
    cache_bytes: usize,
    thread: Option<JoinHandle<()>>,
    stopped: Option<oneshot::Receiver<()>>,
}

impl Service {
    /// Starts the engine thread.
    ///
    /// # Errors
    /// When an option is out of its range, or there is no thread.
    pub fn start(served: ServedModel, options: ServeOptions) -> Result<Self, ServeError> {
        if options.api_key.as_ref().is_some_and(String::is_empty) {
            return Err(ServeError::EmptyApiKey);
        }
        let ServedModel { name, model, tokenizer, chat_template, prefix_token, exits } = served;
        let exits = Exits::new(&model, exits.as_ref(), options.exit_risk)?;
        let is_host = retie_model::is_host(&model.device());
        let mut engine = Engine::new(model, options.engine)?;
        if let Some(options) = exits.options() {
            engine = engine.with_exits(options.clone())?;
        }
        let mut engine = engine.with_scheduler(options.scheduler, options.exit_trace.clone())?;
        if let Some(speculation) = &options.speculation {
            engine = engine.with_speculation(speculation.clone())?;
        }
        let EngineOptions { num_slots, context, .. } = options.engine;
        let kv_tokens = is_host.then(|| num_slots * context.next_multiple_of(BLOCK_TOKENS));
        if let Some(tokens) = options.kv_tokens.or(kv_tokens) {
            engine = engine.with_kv_tokens(tokens)?;
        }
        if options.prefix_reuse {
            engine = engine.with_prefix_reuse();
        }
        let cache_bytes = engine.cache_bytes();
        let (inbox, metrics) = (Arc::new(Inbox::new(options.queue)), Arc::new(Metrics::new(&name)));
        let tokenizer = Arc::new(tokenizer);
        let config = engine.config();
        let context = Arc::new(Context::new(
            api::Model {
                name,
                tokenizer: Arc::clone(&tokenizer),
                chat_template,
                prefix_token,
                eos_token_ids: config.eos_token_ids.clone(),
                vocab_size: config.vocab_size,
                num_recursions: config.share_map().num_recursions(),
                exits,
            },
            options.clone(),
            Arc::clone(&inbox),
            Arc::clone(&metrics),
        ));
        let (sender, stopped) = oneshot::channel();
        let running = Running { inbox, metrics, tokenizer, _stopped: sender };
        let work = move || running.work(engine, options.timeout);
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(work).map_err(ServeError::Start)?;
        Ok(Self { context, cache_bytes, thread: Some(thread), stopped: Some(stopped) })
    }

    /// The HTTP interface.
    pub fn router(&self) -> Router {
        api::router(Arc::clone(&self.context))
    }

    /// Bytes of the KV cache.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// Refuses new requests; those that were accepted are finished.
    pub fn drain(&self) {
        self.context.inbox.advance(State::Draining);
    }

    /// Ends all requests.
    pub fn cancel(&self) {
        self.context.inbox.advance(State::Cancelled);
    }

    /// Waits for the end of the engine thread.
    pub async fn stopped(&mut self) {
        if let Some(stopped) = &mut self.stopped {
            // The sender is dropped with the thread.
            _ = stopped.await;
        }
        self.stopped = None;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread is known already by the state of the inbox.
            _ = thread.join();
        }
    }
}

/// What the engine thread shares. It is dropped with the thread, after a panic too.
#[derive(Debug)]
struct Running {
    inbox: Arc<Inbox>,
    metrics: Arc<Metrics>,
    tokenizer: Arc<Tokenizer>,
    _stopped: oneshot::Sender<()>,
}

impl Running {
    fn work(self, engine: Engine, timeout: Duration) {
        Worker::new(engine, &self.tokenizer, &self.inbox, &self.metrics, timeout).run();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inbox.advance(State::Stopped);
        // The clients of what still waits learn that there will be no answer.
        self.inbox.remove(|_| false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        inbox::NotAccepted,
        job::{Events, Job},
        queue::QueueLimits,
    };
    use retie_engine::Request;
    use std::{path::Path, time::Instant};

    #[test]
    fn clients_learn_of_an_engine_thread_that_panics() {
        let inbox = Arc::new(Inbox::new(QueueLimits { sequences: 4, tokens: 40 }));
        let job = |events| Job {
            request: Request::default(),
            recursion_counts: false,
            stop: Vec::new(),
            choice: 0,
            events,
            arrived: Instant::now(),
        };
        let (events, mut receiver) = Events::channel(1);
        inbox.offer(vec![job(events)]).unwrap();
        let (sender, mut stopped) = oneshot::channel();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/tiny_tokenizer.json");
        let running = Running {
            inbox: Arc::clone(&inbox),
            metrics: Arc::new(Metrics::new("tiny")),
            tokenizer: Arc::new(Tokenizer::from_file(&path).unwrap()),
            _stopped: sender,
        };
        let thread = std::thread::spawn(move || {
            let _running = running;
            panic!("a bug of the engine, for this test");
        });
        assert!(thread.join().is_err());
        assert!(receiver.blocking_recv().is_none(), "there will be no answer");
        assert!(stopped.try_recv().is_err());
        let (events, _receiver) = Events::channel(1);
        assert_eq!(inbox.offer(vec![job(events)]), Err(NotAccepted::Closed));
        assert_eq!(inbox.state(), State::Stopped);
    }
}
