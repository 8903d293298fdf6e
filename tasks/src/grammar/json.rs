//! `json`: the value at a path of a JSON document.

use super::{
    DIGITS, Grammar, LETTERS, LONGEST, Reader, Task, digit,
    syntax::{Bracket, SyntaxTree},
};
use crate::{Example, Random, example::Symbols};
use std::{ops::RangeInclusive, sync::Arc};

pub(super) const TASK: Task = Task {
    name: "json",
    variants: &[],
    about: "value at a path of a JSON document",
    grammar: "value := scalar | { key : value , … } | [ value , … ]     scalar := digit | true | false | null\n\
              key := a letter in quotation marks, distinct in an object\n\
              problem := value | step … step     a step is a key, or the index of an array, and leads to a scalar\n\
              length: scalars; objects and arrays have 2 to 4 members, whose scalars are spread evenly at random\n\
              depth: steps\n\
              edge case: objects and arrays in one another, each with a scalar beside it, and the path leads to the lowest\n\
              shortcut k: after k steps, the first scalar of the value that is reached",
    keys: &[],
    build: |_, _| Ok(Arc::new(Json)),
};

const BAR: &str = "|";
const WORDS: [&str; 3] = ["true", "false", "null"];
const QUOTED: [&str; 26] = [
    "\"a\"", "\"b\"", "\"c\"", "\"d\"", "\"e\"", "\"f\"", "\"g\"", "\"h\"", "\"i\"", "\"j\"", "\"k\"", "\"l\"",
    "\"m\"", "\"n\"", "\"o\"", "\"p\"", "\"q\"", "\"r\"", "\"s\"", "\"t\"", "\"u\"", "\"v\"", "\"w\"", "\"x\"",
    "\"y\"", "\"z\"",
];

#[derive(Debug)]
struct Json;

struct Writer<'a> {
    edge: bool,
    random: &'a mut Random,
    out: &'a mut Symbols,
    /// Steps to the scalar that is asked for, and its symbol.
    path: Vec<&'static str>,
    asked: &'static str,
}

impl Writer<'_> {
    fn scalar(&mut self, depth: usize) -> &'static str {
        let scalar = match self.random.below(4) {
            0 => *self.random.choose(&WORDS),
            _ => *self.random.choose(&DIGITS),
        };
        self.out.push(scalar, depth);
        scalar
    }

    /// Writes a value of `length` scalars. The one of index `asked` is remembered with its path.
    fn value(&mut self, length: usize, asked: Option<usize>, depth: usize) {
        if length == 1 && depth > 0 {
            let scalar = self.scalar(depth);
            if asked.is_some() {
                self.asked = scalar;
            }
            return;
        }
        let is_object = self.random.bits() & 1 == 1;
        let mut sizes = [1; 4];
        let members = if self.edge { length.min(2) } else { 1 + self.random.below(length.min(4)) };
        // One member that holds everything would repeat this value one step lower.
        let members = if length > 1 { members.max(2) } else { members };
        if self.edge {
            sizes[members - 1] = length - (members - 1);
        } else {
            (members..length).for_each(|_| sizes[self.random.below(members)] += 1);
        }
        let mut letters = LETTERS.len();
        let mut keys = QUOTED;
        self.out.push(if is_object { "{" } else { "[" }, depth + 1);
        let mut first = 0;
        for (index, size) in sizes[..members].iter().enumerate() {
            if index > 0 {
                self.out.push(",", depth + 1);
            }
            let step = match is_object {
                true => {
                    let at = self.random.below(letters);
                    letters -= 1;
                    keys.swap(at, letters);
                    self.out.push(keys[letters], depth + 1);
                    self.out.push(":", depth + 1);
                    keys[letters]
                }
                false => DIGITS[index],
            };
            let asked = asked.and_then(|asked| asked.checked_sub(first)).filter(|asked| asked < size);
            if asked.is_some() {
                self.path.push(step);
            }
            self.value(*size, asked, depth + 1);
            first += size;
        }
        self.out.push(if is_object { "}" } else { "]" }, depth + 1);
    }
}

/// A value that was read.
enum Value<'s> {
    Scalar(&'s str),
    /// Members with their steps.
    Members(Vec<(String, Value<'s>)>),
}

fn read<'s>(input: &mut Reader<'s>) -> Option<Value<'s>> {
    let close = match input.next()? {
        "{" => "}",
        "[" => "]",
        scalar if digit(scalar).is_some() || WORDS.contains(&scalar) => return Some(Value::Scalar(scalar)),
        _ => return None,
    };
    let mut members = Vec::new();
    loop {
        let step = match close {
            "}" => {
                let key = input.next().filter(|key| QUOTED.contains(key))?;
                input.expect(":")?;
                key.to_owned()
            }
            _ => members.len().to_string(),
        };
        members.push((step, read(input)?));
        match input.next()? {
            "," => {}
            end if end == close => return Some(Value::Members(members)),
            _ => return None,
        }
    }
}

impl<'s> Value<'s> {
    fn first_scalar(&self) -> Option<&'s str> {
        match self {
            Self::Scalar(scalar) => Some(scalar),
            Self::Members(members) => members.first()?.1.first_scalar(),
        }
    }

    fn at(&self, path: &[&str], cap: usize) -> Option<&'s str> {
        let Some((step, rest)) = path.split_first().filter(|_| cap > 0) else {
            return match (self, path) {
                (Self::Members(_), []) => None,
                _ => self.first_scalar(),
            };
        };
        let Self::Members(members) = self else { return None };
        members.iter().find(|(name, _)| name == step)?.1.at(rest, cap - 1)
    }
}

impl Grammar for Json {
    fn lengths(&self) -> RangeInclusive<usize> {
        1..=LONGEST
    }

    fn default_lengths(&self) -> RangeInclusive<usize> {
        1..=8
    }

    fn depth_name(&self) -> &'static str {
        "steps"
    }

    fn write(&self, length: usize, edge: bool, random: &mut Random, example: &mut Example) {
        let asked = if edge { length - 1 } else { random.below(length) };
        let mut writer = Writer { edge, random, out: &mut example.input, path: Vec::new(), asked: WORDS[0] };
        writer.value(length, Some(asked), 0);
        let (path, asked) = (writer.path, writer.asked);
        example.input.push(BAR, 0);
        path.iter().enumerate().for_each(|(index, step)| example.input.push(step, index + 1));
        example.output.push(asked, path.len());
        example.depth = path.len();
    }

    fn solve(&self, input: &[&str], cap: Option<usize>) -> Option<Vec<String>> {
        let mut reader = Reader { rest: input };
        let value = read(&mut reader)?;
        reader.expect(BAR)?;
        let scalar = value.at(reader.rest, cap.unwrap_or(usize::MAX))?;
        Some(vec![scalar.to_owned()])
    }

    /// The document without the path: objects, arrays, and members of objects with their keys.
    fn syntax(&self, example: &Example) -> Option<SyntaxTree> {
        let kind = |symbol: &str| match symbol {
            "{" | "[" => Some(Bracket::Open),
            _ => ["}", "]"].contains(&symbol).then_some(Bracket::Close),
        };
        let mut tree = SyntaxTree::of_brackets(example.input.iter().take_while(|symbol| *symbol != BAR), kind);
        let colons = tree.symbols.iter().enumerate().filter(|(_, symbol)| *symbol == ":");
        let members: Vec<_> = colons
            .map(|(colon, _)| {
                let value = tree.spans.iter().find(|span| span.start == colon + 1);
                colon - 1..value.map_or(colon + 2, |value| value.end)
            })
            .collect();
        tree.spans.extend(members);
        Some(tree.sort())
    }
}
