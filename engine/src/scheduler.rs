//! Scheduler modes: when tokens start, and which of them share a pass over the shared block.

use std::{fmt, str::FromStr};

/// Scheduler mode of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    /// Every token goes through every recursion; all tokens of a step go through the stack together
    /// (continuous sequence-wise batching).
    #[default]
    Full,
    /// Tokens exit; those of a step start together, and who has exited waits for the others.
    Lockstep,
    /// Tokens exit and start when their own sequence is ready: a pass over the shared block takes
    /// rows of every recursion (continuous depth-wise batching).
    Depthwise,
}

impl Scheduler {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Full, Self::Lockstep, Self::Depthwise];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Lockstep => "lockstep",
            Self::Depthwise => "depthwise",
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scheduler {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scheduler| scheduler.name() == text);
        found.ok_or_else(|| {
            format!("`{text}` is no scheduler, expected one of {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// Recursion counts that decoded tokens are forced to, whatever the model says: to measure
/// schedulers without calibrated exits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitTrace {
    counts: Vec<usize>,
}

impl ExitTrace {
    /// A trace of recursion counts, each at least 1. Token `i` of the `s`-th sequence gets one of
    /// them that depends on `s` and `i` alone.
    ///
    /// # Errors
    /// There is no count, or a count is 0.
    pub fn new(counts: Vec<usize>) -> Result<Self, String> {
        if counts.is_empty() || counts.contains(&0) {
            return Err(format!("an exit trace of {} recursion counts, expected counts of at least 1", counts.len()));
        }
        Ok(Self { counts })
    }

    /// The counts.
    #[must_use]
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    pub(crate) fn count(&self, sequence: u64, token: usize) -> usize {
        // The finalizer of SplitMix64: sequences begin anywhere in the trace.
        let mut start = sequence.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        start = (start ^ (start >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        start ^= start >> 31;
        self.counts[(start as usize % self.counts.len() + token) % self.counts.len()]
    }
}

/// Decides whether tokens that decode start in phase: where nobody exits, starting apart reads the
/// weights of the parts before and after the loop once for each recursion, and gains nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guard {
    /// Of the last decoded tokens, who exited before the last recursion; a bit each.
    last: [u64; 4],
    seen: usize,
    in_phase: bool,
}

/// Decoded tokens that the guard looks back at.
const WINDOW: usize = 256;
/// Exits among them at which starting apart begins and ends to pay.
const APART_FROM: u32 = 16;
const IN_PHASE_BELOW: u32 = 8;

impl Guard {
    /// Notes a token that has left the loop, early or not.
    pub fn note(&mut self, early: bool) {
        let (word, bit) = (self.seen % WINDOW / 64, self.seen % 64);
        self.last[word] = self.last[word] & !(1 << bit) | (u64::from(early) << bit);
        self.seen += 1;
        let exits: u32 = self.last.iter().map(|word| word.count_ones()).sum();
        if self.seen >= WINDOW && exits < IN_PHASE_BELOW {
            self.in_phase = true;
        } else if exits >= APART_FROM {
            self.in_phase = false;
        }
    }

    /// True if tokens have to start in phase.
    pub fn in_phase(&self) -> bool {
        self.in_phase
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed() {
        assert_eq!(Scheduler::ALL.map(|scheduler| scheduler.to_string().parse()), Scheduler::ALL.map(Ok));
        let error = "greedy".parse::<Scheduler>().unwrap_err();
        assert_eq!(error, "`greedy` is no scheduler, expected one of full, lockstep, depthwise");
    }

    #[test]
    fn a_trace_gives_every_sequence_all_of_its_counts() {
        let trace = ExitTrace::new(vec![1, 1, 2, 3]).unwrap();
        let counts = |sequence| (0..4).map(|token| trace.count(sequence, token)).collect::<Vec<_>>();
        for sequence in 0..50 {
            let mut sorted = counts(sequence);
            sorted.sort_unstable();
            assert_eq!(sorted, [1, 1, 2, 3]);
        }
        assert!((1..50).any(|sequence| counts(sequence) != counts(0)), "sequences begin at other places");
        assert!(ExitTrace::new(vec![]).is_err() && ExitTrace::new(vec![1, 0]).is_err());
    }

    #[test]
    fn the_guard_waits_for_a_window_without_exits_and_ends_with_some() {
        let mut guard = Guard::default();
        let note = |guard: &mut Guard, early: bool, times: usize| (0..times).for_each(|_| guard.note(early));
        note(&mut guard, false, WINDOW - 1);
        assert!(!guard.in_phase());
        note(&mut guard, false, 1);
        assert!(guard.in_phase());
        note(&mut guard, true, 15);
        assert!(guard.in_phase(), "15 exits of 256");
        note(&mut guard, true, 1);
        assert!(!guard.in_phase());
        note(&mut guard, false, WINDOW - 16);
        assert!(!guard.in_phase(), "the 16 exits are in the window still");
        note(&mut guard, false, 9);
        assert!(guard.in_phase(), "7 exits of 256");
    }
}
