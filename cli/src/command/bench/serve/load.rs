//! Sends the requests of a workload to a server.

use super::{
    client::{Answer, Endpoint},
    workload::{Load, Planned},
};
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What became of the requests of a workload.
#[derive(Debug)]
pub struct Outcome {
    pub answers: Vec<Answer>,
    /// Reasons why requests were not answered.
    pub failures: Vec<String>,
    /// From the first request to the last answer.
    pub duration: Duration,
}

/// Sends every request, each on a thread that waits for its answer.
pub fn send(endpoint: &Endpoint, planned: &[Planned], load: Load) -> Outcome {
    let results = Mutex::new((Vec::new(), Vec::new()));
    let send = |planned: &Planned| {
        let result = endpoint.complete(planned);
        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(answer) => results.0.push(answer),
            Err(error) => results.1.push(format!("{error:#}")),
        }
    };
    let (send, next) = (&send, AtomicUsize::new(0));
    let start = Instant::now();
    thread::scope(|scope| match load {
        Load::Clients(clients) => {
            for _ in 0..clients {
                scope.spawn(|| {
                    while let Some(planned) = planned.get(next.fetch_add(1, Ordering::Relaxed)) {
                        send(planned);
                    }
                });
            }
        }
        Load::Rate(_) => {
            for planned in planned {
                thread::sleep(planned.arrives.saturating_sub(start.elapsed()));
                scope.spawn(move || send(planned));
            }
        }
    });
    let duration = start.elapsed();
    let (answers, failures) = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    Outcome { answers, failures, duration }
}
