//! The loop of an engine that runs a recursive stack part by part: hidden states of the tokens
//! on their way, and the passes over them.

use crate::{
    pipeline::{Pipeline, Rows, Unit},
    scheduler::{ExitTrace, Scheduler},
};
use burn::tensor::{Int, Tensor};
use retie_model::{CausalLm, KvCache, LoopParts, Slot, Span, kernels};

/// State of the loop between steps.
#[derive(Debug)]
pub(crate) struct Looped {
    parts: LoopParts,
    /// Forced exits; without them no token exits.
    pub trace: Option<ExitTrace>,
    pub pipeline: Pipeline,
    /// Hidden states of the rows in the loop, and of those that have left it; `None` for no rows.
    in_loop: Option<Tensor<2>>,
    left: Option<Tensor<2>>,
}

/// Tokens that have been read to the end of the stack.
pub(crate) struct Finished {
    pub units: Vec<Unit>,
    /// Hidden states after the final norm, `[M, D]`.
    pub hidden: Tensor<2>,
}

impl Looped {
    pub fn new(parts: LoopParts, scheduler: Scheduler, trace: Option<ExitTrace>) -> Self {
        let pipeline = Pipeline::new(scheduler, parts.recursions.len());
        Self { parts, trace, pipeline, in_loop: None, left: None }
    }

    /// Runs the depths before the loop over tokens that start, `ids [M]`.
    pub fn start(&mut self, model: &CausalLm, ids: Tensor<1, Int>, units: Vec<Unit>, cache: &mut KvCache) {
        let spans: Vec<Span> = units.iter().map(|unit| unit.span).collect();
        let x = model.run_part(model.embed(ids), self.parts.before.clone(), &spans, cache);
        self.in_loop = joined(Some(x), self.in_loop.take());
        self.pipeline.start(units);
    }

    /// Runs one pass over the shared block, in phase as many as it takes until nobody is in the
    /// loop; then the depths after it for those who have left it and are `wanted`. `None` if there
    /// are none.
    pub fn advance(
        &mut self,
        model: &CausalLm,
        cache: &mut KvCache,
        wanted: impl Fn(Slot) -> bool,
    ) -> Option<Finished> {
        loop {
            self.pass(model, cache);
            if !self.pipeline.waits() {
                break;
            }
        }
        let (units, Rows { stay, leave }) = self.pipeline.take(|unit| wanted(unit.span.slot));
        let left = self.left.take()?;
        self.left = chosen(&left, &stay);
        let x = chosen(&left, &leave)?;
        let spans: Vec<Span> = units.iter().map(|unit| unit.span).collect();
        let x = model.run_part(x, self.parts.after.clone(), &spans, cache);
        Some(Finished { units, hidden: model.norm(x) })
    }

    fn pass(&mut self, model: &CausalLm, cache: &mut KvCache) {
        let Some(x) = self.in_loop.take() else { return };
        let tokens = self.pipeline.pass();
        let x = model.run_block(x, &self.parts, &tokens, self.pipeline.exits(), cache);
        let Rows { stay, leave } = self.pipeline.passed();
        self.in_loop = chosen(&x, &stay);
        self.left = joined(self.left.take(), chosen(&x, &leave));
    }

    /// Drops the tokens of a sequence.
    pub fn drop_slot(&mut self, slot: Slot) {
        let [in_loop, left] = self.pipeline.drop_slot(slot);
        self.in_loop = self.in_loop.take().and_then(|x| chosen(&x, &in_loop));
        self.left = self.left.take().and_then(|x| chosen(&x, &left));
    }
}

/// The given rows of `x`, ascending; `None` for no rows.
fn chosen(x: &Tensor<2>, rows: &[usize]) -> Option<Tensor<2>> {
    let [num_rows, _] = x.dims();
    match rows.len() {
        0 => None,
        all if all == num_rows => Some(x.clone()),
        _ => Some(kernels::gather(x.clone(), &rows.into())),
    }
}

/// Rows of `first`, then those of `second`.
fn joined(first: Option<Tensor<2>>, second: Option<Tensor<2>>) -> Option<Tensor<2>> {
    match (first, second) {
        (Some(first), Some(second)) => Some(Tensor::cat(vec![first, second], 0)),
        (first, second) => first.or(second),
    }
}
