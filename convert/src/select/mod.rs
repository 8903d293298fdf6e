//! Selection of source layers that are kept whole, under a budget of all weights.
//!
//! A residual network tolerates missing layers far better than wrong ones: a tie that averages
//! damages every layer of its group, a removal leaves each kept layer intact. A selection therefore
//!
//! 1. removes layers one after another by the KL to the source on a text ([`removal`]), and
//! 2. for a recursive model chooses a block of kept layers that runs again, once for each further
//!    recursion, behind residual gates ([`loops`]).
//!
//! With gates of 0 the recursive model computes what the model with removed layers computes, bit
//! for bit.
//!
//! # Memory
//! Hidden states of [`trial::TOKENS`] tokens, half as many more where repeated text counts, before
//! each kept layer, and one layer of the source.

mod loops;
mod removal;
mod report;
mod trial;

pub use report::{LoopCandidate, RemovedLayer, SelectionReport};

use crate::{
    Calibration, ConvertError, ParameterCounts, Progress, SourceModel, plan::ConversionPlan, search::element_bytes,
};
use loops::Loop;
use removal::remove_layers;
use retie_config::{Conversion, Init, SelectionSpace, Stack};
use trial::Trial;

/// The selection of `space` that is closest to the source on the calibration's tokens, and how it
/// was found. The same input chooses the same.
///
/// # Errors
/// When the budget allows all layers or not even one, the source cannot be read, or the selection
/// does not fit it.
pub fn select(
    source: SourceModel<'_>,
    space: &SelectionSpace,
    calibration: &Calibration<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(Conversion, SelectionReport), ConvertError> {
    let budget = Allowance::new(source, space)?;
    let trial = Trial::start(source, calibration, space.select_by)?;
    let removal = remove_layers(&trial, budget.num_kept, progress)?;
    let loops = match budget.block {
        0 => Vec::new(),
        block => loops::measure(&trial, &removal.kept, (block, space.num_recursions), space.gate, progress)?,
    };
    let chosen = loops.first();
    let layers = removal.kept.layers();
    let source_layers = chosen.map_or_else(|| layers.to_vec(), |chosen| chosen.unroll(layers, space.num_recursions));
    let conversion = conversion(space, source_layers, chosen.map_or(0.0, |chosen| chosen.gate))?;
    let report = SelectionReport {
        budget: space.budget.to_string(),
        allowed_parameters: budget.allowed,
        tokens: trial.num_scored(),
        select_by: space.select_by,
        kept: layers.to_vec(),
        removed: removal.removed,
        kl: removal.kl,
        loops: loops.iter().map(|found| found.report(layers)).collect(),
    };
    Ok((conversion, report))
}

/// What a budget allows.
struct Allowance {
    /// Parameters.
    allowed: usize,
    /// Layers that are kept.
    num_kept: usize,
    /// Most layers of a looped block: as many as give back the depth that was removed and as the
    /// budget allows, 0 for none.
    block: usize,
}

impl Allowance {
    fn new(source: SourceModel<'_>, space: &SelectionSpace) -> Result<Self, ConvertError> {
        let num_layers = source.config.num_hidden_layers;
        let all = ParameterCounts::from_config(source.config).total();
        let allowed = space.budget.parameters(all, element_bytes(source, space.target.dtype));
        let bad = |smallest: usize| ConvertError::SelectionBudget {
            budget: space.budget.to_string(),
            allowed,
            all,
            smallest,
        };
        let mut smallest = all;
        for num_kept in (1..num_layers).rev() {
            let further = space.num_recursions - 1;
            let longest = (num_layers - num_kept).checked_div(further).map_or(0, |block| block.clamp(1, num_kept));
            // A kept layer is worth more than a longer loop.
            for block in (longest.min(1)..=longest).rev() {
                let found = Loop { first: num_kept - block, length: block, gate: 0.0, kl: 0.0 };
                let kept: Vec<usize> = (0..num_kept).collect();
                let layers = if block == 0 { kept } else { found.unroll(&kept, space.num_recursions) };
                let plan = ConversionPlan::new(source, &conversion(space, layers, 0.0)?)?;
                smallest = ParameterCounts::from_config(&plan.config).total();
                if smallest <= allowed {
                    return if allowed >= all { Err(bad(smallest)) } else { Ok(Self { allowed, num_kept, block }) };
                }
            }
        }
        Err(bad(smallest))
    }
}

/// The conversion that a choice of source layers stands for.
fn conversion(space: &SelectionSpace, source_layers: Vec<usize>, gate: f32) -> Result<Conversion, ConvertError> {
    let stack = Stack::chosen(source_layers.iter().max().map_or(0, |last| last + 1), &source_layers)?;
    let (recursions, pattern) = (stack.map().num_recursions(), stack.map().pattern().clone());
    let mut conversion = Conversion::new(recursions, pattern, Init::Select, space.target.clone());
    conversion.source_layers = Some(source_layers);
    conversion.compensation = space.compensation;
    conversion.gate = gate;
    conversion.lora = space.lora.clone();
    Ok(conversion)
}
