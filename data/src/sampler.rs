//! Batches of rows in a seeded order, epoch after epoch.
//!
//! Each epoch of a source takes every row of it once, in an order that follows from the seed, the
//! number of the source and that of the epoch alone. A batch that reaches the end of an epoch goes
//! on into the next: no row is ever left out. The [`Cursor`]s, one for each source, are the whole
//! state: what they have given says also which source is next (see [`crate::Mixture`]).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::mixture::Mixture;
use crate::pack::Batch;
use crate::shuffle::permutation;

/// Position in a source: the row that comes next; saved with a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Passes over the source that are complete.
    pub epoch: u64,
    /// Rows of this epoch that were given, always fewer than there are.
    pub row: u64,
}

/// Gives batches of a mixture without end.
#[derive(Debug, Clone)]
pub struct Sampler {
    data: Arc<Mixture>,
    streams: Vec<Stream>,
}

/// The rows of a source.
#[derive(Debug, Clone)]
struct Stream {
    seed: u64,
    epoch: u64,
    /// Rows given of `order`.
    row: usize,
    order: Vec<usize>,
}

impl Sampler {
    /// Goes on from `cursors`, one for each source; none is the start. With the same data, weights,
    /// seed and cursors the same batches follow.
    ///
    /// # Errors
    /// There are more or fewer cursors than sources, or one is past the data.
    pub fn new(data: Arc<Mixture>, seed: u64, cursors: &[Cursor]) -> Result<Self, DataError> {
        let expected = data.sources().len();
        if !cursors.is_empty() && cursors.len() != expected {
            return Err(DataError::OtherSources { found: cursors.len(), expected });
        }
        let cursors = cursors.iter().copied().chain(std::iter::repeat_with(Cursor::default));
        let streams = data.sources().zip(cursors).enumerate();
        let streams =
            streams.map(|(index, (source, cursor))| Stream::new(source.num_rows(), seed, index as u64, cursor));
        let streams = streams.collect::<Result<_, _>>()?;
        Ok(Self { data, streams })
    }

    /// The next `batch_size` rows.
    ///
    /// # Errors
    /// The disk fails.
    pub fn next_batch(&mut self, batch_size: usize) -> Result<Batch, DataError> {
        let rows: Vec<usize> = (0..batch_size).map(|_| self.next_row()).collect();
        self.data.batch(&rows)
    }

    /// Passes over the next `batch_size` rows without reading them.
    pub fn skip_batch(&mut self, batch_size: usize) {
        for _ in 0..batch_size {
            self.next_row();
        }
    }

    /// The positions after the last batch given, to be saved.
    pub fn cursors(&self) -> Vec<Cursor> {
        self.streams.iter().map(|stream| Cursor { epoch: stream.epoch, row: stream.row as u64 }).collect()
    }

    fn next_row(&mut self) -> usize {
        let given: Vec<u64> = self.streams.iter().map(Stream::given).collect();
        let source = self.data.next_source(&given);
        self.data.first_row(source) + self.streams[source].next_row()
    }
}

