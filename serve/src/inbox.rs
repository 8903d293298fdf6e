//! The inbox of the engine thread: the [`Queue`] behind a lock, with the state of the service.
//!
//! Handlers offer the sequences of a request and learn at once if they are refused; the engine
//! thread takes them between its passes.

use crate::{
    job::Job,
    queue::{Queue, QueueLimits, Refused},
};
use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// State of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Requests are accepted.
    Open,
    /// Requests are refused; those that were accepted are finished.
    Draining,
    /// Requests that are not finished are ended.
    Cancelled,
    /// The engine thread has ended.
    Stopped,
}

/// Reason why a request is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAccepted {
    /// The queue refuses it.
    Refused(Refused),
    /// The service is no longer open.
    Closed,
}

/// The queue that handlers and the engine thread share.
#[derive(Debug)]
pub struct Inbox {
    shared: Mutex<Shared>,
    changed: Condvar,
}

#[derive(Debug)]
struct Shared {
    queue: Queue<Job>,
    state: State,
}

impl Inbox {
    /// An open inbox.
    pub fn new(limits: QueueLimits) -> Self {
        Self { shared: Mutex::new(Shared { queue: Queue::new(limits), state: State::Open }), changed: Condvar::new() }
    }

    /// Appends the sequences of a request: all or none.
    ///
    /// # Errors
    /// When there is no room, or the service closes.
    pub fn offer(&self, jobs: Vec<Job>) -> Result<(), NotAccepted> {
        let mut shared = self.lock();
        if shared.state != State::Open {
            return Err(NotAccepted::Closed);
        }
        let jobs = jobs.into_iter().map(|job| {
            let tokens = job.request.prompt.len();
            (job, tokens)
        });
        shared.queue.offer(jobs.collect()).map_err(NotAccepted::Refused)?;
        self.changed.notify_all();
        Ok(())
    }

    /// Refuses a request before its text is tokenized, if not even one short sequence fits.
    ///
    /// # Errors
    /// When there is no room, or the service closes.
    pub fn check(&self) -> Result<(), NotAccepted> {
        let shared = self.lock();
        match shared.state {
            State::Open if shared.queue.has_room(1, 1) => Ok(()),
            State::Open => Err(NotAccepted::Refused(Refused::Full)),
            _ => Err(NotAccepted::Closed),
        }
    }

    /// Takes the sequence that has waited longest, if it fits.
    pub fn take_if(&self, fits: impl FnOnce(&Job) -> bool) -> Option<Job> {
        let mut shared = self.lock();
        let is_next = shared.queue.first().is_some_and(fits);
        is_next.then(|| shared.queue.take()).flatten()
    }

    /// Removes the waiting sequences that are not to be kept, and returns them.
    pub fn remove(&self, keep: impl Fn(&Job) -> bool) -> Vec<Job> {
        self.lock().queue.remove(keep)
    }

    /// Number of waiting sequences.
    pub fn num_waiting(&self) -> usize {
        self.lock().queue.len()
    }

    /// State of the service.
    pub fn state(&self) -> State {
        self.lock().state
    }

    /// Advances the state; it never goes back.
    pub fn advance(&self, state: State) {
        let mut shared = self.lock();
        shared.state = shared.state.max(state);
        self.changed.notify_all();
    }

    /// Waits until there is a sequence or the service is no longer open, at most for `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let quiet = |shared: &mut Shared| shared.queue.len() == 0 && shared.state == State::Open;
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, quiet);
        drop(waited);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
