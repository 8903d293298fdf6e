//! `arithmetic`: the value of an expression in brackets.

use super::{
    DIGITS, Grammar, LONGEST, Reader, Task, digit,
    syntax::{Bracket, SyntaxTree},
};
use crate::{Example, Random, example::Symbols};
use std::{ops::RangeInclusive, sync::Arc};

pub(super) const TASK: Task = Task {
    name: "arithmetic",
    variants: &["all", "add"],
    about: "value of an expression of digits, operators and brackets",
    grammar: "problem := digit | operand operator operand     operand := digit | ( operand operator operand )\n\
              operator := + | - | *, and only + in the variant `add`\n\
              the answer is the value in decimal digits, or its remainder with `modulus`\n\
              length: operators; the left operand of n operators has 0 to n - 1 of them, each as likely\n\
              depth: the most operators on a way down\n\
              edge case: every operator has a digit and a longer operand, on either side\n\
              shortcut k: operands below k operators are replaced by their first digit",
    keys: &[("modulus", "2 to 1000: the answer is the remainder, 0 to modulus - 1")],
    build: |variant, options| {
        let modulus = options.number("modulus", 2..=1000)?.map(|modulus| modulus as i64);
        let operators: &[&str] = if variant == "add" { &["+"] } else { &["+", "-", "*"] };
        Ok(Arc::new(Arithmetic { operators, modulus }))
    },
};

#[derive(Debug)]
struct Arithmetic {
    operators: &'static [&'static str],
    modulus: Option<i64>,
}

/// A problem in the making.
struct Writer<'a> {
    grammar: &'a Arithmetic,
    random: &'a mut Random,
    out: &'a mut Symbols,
    edge: bool,
}

impl Writer<'_> {
    /// Writes an operand of `length` operators; returns its value and depth.
    fn operand(&mut self, length: usize, depth: usize) -> (i64, usize) {
        if length == 0 {
            let value = self.random.below(10);
            self.out.push(DIGITS[value], depth);
            return (value as i64, 0);
        }
        if depth > 0 {
            self.out.push("(", depth);
        }
        let left = match self.edge {
            true => (length - 1) * (self.random.bits() & 1) as usize,
            false => self.random.below(length),
        };
        let (a, left_depth) = self.operand(left, depth + 1);
        let operator = *self.random.choose(self.grammar.operators);
        self.out.push(operator, depth);
        let (b, right_depth) = self.operand(length - 1 - left, depth + 1);
        if depth > 0 {
            self.out.push(")", depth);
        }
        (self.grammar.apply(operator, a, b), 1 + left_depth.max(right_depth))
    }
}

impl Arithmetic {
    fn apply(&self, operator: &str, a: i64, b: i64) -> i64 {
        let value = match operator {
            "+" => a + b,
            "-" => a - b,
            _ => a * b,
        };
        self.modulus.map_or(value, |modulus| value.rem_euclid(modulus))
    }

    /// Reads an operand; gives its value, and its first digit.
    fn read(&self, input: &mut Reader<'_>, cap: usize) -> Option<(i64, i64)> {
        if let Some(value) = input.peek().and_then(digit) {
            input.next();
            return Some((value, value));
        }
        input.expect("(")?;
        let result = self.read_operation(input, cap)?;
        input.expect(")")?;
        Some(result)
    }

    fn read_operation(&self, input: &mut Reader<'_>, cap: usize) -> Option<(i64, i64)> {
        let below = cap.saturating_sub(1);
        let (a, first) = self.read(input, below)?;
        let operator = input.next().filter(|operator| self.operators.contains(operator))?;
        let (b, _) = self.read(input, below)?;
        Some((if cap == 0 { first } else { self.apply(operator, a, b) }, first))
    }
}

impl Grammar for Arithmetic {
    fn lengths(&self) -> RangeInclusive<usize> {
        // 9 to the power of 18 fits an i64.
        0..=if self.modulus.is_some() { LONGEST } else { 17 }
    }

    fn default_lengths(&self) -> RangeInclusive<usize> {
        1..=4
    }

    fn depth_name(&self) -> &'static str {
        "nested operators"
    }

    fn write(&self, length: usize, edge: bool, random: &mut Random, example: &mut Example) {
        let (value, depth) = Writer { grammar: self, random, out: &mut example.input, edge }.operand(length, 0);
        example.depth = depth;
        example.output.push_number(self.modulus.map_or(value, |modulus| value.rem_euclid(modulus)), 0);
    }

    fn solve(&self, input: &[&str], cap: Option<usize>) -> Option<Vec<String>> {
        let mut reader = Reader { rest: input };
        let cap = cap.unwrap_or(usize::MAX);
        let (value, _) = match input {
            [only] => (digit(only)?, 0),
            _ => self.read_operation(&mut reader, cap)?,
        };
        let value = self.modulus.map_or(value, |modulus| value.rem_euclid(modulus));
        let done = input.len() == 1 || reader.rest.is_empty();
        done.then(|| value.to_string().chars().map(String::from).collect())
    }

    /// Operands in brackets, with and without these, and the problem itself.
    fn syntax(&self, example: &Example) -> Option<SyntaxTree> {
        let kind = |symbol: &str| match symbol {
            "(" => Some(Bracket::Open),
            _ => (symbol == ")").then_some(Bracket::Close),
        };
        let mut tree = SyntaxTree::of_brackets(example.input.iter(), kind);
        let inner: Vec<_> = tree.spans.iter().map(|span| span.start + 1..span.end - 1).collect();
        tree.spans.extend(inner);
        tree.spans.push(0..tree.symbols.len());
        Some(tree.sort())
    }
}
