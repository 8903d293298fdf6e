//! The queue of sequences that wait for a slot: first come, first served, with limits on their
//! number and on the tokens of their prompts, so that its memory is bounded.
//!
//! A pure value: it knows neither threads nor time.

use std::collections::VecDeque;

/// Limits of the queue of sequences that wait for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Most sequences that wait.
    pub sequences: usize,
    /// Most tokens of their prompts together.
    pub tokens: usize,
}

/// Reason why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no room now.
    Full,
    /// The request alone exceeds the limits: there will never be room.
    TooLarge,
}

/// Waiting sequences, the first one first.
#[derive(Debug)]
pub struct Queue<T> {
    limits: QueueLimits,
    /// Each with the tokens of its prompt.
    waiting: VecDeque<(T, usize)>,
    tokens: usize,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(limits: QueueLimits) -> Self {
        Self { limits, waiting: VecDeque::new(), tokens: 0 }
    }

    /// Appends the sequences of a request, each with the tokens of its prompt: all of them or none.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn offer(&mut self, sequences: Vec<(T, usize)>) -> Result<(), Refused> {
        let tokens = sequences.iter().fold(0usize, |sum, (_, tokens)| sum.saturating_add(*tokens));
        if sequences.len() > self.limits.sequences || tokens > self.limits.tokens {
            return Err(Refused::TooLarge);
        }
        if !self.has_room(sequences.len(), tokens) {
            return Err(Refused::Full);
        }
        self.tokens += tokens;
        self.waiting.extend(sequences);
        Ok(())
    }

    /// True if that many more sequences and tokens fit.
    pub fn has_room(&self, sequences: usize, tokens: usize) -> bool {
        self.waiting.len() + sequences <= self.limits.sequences && self.tokens + tokens <= self.limits.tokens
    }

    /// The sequence that has waited longest.
    pub fn first(&self) -> Option<&T> {
        self.waiting.front().map(|(sequence, _)| sequence)
    }

    /// Takes the sequence that has waited longest.
    pub fn take(&mut self) -> Option<T> {
        let (sequence, tokens) = self.waiting.pop_front()?;
        self.tokens -= tokens;
        Some(sequence)
    }

    /// Removes the sequences that are not to be kept, and returns them.
    pub fn remove(&mut self, keep: impl Fn(&T) -> bool) -> Vec<T> {
        let (kept, removed) = std::mem::take(&mut self.waiting).into_iter().partition(|(sequence, _)| keep(sequence));
        self.waiting = kept;
        let removed: VecDeque<(T, usize)> = removed;
        self.tokens -= removed.iter().map(|(_, tokens)| tokens).sum::<usize>();
        removed.into_iter().map(|(sequence, _)| sequence).collect()
    }

    /// Number of waiting sequences.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Event {
        /// A request with sequences of these lengths.
        Offer(Vec<usize>),
        Take,
        /// The client of one of the requests leaves.
        Leave(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => prop::collection::vec(0..9usize, 1..5).prop_map(Event::Offer),
            3 => Just(Event::Take),
            1 => (0..30usize).prop_map(Event::Leave),
        ]
    }

    proptest! {
        #[test]
        fn the_queue_is_first_come_first_served_within_its_limits(
            events in prop::collection::vec(event(), 0..60),
            sequences in 1..8usize,
            tokens in 1..30usize,
        ) {
            let mut queue = Queue::new(QueueLimits { sequences, tokens });
            // Waiting sequences as (request, tokens), kept naively.
            let mut expected: Vec<(usize, usize)> = Vec::new();
            let mut requests = 0;
            for event in events {
                match event {
                    Event::Offer(lengths) => {
                        let offered: Vec<_> = lengths.iter().map(|length| ((requests, *length), *length)).collect();
                        let sum: usize = lengths.iter().sum();
                        let held: usize = expected.iter().map(|(_, length)| length).sum();
                        let result = queue.offer(offered);
                        if lengths.len() > sequences || sum > tokens {
                            prop_assert_eq!(result, Err(Refused::TooLarge));
                        } else if expected.len() + lengths.len() > sequences || held + sum > tokens {
                            prop_assert_eq!(result, Err(Refused::Full));
                        } else {
                            prop_assert_eq!(result, Ok(()));
                            expected.extend(lengths.iter().map(|length| (requests, *length)));
                        }
                        requests += 1;
                    }
                    Event::Take => {
                        prop_assert_eq!(queue.first(), expected.first());
                        let first = (!expected.is_empty()).then(|| expected.remove(0));
                        prop_assert_eq!(queue.take(), first);
                    }
                    Event::Leave(request) => {
                        let removed = queue.remove(|(other, _)| *other != request);
                        prop_assert!(removed.iter().all(|(other, _)| *other == request));
                        expected.retain(|(other, _)| *other != request);
                    }
                }
                prop_assert_eq!(queue.len(), expected.len());
                prop_assert_eq!(queue.tokens, expected.iter().map(|(_, length)| length).sum::<usize>());
            }
            // A request that fits the limits fits the empty queue.
            queue.remove(|_| false);
            prop_assert_eq!(queue.offer(vec![((0, tokens), tokens)]), Ok(()));
        }
    }
}
