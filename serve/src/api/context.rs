//! What the handlers of requests share.

use super::{body::BODIES, exits::Exits, fields::Fields, refusal::Refusal};
use crate::{ServeOptions, inbox::Inbox, metrics::Metrics};
use retie_data::{ChatTemplate, DataError, Tokenizer};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{sync::Semaphore, task};

/// Most names of unknown fields that are logged.
const LOGGED_FIELDS: usize = 64;

/// What handlers know of the model.
#[derive(Debug)]
pub struct Model {
    /// Its name in the API.
    pub name: String,
    pub tokenizer: Arc<Tokenizer>,
    pub chat_template: Option<ChatTemplate>,
    /// Token that stands for an empty prompt, if there is one.
    pub prefix_token: Option<u32>,
    pub eos_token_ids: Vec<u32>,
    pub vocab_size: usize,
    /// Recursions of the model; 1 for a plain one.
    pub num_recursions: usize,
    /// Early exits that requests can ask for.
    pub exits: Exits,
}

/// Everything that a handler needs.
#[derive(Debug)]
pub struct Context {
    pub model: Model,
    pub options: ServeOptions,
    pub inbox: Arc<Inbox>,
    pub metrics: Arc<Metrics>,
    /// Start of the service, in seconds since 1970.
    pub created: u64,
    /// Requests that may be open at once: waiting, running, or not read by their clients yet.
    pub open: Arc<Semaphore>,
    /// Bodies that may arrive at once.
    pub bodies: Semaphore,
    /// Names of unknown fields that were logged.
    logged: Mutex<BTreeSet<String>>,
}

impl Context {
    /// The context of a service.
    pub fn new(model: Model, options: ServeOptions, inbox: Arc<Inbox>, metrics: Arc<Metrics>) -> Self {
        let open = options.queue.sequences.saturating_add(options.engine.num_slots).min(Semaphore::MAX_PERMITS);
        Self {
            model,
            options,
            inbox,
            metrics,
            created: now(),
            open: Arc::new(Semaphore::new(open)),
            bodies: Semaphore::new(BODIES),
            logged: Mutex::default(),
        }
    }

    /// Checks the field `model`.
    ///
    /// # Errors
    /// It names another model.
    pub fn check_model(&self, fields: &mut Fields) -> Result<(), Refusal> {
        match fields.text("model")? {
            Some(name) if name != self.model.name => Err(Refusal::no_model(&name, &self.model.name)),
            _ => Ok(()),
        }
    }

    /// Logs the unknown fields of a request, each name once.
    pub fn note_unknown(&self, fields: &Fields) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        for name in fields.left() {
            if logged.len() < LOGGED_FIELDS && logged.insert(name.clone()) {
                tracing::warn!(field = %name, "a request has a field that is not known and is ignored");
            }
        }
    }

    /// Runs `work` on the tokenizer, away from the threads that serve connections.
    ///
    /// # Errors
    /// The work fails.
    pub async fn with_tokenizer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tokenizer) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let tokenizer = Arc::clone(&self.model.tokenizer);
        let done = task::spawn_blocking(move || work(&tokenizer)).await;
        Ok(done.map_err(|_| Refusal::stopped())??)
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
