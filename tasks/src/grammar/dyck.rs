//! `dyck`: the brackets that are missing at the end.

use super::{
    Grammar, LONGEST, Task,
    syntax::{Bracket, SyntaxTree},
};
use crate::{Example, Random};
use std::{ops::RangeInclusive, sync::Arc};

pub(super) const TASK: Task = Task {
    name: "dyck",
    variants: &[],
    about: "closing brackets of the beginning of a balanced text",
    grammar: "balanced := | open balanced close balanced     ( ), [ ], { }, < >\n\
              the problem is the beginning of a balanced text with a bracket open, the answer closes all that are\n\
              length: brackets of the problem; each opens or closes with probability 1/2 where both can be\n\
              depth: brackets to close\n\
              edge case: nothing is closed in the problem\n\
              shortcut k: only the k brackets that were opened last are closed",
    keys: &[("kinds", "1 to 4: kinds of brackets, 3 by default")],
    build: |_, options| Ok(Arc::new(Dyck { kinds: options.number("kinds", 1..=4)?.unwrap_or(3) })),
};

const OPEN: [&str; 4] = ["(", "[", "{", "<"];
const CLOSE: [&str; 4] = [")", "]", "}", ">"];

#[derive(Debug)]
struct Dyck {
    kinds: usize,
}

impl Grammar for Dyck {
    fn lengths(&self) -> RangeInclusive<usize> {
        1..=LONGEST
    }

    fn default_lengths(&self) -> RangeInclusive<usize> {
        1..=16
    }

    fn depth_name(&self) -> &'static str {
        "open brackets"
    }

    fn write(&self, length: usize, edge: bool, random: &mut Random, example: &mut Example) {
        let mut open = Vec::with_capacity(length);
        for index in 0..length {
            // The last symbol may not close the only bracket that is open.
            let must_open = open.len() <= usize::from(index + 1 == length);
            if edge || must_open || random.bits() & 1 == 1 {
                let kind = random.below(self.kinds);
                open.push(kind);
                example.input.push(OPEN[kind], open.len());
            } else if let Some(kind) = open.pop() {
                example.input.push(CLOSE[kind], open.len() + 1);
            }
        }
        example.depth = open.len();
        while let Some(kind) = open.pop() {
            example.output.push(CLOSE[kind], open.len() + 1);
        }
    }

    fn solve(&self, input: &[&str], cap: Option<usize>) -> Option<Vec<String>> {
        let kind = |brackets: &[&str], symbol: &str| brackets[..self.kinds].iter().position(|b| *b == symbol);
        let mut open = Vec::new();
        for symbol in input {
            match (kind(&OPEN, symbol), kind(&CLOSE, symbol)) {
                (Some(kind), _) => open.push(kind),
                (None, Some(kind)) => _ = open.pop().filter(|last| *last == kind)?,
                (None, None) => return None,
            }
        }
        let closed = open.iter().rev().take(cap.unwrap_or(usize::MAX));
        (!open.is_empty()).then(|| closed.map(|kind| CLOSE[*kind].to_owned()).collect())
    }

    /// What each pair of brackets encloses, with these, in problem and answer together.
    fn syntax(&self, example: &Example) -> Option<SyntaxTree> {
        let kind = |symbol: &str| match OPEN.contains(&symbol) {
            true => Some(Bracket::Open),
            false => CLOSE.contains(&symbol).then_some(Bracket::Close),
        };
        Some(SyntaxTree::of_brackets(example.input.iter().chain(example.output.iter()), kind).sort())
    }
}
