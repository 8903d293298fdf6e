//! `listops`: nested operations on lists of digits (Nangia and Bowman 2018,
//! <https://arxiv.org/abs/1804.06028>).

use super::{
    DIGITS, Grammar, LONGEST, Reader, Task, digit,
    syntax::{Bracket, SyntaxTree},
};
use crate::{Example, Random, example::Symbols};
use std::{ops::RangeInclusive, sync::Arc};

pub(super) const TASK: Task = Task {
    name: "listops",
    variants: &[],
    about: "nested minimum, maximum, median and sum modulo 10",
    grammar: "list := digit | operator list … list ]     operator := [MIN | [MAX | [MED | [SM\n\
              [MED is the median, the mean of the middle two rounded down; [SM the sum modulo 10\n\
              length: digits; an operator has 2 to `arity` operands, whose digits are spread evenly at random\n\
              depth: the most operators on a way down\n\
              edge case: every operator has a digit and the rest\n\
              shortcut k: lists below k operators are replaced by their first digit",
    keys: &[("arity", "2 to 10: the most operands, 5 by default")],
    build: |_, options| Ok(Arc::new(ListOps { arity: options.number("arity", 2..=10)?.unwrap_or(5) })),
};

const OPERATORS: [&str; 4] = ["[MIN", "[MAX", "[MED", "[SM"];
const CLOSE: &str = "]";

#[derive(Debug)]
struct ListOps {
    arity: usize,
}

fn apply(operator: &str, operands: &mut [i64]) -> i64 {
    operands.sort_unstable();
    let middle = operands.len() / 2;
    match operator {
        "[MIN" => operands[0],
        "[MAX" => operands[operands.len() - 1],
        "[MED" if operands.len() % 2 == 1 => operands[middle],
        "[MED" => (operands[middle - 1] + operands[middle]) / 2,
        _ => operands.iter().sum::<i64>() % 10,
    }
}

struct Writer<'a> {
    arity: usize,
    edge: bool,
    random: &'a mut Random,
    out: &'a mut Symbols,
}

impl Writer<'_> {
    /// Writes a list of `length` digits; returns its value and depth.
    fn list(&mut self, length: usize, depth: usize) -> (i64, usize) {
        if length == 1 {
            let value = self.random.below(10);
            self.out.push(DIGITS[value], depth);
            return (value as i64, 0);
        }
        let mut sizes = [1; 10];
        let arity = if self.edge { 2 } else { 2 + self.random.below(self.arity.min(length) - 1) };
        if self.edge {
            sizes[(self.random.bits() & 1) as usize] = length - 1;
        } else {
            (arity..length).for_each(|_| sizes[self.random.below(arity)] += 1);
        }
        let operator = *self.random.choose(&OPERATORS);
        self.out.push(operator, depth + 1);
        let (mut operands, mut deepest) = ([0; 10], 0);
        for (size, operand) in sizes[..arity].iter().zip(&mut operands) {
            let (value, below) = self.list(*size, depth + 1);
            *operand = value;
            deepest = deepest.max(below);
        }
        self.out.push(CLOSE, depth + 1);
        (apply(operator, &mut operands[..arity]), deepest + 1)
    }
}

/// Reads a list; gives its value and its first digit.
fn read(input: &mut Reader<'_>, cap: usize) -> Option<(i64, i64)> {
    let first = input.next()?;
    if let Some(value) = digit(first) {
        return Some((value, value));
    }
    let operator = OPERATORS.iter().find(|operator| **operator == first)?;
    let mut operands = Vec::new();
    while input.peek()? != CLOSE {
        operands.push(read(input, cap.saturating_sub(1))?);
    }
    input.expect(CLOSE)?;
    let (_, first) = *operands.first()?;
    let mut values: Vec<i64> = operands.into_iter().map(|(value, _)| value).collect();
    Some((if cap == 0 { first } else { apply(operator, &mut values) }, first))
}

impl Grammar for ListOps {
    fn lengths(&self) -> RangeInclusive<usize> {
        1..=LONGEST
    }

    fn default_lengths(&self) -> RangeInclusive<usize> {
        2..=10
    }

    fn depth_name(&self) -> &'static str {
        "nested operators"
    }

    fn write(&self, length: usize, edge: bool, random: &mut Random, example: &mut Example) {
        let mut writer = Writer { arity: self.arity, edge, random, out: &mut example.input };
        let (value, depth) = writer.list(length, 0);
        example.output.push_number(value, 0);
        example.depth = depth;
    }

    fn solve(&self, input: &[&str], cap: Option<usize>) -> Option<Vec<String>> {
        let mut reader = Reader { rest: input };
        let (value, _) = read(&mut reader, cap.unwrap_or(usize::MAX))?;
        reader.rest.is_empty().then(|| vec![value.to_string()])
    }

    /// The lists with their operators and brackets.
    fn syntax(&self, example: &Example) -> Option<SyntaxTree> {
        let kind = |symbol: &str| match symbol {
            CLOSE => Some(Bracket::Close),
            _ => OPERATORS.contains(&symbol).then_some(Bracket::Open),
        };
        Some(SyntaxTree::of_brackets(example.input.iter(), kind).sort())
    }
}
