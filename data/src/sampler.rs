//! Batches of rows in a seeded order, epoch after epoch.
//!
//! Each epoch takes every row once, in an order that follows from the seed and the epoch number alone. A batch that reaches
//! the end of an epoch goes on into the next: no row is ever left out. The [`Cursor`] is the whole state.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dataset::TokenDataset;
use crate::error::DataError;
use crate::pack::Batch;
use crate::shuffle::permutation;

/// Which row comes next; saved with a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Passes over the data that are complete.
    pub epoch: u64,
    /// Rows of this epoch that were given, always fewer than there are.
    pub row: u64,
}

/// Gives batches of a dataset without end.
#[derive(Debug, Clone)]
pub struct Sampler {
    dataset: Arc<TokenDataset>,
    seed: u64,
    epoch: u64,
    /// Rows given of `order`.
    row: usize,
    order: Vec<usize>,
}

impl Sampler {
    /// Goes on from `cursor`; `Cursor::default()` is the start. With the same data, seed and cursor the same batches follow.
    ///
    /// # Errors
    /// The cursor is past the data.
    pub fn new(dataset: Arc<TokenDataset>, seed: u64, cursor: Cursor) -> Result<Self, DataError> {
        let num_rows = dataset.num_rows();
        let row = usize::try_from(cursor.row).ok().filter(|&row| row < num_rows);
        let row = row.ok_or(DataError::CursorOutOfRange { row: cursor.row, num_rows })?;
        let order = permutation(num_rows, seed, cursor.epoch);
        Ok(Self { dataset, seed, epoch: cursor.epoch, row, order })
    }

    /// The next `batch_size` rows.
    pub fn next_batch(&mut self, batch_size: usize) -> Batch {
        let rows: Vec<usize> = (0..batch_size).map(|_| self.next_row()).collect();
        self.dataset.batch(&rows)
    }

    /// What to save to go on after the last batch given.
    pub fn cursor(&self) -> Cursor {
        Cursor { epoch: self.epoch, row: self.row as u64 }
    }

    /// The data.
    pub fn dataset(&self) -> &TokenDataset {
        &self.dataset
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

    /// Token `i` is `i`, so that a row shows where it lies.
    fn sampler(num_rows: usize, sequence_length: usize, seed: u64, cursor: Cursor) -> Result<Sampler, DataError> {
        let tokens: Vec<u32> = (0..=(num_rows * sequence_length) as u32).collect();
        Sampler::new(Arc::new(TokenDataset::from_tokens(&tokens, sequence_length)?), seed, cursor)
    }

    proptest! {
        #[test]
        fn batches_after_a_resume_are_those_of_an_unbroken_run(
            num_rows in 1_usize..20,
            sequence_length in 1_usize..5,
            seed: u64,
            before in prop::collection::vec(0_usize..30, 0..6),
            after in prop::collection::vec(1_usize..30, 1..6),
        ) {
            let mut unbroken = sampler(num_rows, sequence_length, seed, Cursor::default()).unwrap();
            for &batch_size in &before {
                unbroken.next_batch(batch_size);
            }
            let saved = serde_json::to_string(&unbroken.cursor()).unwrap();
            let cursor: Cursor = serde_json::from_str(&saved).unwrap();
            let given = cursor.epoch * num_rows as u64 + cursor.row;
            prop_assert_eq!(given, before.iter().sum::<usize>() as u64);
            let mut resumed = sampler(num_rows, sequence_length, seed, cursor).unwrap();
            for &batch_size in &after {
                prop_assert_eq!(resumed.next_batch(batch_size), unbroken.next_batch(batch_size));
                prop_assert_eq!(resumed.cursor(), unbroken.cursor());
            }
        }

        #[test]
        fn the_rows_do_not_depend_on_the_batch_size(num_rows in 1_usize..20, batch_size in 1_usize..9, seed: u64) {
            let mut one_by_one = sampler(num_rows, 2, seed, Cursor::default()).unwrap();
            let mut batched = sampler(num_rows, 2, seed, Cursor::default()).unwrap();
            for _ in 0..10 {
                let batch = batched.next_batch(batch_size);
                let rows: Vec<u32> = (0..batch_size).flat_map(|_| one_by_one.next_batch(1).inputs).collect();
                prop_assert_eq!(batch.inputs, rows);
            }
        }
    }

    #[test]
    fn each_epoch_takes_every_row_once_and_batches_run_on_into_the_next() {
        let mut sampler = sampler(5, 2, 9, Cursor::default()).unwrap();
        let firsts: Vec<u32> = (0..5).flat_map(|_| sampler.next_batch(3).inputs.into_iter().step_by(2)).collect();
        assert_eq!(sampler.cursor(), Cursor { epoch: 3, row: 0 });
        for epoch in firsts.chunks(5) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 2, 4, 6, 8]);
        }
        assert_ne!(firsts[..5], firsts[5..10], "epochs have orders of their own");
    }

    #[test]
    fn targets_are_the_inputs_shifted_by_one() {
        let batch = sampler(7, 3, 1, Cursor::default()).unwrap().next_batch(4);
        assert_eq!((batch.rows, batch.sequence_length, batch.inputs.len()), (4, 3, 12));
        assert!(batch.inputs.iter().zip(&batch.targets).all(|(input, target)| input + 1 == *target));
    }

    #[test]
    fn a_cursor_past_the_data_is_an_error() {
        let error = sampler(5, 2, 9, Cursor { epoch: 0, row: 5 }).unwrap_err();
        assert!(error.to_string().starts_with("the cursor is at row 5, expected a row below 5\nhint: "), "{error}");
    }
}
