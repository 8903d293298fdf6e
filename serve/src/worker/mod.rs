//! The engine thread: one pass after the other over the sequences that have a slot.
//!
//! Before each pass the sequences of clients that have left are ended, free slots are given to the
//! sequences that have waited longest, as long as there is memory for their prompts, and those of
//! clients that do not read are paused. The engine then reads one token of every sequence that
//! decodes and parts of prompts with the rest of its token budget. Time is an argument, so that
//! tests can simulate it.

use crate::{
    active::Active,
    inbox::{Inbox, State},
    job::{Event, Failure, Job},
    metrics::{Ended, Gauges, Metrics},
};
use retie_data::Tokenizer;
use retie_engine::{Engine, Progress};
use retie_model::kernels::on_worker;
use std::time::{Duration, Instant};

/// Time after which a worker looks again at clients that do not read, if it has nothing else to do.
const PAUSE: Duration = Duration::from_millis(5);
/// Time after which an idle worker looks at its state again.
const IDLE: Duration = Duration::from_secs(1);

/// What a pass has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The engine ran.
    Ran,
    /// Every sequence waits for its client to read.
    Paused,
    /// There is no sequence.
    Idle,
    /// There is no sequence, and there will be none.
    Done,
}

/// Owner of the engine, on its thread.
#[derive(Debug)]
pub struct Worker<'a> {
    engine: Engine,
    tokenizer: &'a Tokenizer,
    inbox: &'a Inbox,
    metrics: &'a Metrics,
    /// Time after which a sequence is ended, from its request on.
    timeout: Duration,
    active: Vec<Active<'a>>,
}

impl<'a> Worker<'a> {
    /// A worker without sequences.
    pub fn new(
        engine: Engine,
        tokenizer: &'a Tokenizer,
        inbox: &'a Inbox,
        metrics: &'a Metrics,
        timeout: Duration,
    ) -> Self {
        Self { engine, tokenizer, inbox, metrics, timeout, active: Vec::new() }
    }

    /// Runs passes until the service has drained.
    pub fn run(mut self) {
        loop {
            match self.pass(Instant::now) {
                Pass::Ran => {}
                Pass::Paused => std::thread::sleep(PAUSE),
                Pass::Idle => self.inbox.wait(IDLE),
                Pass::Done => return,
            }
        }
    }

    /// One pass; `clock` tells the time.
    pub fn pass(&mut self, clock: impl Fn() -> Instant) -> Pass {
        let now = clock();
        self.end_unwanted(now);
        self.start(now);
        self.pause();
        let prompt_tokens = self.engine.num_unread_prompt_tokens();
        let progress = on_worker(|| self.engine.step());
        let (ran, now) = (!progress.is_empty(), clock());
        if ran {
            let read = prompt_tokens - self.engine.num_unread_prompt_tokens();
            let new_tokens = progress.iter().filter(|progress| progress.token.is_some()).count();
            self.metrics.pass(read, new_tokens);
        }
        for progress in progress {
            self.deliver(progress, now);
        }
        self.measure();
        match (ran, self.active.is_empty()) {
            (true, _) => Pass::Ran,
            (false, false) => Pass::Paused,
            (false, true) if self.inbox.state() > State::Open && self.inbox.num_waiting() == 0 => Pass::Done,
            (false, true) => Pass::Idle,
        }
    }

    /// Ends the sequences whose client has left, which take too long, or which are cancelled.
    fn end_unwanted(&mut self, now: Instant) {
        let cancelled = self.inbox.state() >= State::Cancelled;
        let late = |arrived: Instant| now.saturating_duration_since(arrived) > self.timeout;
        let failed = |reason| Event::Failed(Failure::Unavailable(reason));
        let reason = |arrived: Instant| match (cancelled, late(arrived)) {
            (true, _) => Some(failed("the server shuts down".to_owned())),
            (_, true) => Some(failed(format!("the request took more than {} s", self.timeout.as_secs()))),
            (false, false) => None,
        };
        let removed = self.inbox.remove(|job| !job.events.is_closed() && reason(job.arrived).is_none());
        for job in removed {
            reason(job.arrived).into_iter().for_each(|event| job.events.send(event));
        }
        let unwanted = |active: &mut Active| active.events.is_closed() || reason(active.arrived).is_some();
        let ended: Vec<Active> = self.active.extract_if(.., unwanted).collect();
        for active in ended {
            reason(active.arrived).into_iter().for_each(|event| active.events.send(event));
            self.engine.evict(active.id);
            self.metrics.ended(active.sample(Ended::Abort, now));
        }
    }

    /// Gives free slots to the sequences that have waited longest.
    fn start(&mut self, now: Instant) {
        while let Some(job) = self.inbox.take_if(|job| self.engine.has_room_for(&job.request)) {
            let events = job.events.clone();
            if let Err(reason) = self.admit(job, now) {
                events.send(Event::Failed(Failure::Unavailable(reason)));
            }
        }
    }

    fn admit(&mut self, job: Job, now: Instant) -> Result<(), String> {
        let id = self.engine.admit(job.request.clone()).map_err(|error| error.to_string())?;
        match Active::new(id, job, self.tokenizer, now) {
            Ok(mut active) => {
                active.cached_tokens = self.engine.num_reused(id);
                self.active.push(active);
            }
            Err(error) => {
                self.engine.evict(id);
                return Err(error.to_string());
            }
        }
        Ok(())
    }

    /// Pauses the sequences of clients that do not read, and resumes those of clients that do.
    fn pause(&mut self) {
        for active in &mut self.active {
            let paused = !active.events.has_room();
            if paused != active.paused {
                active.paused = paused;
                _ = if paused { self.engine.pause(active.id) } else { self.engine.resume(active.id) };
            }
        }
    }

    fn deliver(&mut self, progress: Progress, now: Instant) {
        let Some(index) = self.active.iter().position(|active| active.id == progress.sequence) else { return };
        if let Some(ended) = self.active[index].advance(progress, now, self.metrics) {
            let active = self.active.swap_remove(index);
            self.engine.evict(active.id);
            self.metrics.ended(active.sample(ended, now));
        }
    }

    fn measure(&self) {
        let cache_usage = self.engine.cache_usage();
        let preemptions = self.engine.kv_usage().map_or(0, |usage| usage.preemptions);
        let prefixes = self.engine.prefix_counts().unwrap_or_default();
        let preempted = self.engine.num_preempted();
        let (running, waiting) = (self.active.len() - preempted, self.inbox.num_waiting() + preempted);
        let drafts = self.engine.speculation_counts().unwrap_or_default();
        self.metrics.set(Gauges { running, waiting, cache_usage, preemptions, prefixes, drafts });
    }
}

#[cfg(test)]
mod tests;
