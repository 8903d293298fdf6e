//! Tokens on their way through the parts of a recursive stack, without their hidden states: who
//! takes part in the next pass over the shared block, who leaves the loop with it, and who waits.
//!
//! A pure value: it knows neither tensors nor time.

use crate::scheduler::{Guard, Scheduler};
use retie_model::{InRecursion, Slot, Span};

/// Tokens of one sequence that go through the parts together: a token that decodes, or a part of a
/// prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    pub span: Span,
    /// Recursions that it has gone through.
    pub done: usize,
    /// Recursion count after which it leaves the loop.
    pub until: usize,
    /// True for a part of a prompt.
    pub is_prompt: bool,
}

/// Units in the loop and units that have left it, each in the order of their rows.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    is_depthwise: bool,
    num_recursions: usize,
    guard: Guard,
    /// Sorted by recursion, as the later ones started earlier.
    in_loop: Vec<Unit>,
    /// Who left first comes first, so that the parts of a prompt keep their order.
    left: Vec<Unit>,
}

/// Rows by what becomes of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    pub stay: Vec<usize>,
    pub leave: Vec<usize>,
}

impl Pipeline {
    /// An empty pipeline through `num_recursions` recursions.
    pub fn new(scheduler: Scheduler, num_recursions: usize) -> Self {
        let is_depthwise = scheduler == Scheduler::Depthwise;
        Self { is_depthwise, num_recursions, guard: Guard::default(), in_loop: Vec::new(), left: Vec::new() }
    }

    /// Number of recursions.
    pub fn num_recursions(&self) -> usize {
        self.num_recursions
    }

    /// True if units start only together, and wait for one another after the loop.
    fn is_in_phase(&self) -> bool {
        !self.is_depthwise || self.guard.in_phase()
    }

    /// True if units may start now.
    pub fn may_start(&self) -> bool {
        !self.is_in_phase() || self.in_loop.is_empty()
    }

    /// True if those who have left the loop wait for others that are in it.
    pub fn waits(&self) -> bool {
        self.is_in_phase() && !self.in_loop.is_empty()
    }

    /// Adds units that have just started, before the others.
    pub fn start(&mut self, units: Vec<Unit>) {
        self.in_loop.splice(0..0, units);
    }

    /// The tokens of the next pass over the shared block, sorted by recursion.
    pub fn pass(&self) -> Vec<InRecursion> {
        self.in_loop.iter().map(|unit| InRecursion { recursion: unit.done, span: unit.span }).collect()
    }

    /// True if a unit in the loop leaves it early.
    pub fn exits(&self) -> bool {
        self.in_loop.iter().any(|unit| unit.until < self.num_recursions)
    }

    /// Notes that the pass has run. Returns its rows: those that stay in the loop, and those that
    /// have left it and come after the rows that left earlier.
    pub fn passed(&mut self) -> Rows {
        self.in_loop.iter_mut().for_each(|unit| unit.done += 1);
        let decoded = self.in_loop.iter().filter(|unit| !unit.is_prompt && unit.done >= unit.until);
        decoded.for_each(|unit| self.guard.note(unit.done < self.num_recursions));
        let rows = split(&self.in_loop, |unit| unit.done < unit.until);
        let leaving: Vec<Unit> = self.in_loop.extract_if(.., |unit| unit.done >= unit.until).collect();
        self.left.extend(leaving);
        rows
    }

    /// Takes the units that have left the loop and are `wanted`, with their rows among those that
    /// have left; the others wait.
    pub fn take(&mut self, wanted: impl Fn(&Unit) -> bool) -> (Vec<Unit>, Rows) {
        let rows = split(&self.left, |unit| !wanted(unit));
        (self.left.extract_if(.., |unit| wanted(unit)).collect(), rows)
    }

    /// Drops the units of a sequence. Returns the rows that stay: in the loop, and among those that
    /// have left it.
    pub fn drop_slot(&mut self, slot: Slot) -> [Vec<usize>; 2] {
        let stays = |unit: &Unit| unit.span.slot != slot;
        let rows = [&self.in_loop, &self.left].map(|units| split(units, stays).stay);
        self.in_loop.retain(stays);
        self.left.retain(stays);
        rows
    }

    /// True if no unit is in the loop.
    pub fn is_empty(&self) -> bool {
        self.in_loop.is_empty()
    }

    /// Rows of prompts on their way.
    pub fn prompt_rows(&self) -> usize {
        let prompts = self.in_loop.iter().chain(&self.left).filter(|unit| unit.is_prompt);
        prompts.map(|unit| unit.span.tokens).sum()
    }
}

/// Rows of `units` by whether they stay.
fn split(units: &[Unit], stays: impl Fn(&Unit) -> bool) -> Rows {
    let (mut rows, mut start) = (Rows::default(), 0);
    for unit in units {
        let of_unit = start..start + unit.span.tokens;
        start = of_unit.end;
        if stays(unit) { &mut rows.stay } else { &mut rows.leave }.extend(of_unit);
    }
    rows
}

#[cfg(test)]
mod tests;
