//! Scores of a start on text that it was not fitted to: NLL of the next token and KL to the
//! source.

use super::{calibration::Calibration, context::Context, overlay::Overlay, refit::tied_layer};
use crate::{
    ConvertError, Phase, Progress,
    factorize::{Draw, factorize},
    plan::ConversionPlan,
    tied_group::mean,
};
use rayon::prelude::*;
use retie_checkpoint::{LayerRun, SafetensorsFile, SafetensorsFolder, TensorSource, narrow, widen};
use retie_config::{Depth, DepthAssignment, Projection, TensorPart, TensorRole};
use serde::{Deserialize, Serialize};

/// Held-out scores of a start, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// Negative log-likelihood of the next token.
    pub nll: f64,
    /// `KL(source ‖ this)` of the next token's distribution.
    pub kl: f64,
}

/// Hidden states of the source on the held-out tokens. They do not depend on the conversion.
pub(crate) struct SourceStates {
    /// Hidden states after the last layer, of the rows that have a next token.
    hidden: Vec<f32>,
    targets: Vec<u32>,
}

impl SourceStates {
    /// Runs the source; any plan for it will do.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn from_source(
        source: &dyn TensorSource,
        plan: &ConversionPlan,
        calibration: &Calibration<'_>,
    ) -> Result<Self, ConvertError> {
        let context = Context::new(source, plan, calibration, 0);
        let targets =
            calibration.heldout.chunks(calibration.sequence_length).flat_map(|row| row[1..].to_vec()).collect();
        let before = context.embed(&calibration.heldout)?;
        let after = context.source_hidden(before, 0, plan.stack.num_source_layers())?;
        Ok(Self { hidden: predicting(&context, &after), targets })
    }

    /// NLL of the source.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn nll(&self, source: &dyn TensorSource, calibration: &Calibration<'_>) -> Result<f64, ConvertError> {
        Ok(calibration.model.compare(source, [&self.hidden, &self.hidden], &self.targets)?.source_nll)
    }

    /// Scores of the start of `plan` without calibration, with plain LoRA of its ranks. It is not
    /// written anywhere.
    ///
    /// # Errors
    /// When the source cannot be read, or a decomposition does not converge.
    pub fn plain(
        &self,
        source: &dyn TensorSource,
        plan: &ConversionPlan,
        calibration: &Calibration<'_>,
        seed: u64,
    ) -> Result<Effect, ConvertError> {
        let context = Context::new(source, plan, calibration, seed);
        Effects::new(&context, self).plain(&mut |_| {})
    }

    /// Scores of a written folder.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn written(
        &self,
        source: &dyn TensorSource,
        plan: &ConversionPlan,
        calibration: &Calibration<'_>,
        folder: &SafetensorsFolder,
    ) -> Result<Effect, ConvertError> {
        let context = Context::new(source, plan, calibration, 0);
        Effects::new(&context, self).written(folder)
    }
}

/// The rows that have a next token: not the last one of a sequence.
fn predicting(context: &Context<'_>, hidden: &[f32]) -> Vec<f32> {
    let (width, length) = (context.plan.config.hidden_size, context.calibration.sequence_length);
    hidden.chunks(length * width).flat_map(|rows| &rows[..(length - 1) * width]).copied().collect()
}

/// Scores on the held-out tokens.
pub(super) struct Effects<'c, 'a> {
    context: &'c Context<'a>,
    source: &'c SourceStates,
}

/// Where the weights of a depth are.
enum Weights<'a> {
    Disk(LayerRun<'a>),
    Memory(Overlay),
}

impl<'c, 'a> Effects<'c, 'a> {
    pub fn new(context: &'c Context<'a>, source: &'c SourceStates) -> Self {
        Self { context, source }
    }

