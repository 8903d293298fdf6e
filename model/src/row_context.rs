//! Rows of a forward pass: positions and attention layout, shared by every depth.

use crate::{
    kernels::{self, Layout, RowSet},
    rope::RopeAngles,
};
use burn::tensor::Tensor;

/// Positions of the rows of a forward pass, and the keys that each attends to.
#[derive(Debug)]
pub struct RowContext {
    pub(crate) layout: Layout,
    /// Number of times that the positions of `angles` repeat over the rows.
    pub(crate) batch: usize,
    /// One per rotary embedding of the model.
    pub(crate) angles: Vec<RopeAngles>,
}

impl RowContext {
    pub(crate) fn num_rows(&self) -> usize {
        self.layout.num_rows()
    }

    /// Context of the `selected` rows: their original positions, with the attention `layout`.
    pub(crate) fn only(&self, selected: &RowSet, layout: Layout) -> Self {
        let angles = self.angles.iter().map(|RopeAngles { cos, sin }| {
            let [repeat, _] = cos.dims();
            let at = selected.modulo(repeat);
            let take = |x: &Tensor<2>| kernels::gather(x.clone(), &at);
            RopeAngles { cos: take(cos), sin: take(sin) }
        });
        Self { layout, batch: 1, angles: angles.collect() }
    }
}
