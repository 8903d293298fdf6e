//! Passes over whole sequences without gradient, of shapes that come again: those of a teacher.

use super::{inputs::Inputs, memory_for, warn};
use crate::{
    CausalLm,
    forward::Forward,
    kernels::{Captured, FixedMemory, Grid, Layout, capture},
    row_context::RowContext,
};
use burn::tensor::Tensor;
use std::sync::Arc;

/// Forward passes of a model whose weights do not change.
#[derive(Debug)]
pub struct CapturedForward {
    model: CausalLm,
    memory: &'static dyn FixedMemory,
    /// Shape of the last pass that was not a replay.
    last: Option<Shape>,
    recorded: Option<Recorded>,
    /// True once the device has refused.
    is_refused: bool,
}

/// Hidden states of a pass, `[M, D]` each.
#[derive(Clone, Debug)]
pub struct States {
    /// After each of the asked numbers of depths.
    pub after: Vec<Tensor<2>>,
    /// After the final norm, if asked for.
    pub last: Option<Tensor<2>>,
}

impl States {
    /// Runs `forward` to each number of depths in `ends`, ascending, and to the final norm if
    /// `with_last`.
    #[must_use]
    pub fn of(mut forward: Forward<'_>, ends: &[usize], with_last: bool) -> Self {
        let after = ends.iter().map(|end| {
            forward.advance_to(*end);
            forward.hidden().clone()
        });
        let after = after.collect();
        Self { after, last: with_last.then(|| forward.finish().0) }
    }
}

/// What a recording depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    grid: Grid,
    /// Whether sequences have several documents.
    is_packed: bool,
    ends: Vec<usize>,
    with_last: bool,
}

/// A recorded pass.
#[derive(Debug)]
struct Recorded {
    shape: Shape,
    inputs: Inputs,
    pass: Captured<States>,
}

impl CapturedForward {
    /// Passes of `model`; `None` if they are not captured: the device or this process captures
    /// nothing, or the model has a router or mechanisms of a step.
    #[must_use]
    pub fn new(model: &CausalLm) -> Option<Self> {
        let memory = memory_for(model)?;
        Some(Self { model: model.clone(), memory, last: None, recorded: None, is_refused: false })
    }

    /// States of the token ids `ids [M]`, the sequences of `layout`, after each number of depths in
    /// `ends`, ascending, and after the final norm if `with_last`. They stand until the next pass.
    ///
    /// `None`, and nothing is done, where sequences have unequal lengths, or other shapes than the
    /// passes before: a shape is recorded when it comes for the second time in a row.
    ///
    /// # Panics
    /// When there is not an id for each row.
    pub fn run(&mut self, ids: &[u32], layout: &Layout, ends: &[usize], with_last: bool) -> Option<States> {
        let packed = layout.packed_rows();
        let grid = layout.grid().or(packed.map(|packed| packed.grid))?;
        let is_whole = layout.own_keys().is_none() && grid.tokens == grid.capacity;
        if self.is_refused || !is_whole {
            return None;
        }
        let shape = Shape { grid, is_packed: packed.is_some(), ends: ends.to_vec(), with_last };
        let (_, positions) = layout.positions();
        if self.recorded.as_ref().is_none_or(|recorded| recorded.shape != shape) {
            if self.last.replace(shape.clone()).is_none_or(|last| last != shape) {
                return None;
            }
            // The memory of the last recording is free for this one.
            self.recorded = None;
            let inputs = Inputs::new(&self.model, self.memory, ids.len(), positions.clone());
            set(&inputs, ids, layout);
            let pass = capture(&self.model.device(), || states(&self.model, &inputs, layout, &shape));
            let pass = pass.inspect_err(|error| warn("the teacher", error)).ok();
            self.recorded = pass.map(|pass| Recorded { shape, inputs, pass });
        }
        let replayed = self.recorded.as_mut().map(|Recorded { inputs, pass, .. }| {
            set(inputs, ids, layout);
            inputs.set_positions(positions);
            pass.replay()
        });
        let states = replayed.and_then(|states| states.inspect_err(|error| warn("the teacher", error)).ok().cloned());
        if states.is_none() {
            (self.recorded, self.is_refused) = (None, true);
        }
        states
    }

    /// Number of kernels of a pass that is recorded.
    #[must_use]
    pub fn num_kernels(&self) -> Option<usize> {
        self.recorded.as_ref().map(|recorded| recorded.pass.num_kernels())
    }
}

fn set(inputs: &Inputs, ids: &[u32], layout: &Layout) {
    inputs.set_ids(ids);
    if let Some(packed) = layout.packed_rows() {
        inputs.set_keys(packed.first_keys());
    }
}

/// The pass over the rows of `inputs`, which have the layout of `layout` or one of the same shape.
fn states(model: &CausalLm, inputs: &Inputs, layout: &Layout, shape: &Shape) -> States {
    let (batch, _) = layout.positions();
    let layout = layout.clone().with_first_keys(inputs.keys.clone());
    let rows = RowContext { layout, batch, angles: inputs.angles.clone() };
    let hidden = model.embed(inputs.ids.clone());
    States::of(model.forward_at(Arc::new(rows), hidden, 0), &shape.ends, shape.with_last)
}