    /// Scores of what chooses or means layers, with plain LoRA: of a calibrated plan, what
    /// `average` would start from.
    pub fn plain(&self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Effect, ConvertError> {
        let total = self.context.plan.map().num_depths();
        let hidden = self.walk(&mut |step| {
            let name = format!("model.depths.{}", step.depth);
            progress(Progress { phase: Phase::Measure, done: step.depth.0 + 1, total, tensor: &name });
            self.plain_layer(step)
        })?;
        self.compare(&hidden)
    }

    /// Scores of a written folder.
    pub fn written(&self, folder: &SafetensorsFolder) -> Result<Effect, ConvertError> {
        let hidden = self.walk(&mut |step| {
            let kind = Depth(self.context.plan.source_layer(step.depth).0);
            Ok(Weights::Disk(LayerRun {
                tensors: folder,
                layer: step.layer,
                depth: step.depth,
                kind,
                from: None,
                until: None,
            }))
        })?;
        self.compare(&hidden)
    }

    /// Scores of what was fitted, before it is written.
    pub fn fitted(&self, weights: &SafetensorsFile, factors: Option<&SafetensorsFile>) -> Result<Effect, ConvertError> {
        let (context, map) = (self.context, self.context.plan.map());
        let hidden = self.walk(&mut |step| {
            if !map.is_shared(step.layer) {
                return Ok(Weights::Disk(context.source_run(context.plan.source_layer(step.depth), None)));
            }
            let mut layer = tied_layer(context, weights, step)?;
            for projection in context.all_projections() {
                let planned =
                    context.planned(step.layer, projection).and_then(|planned| planned.factors_at(step.depth));
                let Some((file, planned)) = factors.zip(planned) else { continue };
                let (a, b) = (TensorRole::LoraA(projection), TensorRole::LoraB(projection));
                for (role, (name, info)) in [(a, &planned.a), (b, &planned.b)] {
                    layer.set_own(role, &info.shape, file.read_f32(name)?);
                }
            }
            Ok(Weights::Memory(layer))
        })?;
        self.compare(&hidden)
    }

    fn walk<'w>(
        &self,
        weights: &mut dyn FnMut(DepthAssignment) -> Result<Weights<'w>, ConvertError>,
    ) -> Result<Vec<f32>, ConvertError> {
        let mut hidden = self.context.embed(&self.context.calibration.heldout)?;
        for step in self.context.plan.map().depths() {
            hidden = match weights(*step)? {
                Weights::Disk(run) => self.context.run(run, &hidden, &mut |_| {})?,
                Weights::Memory(layer) => self.context.run(layer.run(None), &hidden, &mut |_| {})?,
            };
        }
        Ok(predicting(self.context, &hidden))
    }

    fn compare(&self, hidden: &[f32]) -> Result<Effect, ConvertError> {
        let model = self.context.calibration.model;
        let found = model.compare(self.context.source, [&self.source.hidden, hidden], &self.source.targets)?;
        Ok(Effect { nll: found.nll, kl: found.kl })
    }

    fn plain_layer(&self, step: DepthAssignment) -> Result<Weights<'a>, ConvertError> {
        let context = self.context;
        if !context.plan.map().is_shared(step.layer) && !context.has_replaced(step.layer) {
            return Ok(Weights::Disk(context.source_run(context.plan.source_layer(step.depth), None)));
        }
        let mut layer = context.tied_vectors(step)?;
        let one = |projection: Projection| {
            let Some(planned) = context.planned(step.layer, projection) else { return Ok(None) };
            let dtype = planned.info.dtype;
            let shared = widen(&narrow(&mean(context.source, &planned.sources)?, dtype), dtype);
            let Some(f) = planned.factors_at(step.depth) else {
                return Ok(Some((projection, shared, None)));
            };
            let own = context.source.read_f32(&f.source)?;
            let residual = match f.replaces {
                true => own,
                false => own.iter().zip(&shared).map(|(own, shared)| own - shared).collect(),
            };
            let factors = factorize(&residual, f.shape, f.rank, Draw { seed: context.seed, stream: f.stream })?;
            Ok::<_, ConvertError>(Some((projection, shared, Some((f, factors)))))
        };
        let all: Vec<_> = context.all_projections().into_par_iter().map(one).collect::<Result<_, _>>()?;
        for (projection, shared, factors) in all.into_iter().flatten() {
            let shape = context.shape(projection);
            layer.set(TensorRole::Projection(projection), TensorPart::Weight, &shape, shared);
            if let Some((planned, factors)) = factors {
                super::refit::set_factors(&mut layer, planned, factors);
            }
        }
        if let Some(gate) = context.plan.gate(step.depth) {
            layer.set_gates(context.plan.config.hidden_size, gate);
        }
        Ok(Weights::Memory(layer))
    }
}
