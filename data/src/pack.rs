//! Rows of one stream of tokens.
//!
//! The stream is every document's tokens, each document after a BOS token, if the tokenizer puts
//! one before a text, and followed by one end-of-text token, in the order of the files. A document
//! without text adds nothing. A row has `T = sequence_length` inputs and as many targets, the
//! inputs shifted by one:
//!
//! ```text
//! stream   t0 t1 t2 t3 t4 t5 t6 t7 t8 t9      T = 3
//! row 0    inputs t0 t1 t2   targets t1 t2 t3
//! row 1    inputs t3 t4 t5   targets t4 t5 t6
//! row 2    inputs t6 t7 t8   targets t7 t8 t9
//! ```
//!
//! So rows share only the boundary token, the last target of one and the first input of the next;
//! within the rows every token but the first is a target exactly once. `N` tokens make `(N - 1) /
//! T` rows; the `(N - 1) % T` tokens after the last row's are not used. Rows cut documents anywhere
//! and hold pieces of several; see [`Packing`] for what their tokens see, and for another way to
//! cut.

use std::ops::Range;

pub use retie_config::Packing;

/// Rows of token ids.
///
/// # Shapes
/// - `inputs`, `targets`: `[M]`, row after row; `M` is `B · T`, or less with [`Packing::BestFit`]
/// - `pieces`, `row_lengths`: their sums are `M`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Tokens that the model reads.
    pub inputs: Vec<u32>,
    /// The token that follows each input.
    pub targets: Vec<u32>,
    /// Whether each target is learnt; `None`: all are.
    pub learnt: Option<Vec<bool>>,
    /// Lengths of the runs of inputs that see one another: whole rows, or the pieces of documents
    /// in them.
    pub pieces: Vec<usize>,
    /// Indices of the rows in the dataset.
    pub indices: Vec<usize>,
    /// Inputs of each row.
    pub row_lengths: Vec<usize>,
    /// `B`.
    pub rows: usize,
    /// `T`.
    pub sequence_length: usize,
}

impl Batch {
    /// Targets that are learnt, and the indices of their inputs; `None`: all are.
    pub fn learnt_targets(&self) -> Option<(Vec<u32>, Vec<usize>)> {
        let learnt = self.learnt.as_ref()?;
        let chosen = self.targets.iter().enumerate().zip(learnt).filter(|(_, learnt)| **learnt);
        Some(chosen.map(|((index, target), _)| (*target, index)).unzip())
    }

    /// Number of targets that are learnt.
    pub fn num_learnt(&self) -> usize {
        self.learnt.as_ref().map_or(self.targets.len(), |learnt| learnt.iter().filter(|learnt| **learnt).count())
    }

    /// The batch of some of its rows, and the indices of their inputs, ascending.
    pub fn only(&self, is_wanted: impl Fn(usize) -> bool) -> (Self, Vec<usize>) {
        let (mut inputs, mut pieces) = (Vec::new(), self.pieces.iter().copied());
        let mut batch = Self {
            inputs: Vec::new(),
            targets: Vec::new(),
            learnt: None,
            pieces: Vec::new(),
            indices: Vec::new(),
            row_lengths: Vec::new(),
            rows: 0,
            sequence_length: self.sequence_length,
        };
        let mut start = 0;
        for (row, length) in self.row_lengths.iter().copied().enumerate() {
            let of_row = start..start + length;
            start = of_row.end;
            let mut left = length;
            while left > 0 {
                let Some(piece) = pieces.next() else { break };
                left = left.saturating_sub(piece);
                if is_wanted(row) {
                    batch.pieces.push(piece);
                }
            }
            if is_wanted(row) {
                batch.indices.push(self.indices[row]);
                batch.row_lengths.push(length);
                batch.rows += 1;
                inputs.extend(of_row);
            }
        }
        batch.inputs = inputs.iter().map(|index| self.inputs[*index]).collect();
        batch.targets = inputs.iter().map(|index| self.targets[*index]).collect();
        batch.learnt = self.learnt.as_ref().map(|learnt| inputs.iter().map(|index| learnt[*index]).collect());
        (batch, inputs)
    }

    /// The inputs of each row.
    pub fn row_inputs(&self) -> impl Iterator<Item = &[u32]> {
        let mut rest = self.inputs.as_slice();
        self.row_lengths.iter().map(move |length| rest.split_off(..*length).unwrap_or_default())
    }
}

/// How many whole rows `num_tokens` make.
pub fn num_rows(num_tokens: usize, sequence_length: usize) -> usize {
    num_tokens.saturating_sub(1).checked_div(sequence_length).unwrap_or(0)
}

/// Where the inputs of a row and the target of its last input lie: `T + 1` tokens.
pub fn row_range(row: usize, sequence_length: usize) -> Range<usize> {
    let start = row * sequence_length;
    start..start + sequence_length + 1
}

/// Lengths of the pieces of documents in a row of inputs. A token that `ends` a document is the
/// last of it.
pub fn pieces(inputs: &[u32], ends: impl Fn(u32) -> bool) -> Vec<usize> {
    inputs.split_inclusive(|token| ends(*token)).map(<[u32]>::len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_a_target_once_and_less_than_a_row_is_left() {
        for sequence_length in 1..6 {
            for num_tokens in 0..40 {
                let rows = num_rows(num_tokens, sequence_length);
                let targets: Vec<usize> = (0..rows).flat_map(|row| row_range(row, sequence_length).skip(1)).collect();
                let expected: Vec<usize> = (1..=rows * sequence_length).collect();
                assert_eq!(targets, expected);
                assert!(targets.last().is_none_or(|&last| last < num_tokens));
                assert!(num_tokens.saturating_sub(1 + targets.len()) < sequence_length);
            }
        }
        assert_eq!(num_rows(10, 0), 0);
    }
    #[test]
    fn a_piece_ends_with_its_end_of_text_token_or_with_the_row() {
        for (inputs, expected) in
            [(&[1, 2, 0, 3, 4][..], &[3, 2][..]), (&[0, 0, 5], &[1, 1, 1]), (&[1, 2, 0], &[3]), (&[7, 8], &[2])]
        {
            assert_eq!(pieces(inputs, |token| token == 0), expected, "{inputs:?}");
        }
    }

    #[test]
    fn some_rows_of_a_batch_are_a_batch_with_their_pieces() {
        let batch = Batch {
            inputs: (10..19).collect(),
            targets: (11..20).collect(),
            learnt: Some((0..9).map(|index| index % 2 == 0).collect()),
            pieces: vec![1, 3, 2, 3],
            indices: vec![7, 4, 9],
            row_lengths: vec![4, 2, 3],
            rows: 3,
            sequence_length: 4,
        };
        let (some, inputs) = batch.only(|row| row != 1);
        assert_eq!(inputs, [0, 1, 2, 3, 6, 7, 8]);
        assert_eq!(
            (some.rows, some.pieces, some.indices, some.row_lengths),
            (2, vec![1, 3, 3], vec![7, 9], vec![4, 3])
        );
        assert_eq!((some.inputs[4], some.targets[4]), (16, 17));
        assert_eq!(some.learnt.unwrap(), [true, false, true, false, true, false, true]);
        assert_eq!(batch.only(|_| true).0, batch);
        assert_eq!(batch.only(|_| false).0.rows, 0);
    }
}
