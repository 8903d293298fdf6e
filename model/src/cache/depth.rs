//! Keys and values of one depth during a forward pass.

use super::Buffers;
use crate::kernels::{RowCopy, RowSet, write_keys_values, write_keys_values_at, write_rows};
use burn::tensor::Tensor;
use std::sync::Arc;

/// Buffers of one depth during a forward pass, and the places that the new rows are written to.
#[derive(Debug)]
pub struct DepthCache<'a> {
    pub(super) buffers: &'a mut Buffers,
    pub(super) writes: Writes,
    pub(super) capacity: usize,
    pub(super) state: &'a mut Option<Tensor<2>>,
}

/// Where the new rows of a forward pass go.
#[derive(Clone, Debug)]
pub(super) enum Writes {
    Runs(Arc<[RowCopy]>),
    /// Row `m` to a row that the device alone has.
    Rows(RowSet),
}

impl DepthCache<'_> {
    /// Writes `k`, `v` `[M, K·H]` into the buffers and returns the whole buffers.
    pub(crate) fn append(mut self, new: [Tensor<2>; 2]) -> [Tensor<2>; 2] {
        match self.writes.clone() {
            Writes::Runs(copies) => self.write(new, &copies),
            Writes::Rows(rows) => self.change(|buffers| write_keys_values_at(buffers, new, &rows)),
        }
    }

    /// Maximum number of tokens in a slot.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Keys and values in the buffers, `[rows, K·H]` each.
    pub(crate) fn read(&self) -> [Tensor<2>; 2] {
        match &*self.buffers {
            Some(buffers) => buffers.clone(),
            None => unreachable!("buffers are put back after every use"),
        }
    }

    /// State of the depth's convolution.
    pub(crate) fn state(&self) -> Option<Tensor<2>> {
        self.state.clone()
    }

    /// Copies rows `[M, S]` into the state.
    pub(crate) fn write_state(&mut self, rows: Tensor<2>, copies: &Arc<[RowCopy]>) {
        *self.state = self.state.take().map(|state| write_rows(state, rows, copies));
    }

    /// Copies rows of keys and values, `[M, K·H]` each, into the buffers and returns the whole
    /// buffers.
    pub(crate) fn write(&mut self, rows: [Tensor<2>; 2], copies: &Arc<[RowCopy]>) -> [Tensor<2>; 2] {
        self.change(|buffers| write_keys_values(buffers, rows, copies))
    }

    fn change(&mut self, write: impl FnOnce([Tensor<2>; 2]) -> [Tensor<2>; 2]) -> [Tensor<2>; 2] {
        // Taken out, so that the buffers have one owner and are written in place.
        let Some(buffers) = self.buffers.take() else {
            unreachable!("buffers are put back after every use");
        };
        let buffers = write(buffers);
        *self.buffers = Some(buffers.clone());
        buffers
    }
}
