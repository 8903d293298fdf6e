//! Tokens on their way through the parts of a recursive stack, without their hidden states: who
//! takes part in the next pass over the shared block, who leaves the loop with it or is not
//! selected for the next one, and who waits.
//!
//! A pure value: it knows neither tensors nor time.

use crate::scheduler::{Guard, Scheduler};
use retie_model::{InRecursion, Slot, Span};

/// Tokens of one sequence that go through the parts together: a token that decodes, or a part of a
/// prompt. Where only some of its tokens leave the loop, it falls into pieces, each a unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Unit {
    pub span: Span,
    /// Recursions that it has gone through.
    pub done: usize,
    /// Recursion count after which its tokens leave the loop at the latest.
    pub until: usize,
    /// Number of the exit rule from which on a token leaves the loop; infinite for never.
    pub threshold: f32,
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
    left: Vec<Unit>,
}

/// Rows of the next pass that the exit rule is asked about after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Recursions that they will have gone through.
    pub recursions: usize,
    pub rows: Vec<usize>,
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

    /// True if a token in the loop may leave it early.
    pub fn may_leave(&self) -> bool {
        self.in_loop.iter().any(|unit| unit.until < self.num_recursions || unit.threshold < f32::INFINITY)
    }

    /// Rows of the next pass that the exit rule is asked about after it, by recursion.
    pub fn asked(&self) -> Vec<Asked> {
        let (mut asked, mut start) = (Vec::<Asked>::new(), 0);
        for unit in &self.in_loop {
            let rows = start..start + unit.span.tokens;
            start = rows.end;
            let recursions = unit.done + 1;
            if !unit.threshold.is_finite() || recursions >= unit.until {
                continue;
            }
            match asked.last_mut().filter(|asked| asked.recursions == recursions) {
                Some(asked) => asked.rows.extend(rows),
                None => asked.push(Asked { recursions, rows: rows.collect() }),
            }
        }
        asked
    }

    /// Notes that the pass has run, with the exit rule's `numbers` of its rows. Returns the rows
    /// that stay in the loop, the rows that have left it, and the units of these, in their order;
    /// they come after those that left earlier.
    pub fn passed(&mut self, numbers: &[f32]) -> (Rows, Vec<Unit>) {
        self.in_loop.iter_mut().for_each(|unit| unit.done += 1);
        self.divide(|unit, row| unit.done < unit.until && numbers[row] < unit.threshold)
    }

    /// Notes which rows in the loop the router `selects` for the recursions that they are in front
    /// of; the others leave, after those that left earlier.
    pub fn selected(&mut self, selects: &[bool]) -> Rows {
        self.divide(|_, row| selects[row]).0
    }

    /// Lets rows leave the loop that do not stay. Returns rows and leaving units as
    /// [`Pipeline::passed`].
    fn divide(&mut self, stays: impl Fn(&Unit, usize) -> bool) -> (Rows, Vec<Unit>) {
        let (mut rows, mut leaving, mut start) = (Rows::default(), Vec::new(), 0);
        for unit in std::mem::take(&mut self.in_loop) {
            let all: Vec<usize> = (start..start + unit.span.tokens).collect();
            start += unit.span.tokens;
            let stays = |row: usize| stays(&unit, row);
            let mut place = unit.span.start;
            for run in all.chunk_by(|a, b| stays(*a) == stays(*b)) {
                let piece = Unit { span: Span { start: place, tokens: run.len(), ..unit.span }, ..unit };
                place += run.len();
                if stays(run[0]) {
                    rows.stay.extend(run);
                    self.in_loop.push(piece);
                    continue;
                }
                rows.leave.extend(run);
                leaving.push(piece);
                if !unit.is_prompt {
                    self.guard.note(unit.done < self.num_recursions);
                }
            }
        }
        self.left.extend(&leaving);
        (rows, leaving)
    }

    /// Takes the units that have left the loop, are `wanted`, and have no earlier token of their
    /// sequence in it. They are sorted by sequence and position, and so are their rows among those
    /// that have left; the others wait.
    pub fn take(&mut self, wanted: impl Fn(&Unit) -> bool) -> (Vec<Unit>, Rows) {
        let follows =
            |unit: &Unit, earlier: &Unit| earlier.span.slot == unit.span.slot && earlier.span.start < unit.span.start;
        let in_loop = &self.in_loop;
        let takes = |unit: &Unit| wanted(unit) && !in_loop.iter().any(|earlier| follows(unit, earlier));
        let (mut rows, mut taken, mut start) = (Rows::default(), Vec::new(), 0);
        for unit in &self.left {
            let of_unit = start..start + unit.span.tokens;
            start = of_unit.end;
            if takes(unit) { taken.push((*unit, of_unit)) } else { rows.stay.extend(of_unit) }
        }
        self.left.retain(|unit| !takes(unit));
        taken.sort_by_key(|(unit, _)| (unit.span.slot, unit.span.start));
        rows.leave = taken.iter().flat_map(|(_, rows)| rows.clone()).collect();
        (taken.into_iter().map(|(unit, _)| unit).collect(), rows)
    }

    /// Drops the units of a sequence. Returns the rows that stay: in the loop, and among those that
    /// have left it.
    pub fn drop_slot(&mut self, slot: Slot) -> [Vec<usize>; 2] {
        let stays = |unit: &Unit| unit.span.slot != slot;
        let rows = [&self.in_loop, &self.left].map(|units| rows_of(units, stays));
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

/// Rows of the `units` that stay.
fn rows_of(units: &[Unit], stays: impl Fn(&Unit) -> bool) -> Vec<usize> {
    let (mut rows, mut start) = (Vec::new(), 0);
    for unit in units {
        let of_unit = start..start + unit.span.tokens;
        start = of_unit.end;
        if stays(unit) {
            rows.extend(of_unit);
        }
    }
    rows
}

#[cfg(test)]
mod tests;
