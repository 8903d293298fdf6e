//! Grammars: what a problem is, its generator, its reference program, and the program with a cap on
//! recursion that a model may have learned in its place.

mod arithmetic;
mod copy;
mod dyck;
mod json;
mod listops;
mod query;
mod recall;
mod succ;
mod syntax;
mod tree;

pub use syntax::SyntaxTree;

use crate::{Example, Random, TaskError, options::Options};
use std::{fmt::Debug, ops::RangeInclusive, sync::Arc};

/// Generator and reference program of a task.
pub trait Grammar: Debug + Send + Sync {
    /// Lengths that a problem can have.
    fn lengths(&self) -> RangeInclusive<usize>;

    /// Lengths where none are asked for.
    fn default_lengths(&self) -> RangeInclusive<usize>;

    /// What [`Example::depth`] counts.
    fn depth_name(&self) -> &'static str;

    /// Writes a random problem of `length`, with its answer, into the empty `example`; the edge
    /// case of that length if `edge`. Sets its depth.
    fn write(&self, length: usize, edge: bool, random: &mut Random, example: &mut Example);

    /// Reference program: the answer of the problem `input`, computed from its symbols alone. With
    /// `cap` the shortcut: the same program, which stops after that many levels of recursion, as
    /// the grammar's text says. `None` if `input` is no problem of the grammar.
    fn solve(&self, input: &[&str], cap: Option<usize>) -> Option<Vec<String>>;

    /// Syntax tree of a problem, or of what its answer completes. `None` for grammars without one
    /// here.
    fn syntax(&self, _example: &Example) -> Option<SyntaxTree> {
        None
    }
}

/// Makes the grammar of a variant with the keys of a task.
type Build = fn(&str, &mut Options) -> Result<Arc<dyn Grammar>, TaskError>;

/// A task: a name and what builds its grammar.
pub struct Task {
    /// Name on the command line and in `task://NAME`.
    pub name: &'static str,
    /// Words that may follow the name after a colon, the first one being the default; empty for a
    /// task without variants.
    pub variants: &'static [&'static str],
    /// One line about it.
    pub about: &'static str,
    /// Its grammar, edge case and shortcut.
    pub grammar: &'static str,
    /// Its own keys, with what they accept.
    pub keys: &'static [(&'static str, &'static str)],
    /// Makes the grammar of a variant.
    pub(crate) build: Build,
}

impl Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Every task.
pub static TASKS: &[Task] = &[
    succ::TASK,
    tree::TREE,
    tree::REDUCE,
    arithmetic::TASK,
    dyck::TASK,
    copy::TASK,
    recall::TASK,
    listops::TASK,
    json::TASK,
    query::TASK,
];

/// Letters for values and names.
const LETTERS: [&str; 26] = [
    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t", "u", "v", "w",
    "x", "y", "z",
];

const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// A digit's value.
fn digit(symbol: &str) -> Option<i64> {
    DIGITS.iter().position(|digit| *digit == symbol).map(|value| value as i64)
}

/// Symbols that are read from the first to the last.
#[derive(Debug)]
struct Reader<'s> {
    rest: &'s [&'s str],
}

impl<'s> Reader<'s> {
    fn next(&mut self) -> Option<&'s str> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn expect(&mut self, symbol: &str) -> Option<()> {
        (self.next()? == symbol).then_some(())
    }

    fn peek(&self) -> Option<&'s str> {
        self.rest.first().copied()
    }
}

/// The longest problem of the grammars that nest: as deep as the stack allows with room to spare.
const LONGEST: usize = 1000;

#[cfg(test)]
mod tests;
