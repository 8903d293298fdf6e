//! The time limit of a run.

use std::time::{Duration, Instant};

/// Time that is left, by the longest step so far.
pub struct Clock {
    limit: Option<Duration>,
    start: Instant,
    last: Instant,
    /// The longest time from one step to the next, with measurements and checkpoints.
    longest: Duration,
}

impl Clock {
    pub fn new(limit: Option<Duration>) -> Self {
        let start = Instant::now();
        Self { limit, start, last: start, longest: Duration::ZERO }
    }

    /// Whether a step and a checkpoint, in the longest time that a step took yet, would end after
    /// the limit.
    pub fn is_over(&mut self) -> bool {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
        self.limit.is_some_and(|limit| now - self.start + 2 * self.longest > limit)
    }
}