impl Stream {
    fn new(num_rows: usize, seed: u64, source: u64, cursor: Cursor) -> Result<Self, DataError> {
        let row = usize::try_from(cursor.row).ok().filter(|&row| row < num_rows);
        let row = row.ok_or(DataError::CursorOutOfRange { row: cursor.row, num_rows })?;
        // An odd factor: sources, of which the first has the seed itself, have different ones.
        let seed = seed.wrapping_add(source.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Ok(Self { seed, epoch: cursor.epoch, row, order: permutation(num_rows, seed, cursor.epoch) })
    }

    /// Rows given in all epochs.
    fn given(&self) -> u64 {
        self.epoch * self.order.len() as u64 + self.row as u64
    }

    fn next_row(&mut self) -> usize {
        let row = self.order[self.row];
        self.row += 1;
        if self.row == self.order.len() {
            self.row = 0;
            self.epoch += 1;
            self.order = permutation(self.order.len(), self.seed, self.epoch);
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dataset::TokenDataset;

    /// Token `i` is `i`, so that a row shows where it lies.
    fn dataset(num_rows: usize, sequence_length: usize) -> TokenDataset {
        let tokens: Vec<u32> = (0..=(num_rows * sequence_length) as u32).collect();
        TokenDataset::from_tokens(&tokens, sequence_length).unwrap()
    }

    fn sampler(num_rows: usize, sequence_length: usize, seed: u64) -> Sampler {
        Sampler::new(Arc::new(dataset(num_rows, sequence_length).into()), seed, &[]).unwrap()
    }

    proptest! {
        #[test]
        fn batches_after_a_resume_are_those_of_an_unbroken_run(
            sources in prop::collection::vec((1_usize..20, 0.1_f64..5.0), 1..4),
            sequence_length in 1_usize..5,
            seed: u64,
            before in prop::collection::vec(0_usize..30, 0..6),
            after in prop::collection::vec(1_usize..30, 1..6),
        ) {
            let with_weights = sources.iter().map(|(rows, weight)| (dataset(*rows, sequence_length), *weight));
            let data = Arc::new(Mixture::new(with_weights.collect()).unwrap());
            let mut unbroken = Sampler::new(data.clone(), seed, &[]).unwrap();
            for &batch_size in &before {
                unbroken.next_batch(batch_size).unwrap();
            }
            let saved = serde_json::to_string(&unbroken.cursors()).unwrap();
            let cursors: Vec<Cursor> = serde_json::from_str(&saved).unwrap();
            let given = cursors.iter().zip(&sources).map(|(cursor, (rows, _))| cursor.epoch * *rows as u64 + cursor.row);
            prop_assert_eq!(given.sum::<u64>(), before.iter().sum::<usize>() as u64);
            let mut resumed = Sampler::new(data, seed, &cursors).unwrap();
            for &batch_size in &after {
                prop_assert_eq!(resumed.next_batch(batch_size).unwrap(), unbroken.next_batch(batch_size).unwrap());
                prop_assert_eq!(resumed.cursors(), unbroken.cursors());
            }
        }

        #[test]
        fn the_rows_do_not_depend_on_the_batch_size(num_rows in 1_usize..20, batch_size in 1_usize..9, seed: u64) {
            let mut one_by_one = sampler(num_rows, 2, seed);
            let mut batched = sampler(num_rows, 2, seed);
            for _ in 0..10 {
                let batch = batched.next_batch(batch_size).unwrap();
                let rows: Vec<u32> = (0..batch_size).flat_map(|_| one_by_one.next_batch(1).unwrap().inputs).collect();
                prop_assert_eq!(batch.inputs, rows);
            }
        }
    }

    #[test]
    fn a_batch_that_is_passed_over_is_one_that_was_given() {
        let (mut given, mut passed) = (sampler(7, 2, 3), sampler(7, 2, 3));
        for _ in 0..5 {
            given.next_batch(3).unwrap();
            passed.skip_batch(3);
            assert_eq!(passed.next_batch(2).unwrap(), given.next_batch(2).unwrap());
            assert_eq!(passed.cursors(), given.cursors());
        }
    }

    #[test]
    fn each_epoch_takes_every_row_once_and_batches_run_on_into_the_next() {
        let mut sampler = sampler(5, 2, 9);
        let firsts: Vec<u32> =
            (0..5).flat_map(|_| sampler.next_batch(3).unwrap().inputs.into_iter().step_by(2)).collect();
        assert_eq!(sampler.cursors(), [Cursor { epoch: 3, row: 0 }]);
        for epoch in firsts.chunks(5) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 2, 4, 6, 8]);
        }
        assert_ne!(firsts[..5], firsts[5..10], "epochs have orders of their own");
    }

    #[test]
    fn sources_come_in_the_ratio_of_their_weights_each_in_an_order_of_its_own() {
        let mixture = Mixture::new(vec![(dataset(40, 1), 3.0), (dataset(40, 1), 1.0)]).unwrap();
        let mut sampler = Sampler::new(Arc::new(mixture), 7, &[]).unwrap();
        let rows = sampler.next_batch(160).unwrap().indices;
        for four in rows.chunks(4) {
            assert_eq!(four.iter().filter(|row| **row >= 40).count(), 1, "{four:?}");
        }
        let rows_of = |second: bool| rows.iter().filter(move |row| (**row >= 40) == second).map(|row| row % 40);
        let first_epoch: Vec<usize> = rows_of(false).take(40).collect();
        assert!(rows_of(true).ne(first_epoch.iter().copied()), "one order for both");
        assert_eq!(sampler.cursors(), [Cursor { epoch: 3, row: 0 }, Cursor { epoch: 1, row: 0 }]);
    }

    #[test]
    fn targets_are_the_inputs_shifted_by_one() {
        let batch = sampler(7, 3, 1).next_batch(4).unwrap();
        assert_eq!((batch.rows, batch.sequence_length, batch.inputs.len()), (4, 3, 12));
        assert!(batch.inputs.iter().zip(&batch.targets).all(|(input, target)| input + 1 == *target));
    }

    #[test]
    fn cursors_past_the_data_or_of_other_sources_are_errors() {
        let data = Arc::new(Mixture::from(dataset(5, 2)));
        let new = |cursors: &[Cursor]| Sampler::new(data.clone(), 9, cursors).unwrap_err().to_string();
        let error = new(&[Cursor { epoch: 0, row: 5 }]);
        assert!(error.starts_with("the cursor is at row 5, expected a row below 5\nhint: "), "{error}");
        let error = new(&[Cursor::default(); 2]);
        assert!(error.starts_with("there are cursors for 2 sources of text, expected 1\nhint: "), "{error}");
    }
}
