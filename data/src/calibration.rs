//! Calibration text: token sequences spread evenly over a file, the last ones held out.
//!
//! Neighbouring sequences come from one document or one subject; spread ones show more of the text.
//! The text is cut into as many parts of equal length as sequences are wanted, and each sequence
//! begins with the first line that begins in its part. Where a part is too short for that, the
//! sequences lie side by side from the beginning. The file is read whole; only the tokens that are
//! used are encoded.

use std::path::Path;

use crate::document::joined_text;
use crate::error::DataError;
use crate::tokenizer::Tokenizer;

/// Tokens of a sequence, where the model's context is not shorter.
const SEQUENCE_LENGTH: usize = 512;

/// One held-out sequence for so many that are fitted to.
const TRAIN_FOR_HELDOUT: usize = 4;

/// More held-out sequences take time and say little more.
const MOST_HELDOUT: usize = 8;

/// Bytes that are encoded first for each token that is wanted; doubled until they are enough.
const BYTES_FOR_TOKEN: usize = 6;

/// Token sequences of a text, each after a BOS token if the tokenizer has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationText {
    /// The file, as it was named.
    pub name: String,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Sequences to fit to, one after the other.
    pub train: Vec<u32>,
    /// Sequences to measure on.
    pub heldout: Vec<u32>,
}

impl CalibrationText {
    /// Reads `tokens` tokens of `path` to fit to, rounded down to whole sequences of at most
    /// `max_length` tokens, and a quarter as many held-out ones.
    ///
    /// # Errors
    /// The file cannot be read or encoded, or has too few tokens.
    pub fn read(path: &Path, tokenizer: &Tokenizer, max_length: usize, tokens: usize) -> Result<Self, DataError> {
        let text = joined_text(path)?;
        let sequence_length = SEQUENCE_LENGTH.min(max_length).min(tokens);
        let num_train = (tokens / sequence_length).max(1);
        let num_heldout = num_train.div_ceil(TRAIN_FOR_HELDOUT).min(MOST_HELDOUT);
        let cut = Cut { tokenizer, length: sequence_length, count: num_train + num_heldout };
        let ids = match cut.spread(&text)? {
            Some(ids) => ids,
            None => cut.consecutive(&text, path)?,
        };
        let (train, heldout) = ids.split_at(num_train * sequence_length);
        let (name, train, heldout) = (path.display().to_string(), train.to_vec(), heldout.to_vec());
        Ok(Self { name, sequence_length, train, heldout })
    }
}

/// How a text is cut: `count` sequences of `length` tokens.
struct Cut<'t> {
    tokenizer: &'t Tokenizer,
    length: usize,
    count: usize,
}

impl Cut<'_> {
    /// Sequences from all over the text, one after the other; `None` where it is too short.
    fn spread(&self, text: &str) -> Result<Option<Vec<u32>>, DataError> {
        let border =
            |part: usize| text.floor_char_boundary((part as u128 * text.len() as u128 / self.count as u128) as usize);
        let mut ids = Vec::with_capacity(self.count * self.length);
        for part in 0..self.count {
            let part_text = &text[border(part)..border(part + 1)];
            let line = if part == 0 { 0 } else { part_text.find('\n').map_or(0, |newline| newline + 1) };
            let Some(sequence) = self.first(part_text[line..].trim_start())? else { return Ok(None) };
            ids.extend(sequence);
        }
        Ok(Some(ids))
    }

    /// First sequence of `text`; `None` where it is too short.
    fn first(&self, text: &str) -> Result<Option<Vec<u32>>, DataError> {
        let mut bytes = BYTES_FOR_TOKEN * self.length;
        loop {
            let end = text.floor_char_boundary(bytes);
            let mut ids = self.tokenizer.encode_start(&text[..end])?;
            // The last token may be a piece of a longer one that was cut.
            if ids.len() > self.length || (ids.len() == self.length && end == text.len()) {
                ids.truncate(self.length);
                return Ok(Some(ids));
            }
            if end == text.len() {
                return Ok(None);
            }
            bytes *= 2;
        }
    }

    /// Sequences side by side, from the beginning.
    fn consecutive(&self, text: &str, path: &Path) -> Result<Vec<u32>, DataError> {
        let bos = self.tokenizer.bos_token();
        let own = self.length - usize::from(bos.is_some());
        let ids = self.tokenizer.encode(text)?;
        if ids.len() < self.count * own {
            return Err(DataError::CalibrationTooShort {
                path: path.to_owned(),
                found: ids.len(),
                expected: self.count * own,
                sequences: self.count,
                sequence_length: self.length,
            });
        }
        let rows = ids.chunks_exact(own).take(self.count);
        Ok(rows.flat_map(|row| bos.into_iter().chain(row.iter().copied())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::tiny;

    fn read(text: &str, max_length: usize, tokens: usize) -> Result<CalibrationText, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs_err::write(&path, text).unwrap();
        CalibrationText::read(&path, &tiny(), max_length, tokens)
    }

    #[test]
    fn sequences_are_spread_over_the_text_and_each_begins_with_bos_and_a_line() {
        let line = |row: usize| format!("row {row} and a fox that jumps over the lazy dog\n");
        let text: String = (0..400).map(line).collect();
        let found = read(&text, 16, 64).unwrap();
        assert_eq!((found.sequence_length, found.train.len(), found.heldout.len()), (16, 64, 16));
        let rows: Vec<&[u32]> = found.train.chunks(16).chain(found.heldout.chunks(16)).collect();
        let mut numbers = Vec::new();
        for row in &rows {
            assert_eq!(Some(row[0]), tiny().bos_token());
            let words = tiny().decode(&row[1..], false).unwrap();
            let number = words.strip_prefix("row ").and_then(|rest| rest.split(' ').next()).unwrap();
            numbers.push(number.parse::<usize>().unwrap());
        }
        assert!(numbers.windows(2).all(|pair| pair[1] > pair[0] + 60), "{numbers:?}");
    }

    #[test]
    fn a_short_text_gives_its_sequences_side_by_side_or_is_refused() {
        let text = "a row of words and no end of them ".repeat(12);
        let num_tokens = tiny().encode(&text).unwrap().len();
        // Five sequences of which four are fitted to; one line only, so each part but the first has
        // none.
        let length = num_tokens / 5 + 1;
        let found = read(&text, length, 4 * length).unwrap();
        assert_eq!(found.train[1..length], tiny().encode(&text).unwrap()[..length - 1]);
        let error = read(&text, 2 * length, 8 * length).unwrap_err();
        assert!(matches!(error, DataError::CalibrationTooShort { sequences: 5, .. }), "{error}");
    }
}
