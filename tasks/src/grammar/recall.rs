//! `recall`: the value that stands behind a key.

use super::{DIGITS, Grammar, LETTERS, Task, copy::distances, digit};
use crate::{Example, Random};
use std::{ops::RangeInclusive, sync::Arc};

pub(super) const TASK: Task = Task {
    name: "recall",
    variants: &[],
    about: "value of a key among pairs of keys and values",
    grammar: "problem := letter digit … letter digit | letter     keys are distinct, the answer is the last one's digit\n\
              with `distance`: letter digit … letter digit | digit … digit | letter\n\
              length: pairs\n\
              depth: distance, the number of pairs behind the one that is asked for; with `distance` that of digits\n\
              edge case: the first pair is asked for\n\
              shortcut k: the last k pairs are known, and the last digit stands for any other",
    keys: &[("distance", "A..B within 0 to 16384: digits before the key, 0 or a power of two, each one as likely")],
    build: |_, options| Ok(Arc::new(Recall { distances: distances(options)? })),
};

#[derive(Debug)]
struct Recall {
    /// Digits between pairs and key.
    distances: Option<Vec<usize>>,
}

const BAR: &str = "|";

impl Grammar for Recall {
    fn lengths(&self) -> RangeInclusive<usize> {
        1..=LETTERS.len()
    }

    fn default_lengths(&self) -> RangeInclusive<usize> {
        2..=8
    }

    fn depth_name(&self) -> &'static str {
        "distance"
    }

    fn write(&self, length: usize, edge: bool, random: &mut Random, example: &mut Example) {
        let mut keys = LETTERS;
        let asked = if edge { 0 } else { random.below(length) };
        let mut value = DIGITS[0];
        for index in 0..length {
            keys.swap(index, index + random.below(LETTERS.len() - index));
            let digit = *random.choose(&DIGITS);
            let level = usize::from(index == asked);
            example.input.push(keys[index], level);
            example.input.push(digit, level);
            if index == asked {
                value = digit;
            }
        }
        example.input.push(BAR, 0);
        example.depth = length - 1 - asked;
        if let Some(distances) = &self.distances {
            example.depth = *random.choose(distances);
            for _ in 0..example.depth {
                let digit = *random.choose(&DIGITS);
                example.input.push(digit, 0);
            }
            example.input.push(BAR, 0);
        }
        example.input.push(keys[asked], 1);
        example.output.push(value, 1);
    }

    fn solve(&self, input: &[&str], cap: Option<usize>) -> Option<Vec<String>> {
        let [input @ .., BAR, key] = input else { return None };
        let pairs = match (&self.distances, input.iter().position(|symbol| *symbol == BAR)) {
            (None, None) => input,
            (Some(_), Some(bar)) if input[bar + 1..].iter().all(|between| digit(between).is_some()) => &input[..bar],
            _ => return None,
        };
        let pairs: Vec<(&str, &str)> =
            pairs.chunks(2).map(|pair| Some((pair[0], *pair.get(1)?))).collect::<Option<_>>()?;
        if !pairs.iter().all(|(key, value)| LETTERS.contains(key) && digit(value).is_some()) {
            return None;
        }
        let at = pairs.iter().position(|(other, _)| other == key)?;
        let known = pairs.len() - at <= cap.unwrap_or(usize::MAX);
        let (_, value) = if known { pairs[at] } else { *pairs.last()? };
        Some(vec![value.to_owned()])
    }
}
