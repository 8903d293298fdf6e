//! `copy`: letters again, behind other symbols.

use super::{DIGITS, Grammar, LETTERS, LONGEST, Task, digit};
use crate::{Example, Random, TaskError, options::Options};
use std::{ops::RangeInclusive, sync::Arc};

pub(super) const TASK: Task = Task {
    name: "copy",
    variants: &[],
    about: "letters copied over a distance",
    grammar: "problem := letter … letter | digit … digit |     the answer is the letters\n\
              length: letters\n\
              depth: distance, the number of digits: 0 or a power of two, each one of `distance` as likely\n\
              edge case: one letter, again and again\n\
              shortcut k: only the first k letters",
    keys: &[("distance", "A..B within 0 to 16384, 0..32 by default: the most and the least digits")],
    build: |_, options| Ok(Arc::new(Copy { distances: distances(options)?.unwrap_or(vec![0, 1, 2, 4, 8, 16, 32]) })),
};

/// The key `distance`: 0 and the powers of two in its range.
pub(super) fn distances(options: &mut Options) -> Result<Option<Vec<usize>>, TaskError> {
    let Some(range) = options.range("distance", 0..=16_384)? else { return Ok(None) };
    let powers = (0..15).map(|power| 1 << power);
    let distances: Vec<usize> = std::iter::once(0).chain(powers).filter(|d| range.contains(d)).collect();
    match distances.is_empty() {
        true => Err(options.bad("distance", "a range with 0 or a power of two in it")),
        false => Ok(Some(distances)),
    }
}

#[derive(Debug)]
struct Copy {
    distances: Vec<usize>,
}

const BAR: &str = "|";

impl Grammar for Copy {
    fn lengths(&self) -> RangeInclusive<usize> {
        1..=LONGEST
    }

    fn default_lengths(&self) -> RangeInclusive<usize> {
        1..=8
    }

    fn depth_name(&self) -> &'static str {
        "distance"
    }

    fn write(&self, length: usize, edge: bool, random: &mut Random, example: &mut Example) {
        let distance = *random.choose(&self.distances);
        let mut letter = *random.choose(&LETTERS);
        for _ in 0..length {
            example.input.push(letter, 1);
            example.output.push(letter, 1);
            if !edge {
                letter = *random.choose(&LETTERS);
            }
        }
        example.input.push(BAR, 0);
        for _ in 0..distance {
            let digit = *random.choose(&DIGITS);
            example.input.push(digit, 0);
        }
        example.input.push(BAR, 0);
        example.depth = distance;
    }

    fn solve(&self, input: &[&str], cap: Option<usize>) -> Option<Vec<String>> {
        let mut parts = input.split(|symbol| *symbol == BAR);
        let (letters, digits, end) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = letters.iter().all(|letter| LETTERS.contains(letter)) && digits.iter().all(|d| digit(d).is_some());
        let whole = fits && !letters.is_empty() && end.is_empty() && parts.next().is_none();
        whole.then(|| letters.iter().take(cap.unwrap_or(usize::MAX)).map(|s| (*s).to_owned()).collect())
    }
}
