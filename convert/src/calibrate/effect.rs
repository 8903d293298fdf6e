//! What a start is worth, on text that it was not fitted to: NLL of the next token and KL to the source.

use super::{context::Context, layers::LayerRun, overlay::Overlay};
use crate::{
    ConvertError, Progress, Stage,
    factorize::{Draw, factorize},
    tied_group::mean,
};
use rayon::prelude::*;
use retie_checkpoint::{SafetensorsFolder, narrow, widen};
use retie_config::DepthPlan;
use serde::{Deserialize, Serialize};

/// Held-out scores of a start, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// Negative log-likelihood of the next token.
    pub nll: f64,
    /// `KL(source ‖ this)` of the next token's distribution.
    pub kl: f64,
}

/// Scores on the held-out tokens.
pub(super) struct Effects<'c, 'a> {
    context: &'c Context<'a>,
    /// Hidden states of the source after the last depth, of the rows that have a next token.
    source: Vec<f32>,
    targets: Vec<u32>,
}

/// Where the weights of a depth are.
enum Weights<'a> {
    Disk(LayerRun<'a>),
    Memory(Overlay),
}

impl<'c, 'a> Effects<'c, 'a> {
    /// Runs the source.
    pub fn new(context: &'c Context<'a>) -> Result<Self, ConvertError> {
        let length = context.calibration.sequence_length;
        let targets = context.calibration.heldout.chunks(length).flat_map(|row| row[1..].to_vec()).collect();
        let mut effects = Self { context, source: Vec::new(), targets };
        let before = context.embed(&context.calibration.heldout)?;
        let after = context.source_hidden(before, 0, context.plan.stack.num_source_layers())?;
        effects.source = effects.predicting(&after);
        Ok(effects)
    }

    /// NLL of the source, and the scores of the mean over the tied group with plain LoRA: what `average` would start from.
    pub fn plain(&self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(f64, Effect), ConvertError> {
        let total = self.context.plan.map().num_depths();
        let hidden = self.walk(&mut |step| {
            let name = format!("model.depths.{}", step.depth);
            progress(Progress { stage: Stage::Measure, done: step.depth.0 + 1, total, tensor: &name });
            self.plain_layer(step)
        })?;
        self.compare(&hidden)
    }

    /// Scores of a written folder.
    pub fn written(&self, folder: &SafetensorsFolder) -> Result<Effect, ConvertError> {
        let hidden = self.walk(&mut |step| {
            Ok(Weights::Disk(LayerRun { tensors: folder, layer: step.layer, depth: step.depth, until: None }))
        })?;
        Ok(self.compare(&hidden)?.1)
    }

    fn walk<'w>(
        &self,
        weights: &mut dyn FnMut(DepthPlan) -> Result<Weights<'w>, ConvertError>,
    ) -> Result<Vec<f32>, ConvertError> {
        let mut hidden = self.context.embed(&self.context.calibration.heldout)?;
        for step in self.context.plan.map().depths() {
            hidden = match weights(*step)? {
                Weights::Disk(run) => self.context.run(run, &hidden, &mut |_| {})?,
                Weights::Memory(layer) => self.context.run(layer.run(None), &hidden, &mut |_| {})?,
            };
        }
        Ok(self.predicting(&hidden))
    }

    /// The rows that have a next token: not the last one of a sequence.
    fn predicting(&self, hidden: &[f32]) -> Vec<f32> {
        let (width, length) = (self.context.plan.config.hidden_size, self.context.calibration.sequence_length);
        hidden.chunks(length * width).flat_map(|rows| &rows[..(length - 1) * width]).copied().collect()
    }

    fn compare(&self, hidden: &[f32]) -> Result<(f64, Effect), ConvertError> {
        let model = self.context.calibration.model;
        let found = model.compare(self.context.source, &self.source, hidden, &self.targets)?;
        Ok((found.source_nll, Effect { nll: found.nll, kl: found.kl }))
    }

    fn plain_layer(&self, step: DepthPlan) -> Result<Weights<'a>, ConvertError> {
        let context = self.context;
        if !context.plan.map().is_shared(step.layer) {
            return Ok(Weights::Disk(context.source_run(context.plan.source_layer(step.depth), None)));
        }
        let mut layer = context.tied_vectors(step)?;
        let one = |projection: usize| {
            let Some(planned) = context.planned(step.layer, projection) else { return Ok(None) };
            let dtype = planned.info.dtype;
            let shared = widen(&narrow(&mean(context.source, &planned.sources)?, dtype), dtype);
            let Some(f) = planned.factors_at(step.depth) else {
                return Ok(Some((projection, shared, None)));
            };
            let own = context.source.read_f32(&f.source)?;
            let residual: Vec<f32> = own.iter().zip(&shared).map(|(own, shared)| own - shared).collect();
            let factors = factorize(&residual, f.shape, f.rank, Draw { seed: context.seed, stream: f.stream() })?;
            Ok::<_, ConvertError>(Some((projection, shared, Some((f, factors)))))
        };
        let all: Vec<_> = (0..context.num_projections()).into_par_iter().map(one).collect::<Result<_, _>>()?;
        for (projection, shared, factors) in all.into_iter().flatten() {
            let (name, shape) = context.projection(projection);
            layer.set(&format!("{name}.weight"), &shape, shared);
            if let Some((planned, factors)) = factors {
                super::refit::set_factors(&mut layer, name, planned, factors);
            }
        }
        Ok(Weights::Memory(layer))
    }
}
