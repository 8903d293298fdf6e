//! `succ`: the successor of a binary number, whose carry is the recursion (Zhang et al. 2024,
//! <https://arxiv.org/abs/2401.12947>, as described there; no code of it was published).

use super::{Grammar, LONGEST, Task};
use crate::{Example, Random};
use std::{ops::RangeInclusive, sync::Arc};

pub(super) const TASK: Task = Task {
    name: "succ",
    variants: &[],
    about: "successor of a binary number, least significant constructor first",
    grammar: "value := 01 | X0 value | X1 value     01 is 1, X0 b is 2b, X1 b is 2b + 1\n\
              s(01) = X0 01, s(X0 b) = X1 b, s(X1 b) = X0 s(b)\n\
              length: constructors, 01 included; each X is drawn evenly\n\
              depth: X1 before the first X0 or 01, the length of the carry\n\
              edge case: X1 everywhere before 01\n\
              shortcut k: the carry ends after k X1, and the rest is copied",
    keys: &[],
    build: |_, _| Ok(Arc::new(Succ)),
};

#[derive(Debug)]
struct Succ;

impl Grammar for Succ {
    fn lengths(&self) -> RangeInclusive<usize> {
        1..=LONGEST
    }

    fn default_lengths(&self) -> RangeInclusive<usize> {
        1..=10
    }

    fn depth_name(&self) -> &'static str {
        "leading X1"
    }

    fn write(&self, length: usize, edge: bool, random: &mut Random, example: &mut Example) {
        let (mut carry, mut depth) = (true, 0);
        let mut bits = 0;
        for index in 0..length - 1 {
            if index % 64 == 0 {
                bits = random.bits();
            }
            let one = edge || bits & 1 == 1;
            bits >>= 1;
            // The recursion reads the symbols of the carry and the one behind it.
            let level = if carry { index + 1 } else { 0 };
            example.input.push(if one { "X1" } else { "X0" }, level);
            example.output.push(if one == carry { "X0" } else { "X1" }, level);
            carry &= one;
            depth += usize::from(carry);
        }
        let level = if carry { length } else { 0 };
        example.input.push("01", level);
        if carry {
            example.output.push("X0", level);
        }
        example.output.push("01", level);
        example.depth = depth;
    }

    fn solve(&self, input: &[&str], cap: Option<usize>) -> Option<Vec<String>> {
        let (last, constructors) = input.split_last()?;
        if *last != "01" || constructors.iter().any(|symbol| *symbol != "X0" && *symbol != "X1") {
            return None;
        }
        let carry = constructors.iter().take_while(|symbol| **symbol == "X1").count();
        let flipped = carry.min(cap.unwrap_or(usize::MAX));
        let end: &[&str] = match input[flipped] {
            // The first X0 becomes X1. Where the cap is reached, an X1 stays.
            "X0" | "X1" => &["X1"],
            _ => &["X0", "01"],
        };
        let output = std::iter::repeat_n(&"X0", flipped).chain(end).chain(&input[flipped + 1..]);
        Some(output.map(|symbol| (*symbol).to_owned()).collect())
    }
}
