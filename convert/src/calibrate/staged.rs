//! One pass over a layer whose linears are fitted on the way: it stops where linears read, so that
//! they can be fitted to what they read, and goes on with what was fitted.
//!
//! What was reached is kept, `[M, in]` and the residual stream `[M, D]`, so that nothing in front
//! of a point runs twice.

use super::{context::Context, overlay::Overlay};
use crate::ConvertError;
use retie_checkpoint::{Activations, LayerRun, ProbePoint};
use std::borrow::Cow;

pub(super) struct StagedRun<'a> {
    /// The residual stream at `reached`, or before the layer.
    residual: Cow<'a, [f32]>,
    /// The last point, and what its linears read.
    reached: Option<(ProbePoint, Vec<f32>)>,
}

impl<'a> StagedRun<'a> {
    /// From the hidden states before the layer.
    pub fn new(hidden: &'a [f32]) -> Self {
        Self { residual: Cow::Borrowed(hidden), reached: None }
    }

    /// Runs the layer up to a point behind the last one, and shows what its linears read.
    ///
    /// # Errors
    /// When a weight cannot be read.
    pub fn advance(
        &mut self,
        context: &Context<'_>,
        layer: &Overlay,
        point: ProbePoint,
        see: &mut dyn FnMut(Activations<'_>),
    ) -> Result<(), ConvertError> {
        let mut inputs = Vec::new();
        let residual = context.run(self.run(layer, Some(point)), &self.residual, &mut |seen| {
            if seen.point == point {
                inputs.extend_from_slice(seen.inputs);
                see(seen);
            }
        })?;
        *self = Self { residual: Cow::Owned(residual), reached: Some((point, inputs)) };
        Ok(())
    }

    /// Runs the rest; the hidden states behind the layer.
    ///
    /// # Errors
    /// When a weight cannot be read.
    pub fn finish(self, context: &Context<'_>, layer: &Overlay) -> Result<Vec<f32>, ConvertError> {
        context.run(self.run(layer, None), &self.residual, &mut |_| {})
    }

    fn run<'r>(&'r self, layer: &'r Overlay, until: Option<ProbePoint>) -> LayerRun<'r> {
        let from = self.reached.as_ref().map(|(point, read)| (*point, read.as_slice()));
        LayerRun { from, ..layer.run(until) }
    }
}
