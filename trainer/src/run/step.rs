//! One optimizer step: micro-batches, gradients, the guard, the update, the row.

use super::{Event, Run, guard::StepValues, routing};
use crate::{
    TrainError,
    log::StepRow,
    objective::{MicroBatch, StepSums},
};
use retie_config::TrainConfig;
use retie_data::Batch;
use retie_model::{CausalLm, mix};
use std::time::Instant;

/// Gives mechanisms with a schedule what they have in step `step`.
pub(super) fn anneal(model: &mut CausalLm, step: u64, train: &TrainConfig) {
    if let Some(anneal) = train.anneal {
        if let Some(sliced) = anneal.sliced {
            model.set_slices(|groups| sliced.at(step, groups));
        }
        if let Some(resolution) = anneal.resolution {
            model.set_resolutions(|factor| resolution.at(step, factor));
        }
    }
}

impl Run<'_> {
    /// One step; without a row if it was skipped.
    ///
    /// # Errors
    /// When text cannot be read, the disk fails, or the loss is not a number and the run has to
    /// end.
    pub(super) fn step(
        &mut self,
        model: CausalLm,
        events: &mut dyn FnMut(Event<'_>),
    ) -> Result<(CausalLm, Option<StepRow>), TrainError> {
        let start = Instant::now();
        let step = self.state.step + 1;
        let mut model = self.optimizer.thaw(model);
        anneal(&mut model, step, &self.config.train);
        let batches = self.batches()?;
        let (mut sums, tokens) = self.accumulate(&model, step, &batches)?;
        let ranks = self.job.ranks;
        let projection_grads = self.objective.projections().take_gradients(&mut sums.grads, ranks);
        let grads = self.optimizer.sum(std::mem::take(&mut sums.grads), &model.device().inner());
        let norms = self.optimizer.norms(&grads);
        let values = StepValues { step, loss: sums.losses.loss, grad_norm: norms.reported() };
        let kept = ranks.leads().then_some(batches.as_slice());
        let skipped = self.guard.check(&self.config.run.dir, values, kept)?;
        self.state.step = step;
        self.state.tokens += tokens;
        self.state.cursors = self.sampler.cursors();
        if let Some(path) = skipped {
            self.state.skipped += 1;
            let StepValues { loss, grad_norm, .. } = values;
            events(Event::Skipped { step, loss, grad_norm, path: &path });
            return Ok((model, None));
        }
        self.watch_loss(values, &batches, events)?;
        if self.has_telemetry(step) {
            sums.telemetry.set_gradients(&self.optimizer.group_norms(&grads));
        }
        let lr = self.config.lr_at(step);
        let mut model = self.optimizer.step(model, grads, &norms, lr);
        self.objective.projections_mut().step(projection_grads, &self.optimizer, lr);
        routing::balance(&mut model, &sums.routing, &self.config.train);
        let seconds = start.elapsed().as_secs_f64();
        let row = self.row(&model, sums, values, (tokens, seconds));
        Ok((model, Some(row)))
    }

    /// Micro-batches of a step: those of this rank. The rank that writes has those of the others
    /// too, behind its own.
    fn batches(&mut self) -> Result<Vec<Batch>, TrainError> {
        let TrainConfig { batch_size, gradient_accumulation: count, .. } = self.config.train;
        let ranks = self.job.ranks;
        let own = count / ranks.world();
        let mut batches = Vec::new();
        for index in 0..count {
            if ranks.leads() || index / own == ranks.rank() {
                batches.push(self.sampler.next_batch(batch_size)?);
            } else {
                self.sampler.skip_batch(batch_size);
            }
        }
        Ok(batches)
    }

    /// Gradients of this rank's micro-batches, values of all ranks, and the tokens of the step.
    fn accumulate(&self, model: &CausalLm, step: u64, batches: &[Batch]) -> Result<(StepSums, u64), TrainError> {
        let (train, ranks) = (&self.config.train, self.job.ranks);
        let rule = routing::selection_rule(model, step, train);
        // A token that is learnt counts as any other: micro-batches with fewer are smaller parts.
        let own = &batches[..train.gradient_accumulation / ranks.world()];
        let tokens = ranks.total(own.iter().map(|batch| batch.inputs.len() as f64).sum());
        let learnt = ranks.total(own.iter().map(|batch| batch.num_learnt() as f64).sum());
        let mut sums = StepSums::default();
        let draw = mix(train.seed ^ step);
        for batch in own.iter().filter(|batch| batch.num_learnt() > 0) {
            let share = batch.num_learnt() as f64 / learnt;
            let micro_batch = MicroBatch { batch, step, share, draw, telemetry: self.has_telemetry(step) };
            self.objective.backward(model, micro_batch, rule.clone(), &mut sums)?;
        }
        sums.reduce_values(ranks);
        if model.router().is_some() {
            routing::sum(&mut sums.routing, ranks);
        }
        Ok((sums, tokens as u64))
    }

    fn has_telemetry(&self, step: u64) -> bool {
        let every = self.config.train.telemetry_every;
        every > 0 && step.is_multiple_of(every)
    }

    /// Reports a loss spike.
    fn watch_loss(
        &mut self,
        values: StepValues,
        batches: &[Batch],
        events: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let Some(lead) = &mut self.lead else { return Ok(()) };
        let StepValues { step, loss, .. } = values;
        if let Some(spike) = lead.spikes.see(&self.config.run.dir, step, loss, batches)? {
            events(Event::Spike { step, loss, spike: &spike });
        }
        Ok(())
    }

    /// The row of a step of `tokens` tokens, without held-out measurements.
    fn row(&self, model: &CausalLm, sums: StepSums, values: StepValues, (tokens, seconds): (u64, f64)) -> StepRow {
        let StepValues { step, loss, grad_norm } = values;
        let StepSums { losses, routing, telemetry, .. } = sums;
        StepRow {
            step,
            loss,
            cross_entropy: losses.cross_entropy,
            terms: losses.columns(),
            routing: model.router().map(|_| routing.statistics()),
            heldout_routing: None,
            lr: self.config.lr_at(step),
            grad_norm,
            tokens: self.state.tokens,
            loss_spikes: self.lead.as_ref().map_or(0, |lead| lead.spikes.count()),
            heldout_cross_entropy: None,
            averaged_heldout_cross_entropy: None,
            heldout_exits: Vec::new(),
            telemetry: self.has_telemetry(step).then_some(telemetry),
            seconds,
            tokens_per_second: tokens as f64 / seconds,
        }
    }
}
