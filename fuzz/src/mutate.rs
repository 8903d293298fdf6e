//! Mutations for the short run in the tests, which has no coverage to go by: it starts from the
//! corpus each time, and makes a few changes of the kinds that parsers are sensitive to.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Numbers at the edges of their types.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, 1 << 63, u64::MAX];

/// Words of a dictionary in the format of libFuzzer: `"word"` a line, with `\xNN`, `\\` and `\"`.
#[must_use]
pub fn dictionary(text: &str) -> Vec<Vec<u8>> {
    let words = text.lines().filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix('"'));
    words.map(unescaped).collect()
}

fn unescaped(word: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (word.as_bytes(), Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        let hex = word.get(at + 2..at + 4).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (byte, bytes.get(at + 1), hex) {
            (b'\\', Some(b'x'), Some(value)) => {
                out.push(value);
                at += 4;
            }
            (b'\\', Some(escaped), _) => {
                out.push(*escaped);
                at += 2;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out
}

/// A source of inputs; the same seed gives the same ones.
pub struct Mutator {
    corpus: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
    rng: ChaCha8Rng,
}

impl Mutator {
    /// Inputs like those of `corpus`, with `words` of a dictionary in them.
    #[must_use]
    pub fn new(corpus: Vec<Vec<u8>>, words: Vec<Vec<u8>>, seed: u64) -> Self {
        Self { corpus, words, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut input = match self.corpus.len() {
            0 => Vec::new(),
            count => self.corpus[self.rng.random_range(0..count)].clone(),
        };
        for _ in 0..self.rng.random_range(1..=4) {
            self.change(&mut input);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let rng = &mut self.rng;
        let at = rng.random_range(0..=input.len());
        let len = rng.random_range(0..=(input.len() - at).min(32));
        match rng.random_range(0..8) {
            0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
            1 if at < input.len() => input[at] = rng.random(),
            2 => input.truncate(at),
            3 => _ = input.drain(at..at + len),
            4 => {
                let copied = input[at..at + len].to_vec();
                let to = rng.random_range(0..=input.len());
                input.splice(to..to, copied);
            }
            5 => {
                // An edge number over what is there, in one of the widths, either end first.
                let (edge, width) = (EDGES[rng.random_range(0..EDGES.len())], 1 << rng.random_range(0..4));
                let bytes = match rng.random() {
                    true => edge.to_le_bytes()[..width].to_vec(),
                    false => edge.to_be_bytes()[8 - width..].to_vec(),
                };
                let end = (at + width).min(input.len());
                input.splice(at..end, bytes);
            }
            6 => {
                // A number in text.
                let edge = EDGES[rng.random_range(0..EDGES.len())].to_string();
                let digits = input.iter().skip(at).position(u8::is_ascii_digit).map(|digit| at + digit);
                if let Some(start) = digits {
                    let end = start + input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                    input.splice(start..end, edge.into_bytes());
                }
            }
            _ if !self.words.is_empty() => {
                let word = self.words[rng.random_range(0..self.words.len())].clone();
                let end = if rng.random() { at } else { at + len };
                input.splice(at..end, word);
            }
            _ => input.push((rng.next_u32() & 0xff) as u8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_libfuzzer_reads_them() {
        let words = dictionary("# numbers\n\"a\\x00b\"\n\n\"say \\\"\\\\\"\nname=\"no\"\n");
        assert_eq!(words, [b"a\0b".to_vec(), b"say \"\\".to_vec()]);
    }

    #[test]
    fn a_seed_gives_the_same_inputs_and_another_one_others() {
        let inputs = |seed| {
            let mut mutator = Mutator::new(vec![b"{\"a\": 12}".to_vec()], vec![b"null".to_vec()], seed);
            (0..50).map(|_| mutator.next_input()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
    }
}
