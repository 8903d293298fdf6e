//! The training loop. It is ours, on burn-core: burn-train's `Learner` counts epochs and cannot
//! resume within one.
//!
//! A step draws `gradient_accumulation` micro-batches, sums their gradients, clips the global norm,
//! and updates. All state is in the weights, the moments and [`State`]; nothing is drawn from a
//! generator of the backend, so a resumed run repeats an unbroken one bit for bit on the CPU.
//!
//! Ranks that train together divide the micro-batches of a step: the gradient is the sum over all
//! of them, and every rank makes the same update. The first rank writes.

mod checkpoint;
mod estimate;
mod event;
mod guard;
mod heldout;
mod lead;
mod memory;
mod probe;
mod resume;
mod routing;
mod setup;
mod spikes;
mod stages;
mod step;

pub use checkpoint::State as RunState;
pub use estimate::{GroupEstimate, RunEstimate, estimate, step_operations};
pub use event::{Event, Outcome};
pub use memory::{RunMemory, RunModels, kernels, run_memory};
pub use probe::{StepProbe, StepSeconds, measure_step};
pub use resume::Resume;
pub use spikes::Spike;
pub use stages::{Stage, stages};

use crate::{
    Job, TrainError,
    log::{Logger, StepRow},
    objective::Objective,
    optim::Optimizer,
};
use checkpoint::{ModelFiles, State};
use guard::Guard;
use heldout::Heldout;
use lead::Lead;
use retie_checkpoint::{FolderLock, Provenance, Staging};
use retie_collective::lead_first;
use retie_config::UptrainConfig;
use retie_data::Sampler;
use retie_model::CausalLm;
use std::path::PathBuf;

/// Folder of the finished model in the run's folder.
pub const MODEL_DIR: &str = "model";

/// Trains as `config` says. The stop flag of `job` is looked at after each step; where it is set on
/// a rank all of them save and give [`Outcome::Interrupted`].
///
/// # Errors
/// When an input is missing or does not fit (nothing is written then), another process trains into
/// the same folder, the disk fails, or the loss stops being a number. The other ranks may wait for
/// this one then, so the job has to end.
pub fn uptrain(
    config: &UptrainConfig,
    resume: Resume,
    provenance: &Provenance,
    job: Job<'_>,
    events: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome, TrainError> {
    // For as long as the run writes: a second one would mix its rows and checkpoints with these.
    let lock = || job.ranks.leads().then(|| FolderLock::take(&config.run.dir)).transpose();
    let _lock = lead_first(job.ranks, lock)?;
    let (run, model) = Run::open(config, resume, provenance, job, events)?;
    run.train(model, events)
}

/// A run that is ready to step.
struct Run<'a> {
    config: &'a UptrainConfig,
    job: Job<'a>,
    files: ModelFiles<'a>,
    objective: Objective,
    optimizer: Optimizer<'a>,
    sampler: Sampler,
    heldout: Heldout<'a>,
    guard: Guard,
    state: State,
    /// The last checkpoint.
    saved: Option<(u64, PathBuf)>,
    /// Log and spikes, on the rank that writes.
    lead: Option<Lead>,
}

impl Run<'_> {
    fn train(mut self, mut model: CausalLm, events: &mut dyn FnMut(Event<'_>)) -> Result<Outcome, TrainError> {
        let num_steps = self.config.num_steps();
        let (eval_every, checkpoint_every) = (self.config.train.eval_every, self.config.train.checkpoint_every);
        step::anneal(&mut model, self.state.step + 1, &self.config.train);
        if self.state.step == 0 && eval_every > 0 {
            self.measure_baseline(&model, events)?;
        }
        while self.state.step < num_steps {
            let (next, row) = self.step(model, events)?;
            model = next;
            let step = self.state.step;
            let last = step == num_steps;
            if let Some(mut row) = row {
                if eval_every > 0 && (step.is_multiple_of(eval_every) || last) {
                    self.measure(&model, &mut row)?;
                }
                self.lead.iter_mut().try_for_each(|lead| lead.loggers.step(&row))?;
                events(Event::Step { row: &row, num_steps });
            }
            let due = checkpoint_every > 0 && step.is_multiple_of(checkpoint_every);
            let stopped = self.job.ranks.any(self.job.is_stopped()) && !last;
            if due || last || stopped {
                self.save(&model, events)?;
            }
            if let (true, Some((step, checkpoint))) = (stopped, &self.saved) {
                return Ok(Outcome::Interrupted { step: *step, checkpoint: checkpoint.clone() });
            }
        }
        self.finish(&model)
    }

    fn measure_baseline(&mut self, model: &CausalLm, events: &mut dyn FnMut(Event<'_>)) -> Result<(), TrainError> {
        let student = self.heldout.for_inference(model)?;
        let Some(baseline) = self.heldout.baseline(&student, &self.objective)? else { return Ok(()) };
        self.lead.iter_mut().try_for_each(|lead| lead.loggers.baseline(&baseline))?;
        events(Event::Baseline(&baseline));
        Ok(())
    }

    fn measure(&self, model: &CausalLm, row: &mut StepRow) -> Result<(), TrainError> {
        let averaged = self.optimizer.averaged(model);
        let averaged = averaged.map(|averaged| self.heldout.for_inference(&averaged)).transpose()?;
        self.heldout.measure(&self.heldout.for_inference(model)?, averaged.as_ref(), &self.objective, row)
    }

    fn save(&mut self, model: &CausalLm, events: &mut dyn FnMut(Event<'_>)) -> Result<(), TrainError> {
        let step = self.state.step;
        if self.saved.as_ref().is_some_and(|(saved, _)| *saved == step) {
            return Ok(());
        }
        let ranks = self.job.ranks;
        // With the thresholds that a routed model has now.
        self.files.config = self.heldout.for_inference(model)?.config().clone();
        checkpoint::check_weights(model, step, ranks)?;
        let dir = &self.config.run.dir;
        let path = checkpoint::step_dir(dir, step);
        if ranks.leads() {
            let optimizers = (&self.optimizer, self.objective.projections());
            checkpoint::save(dir, model, &self.files, optimizers, &self.state)?;
            checkpoint::prune(dir, self.config.train.keep_last, self.config.train.keep_best)?;
        } else {
            self.optimizer.assist();
        }
        ranks.barrier();
        events(Event::Checkpoint { step, path: &path });
        self.saved = Some((step, path));
        Ok(())
    }

    /// Writes the trained model: the average of the weights, if one is kept.
    fn finish(mut self, model: &CausalLm) -> Result<Outcome, TrainError> {
        let path = self.config.run.dir.join(MODEL_DIR);
        let averaged = self.optimizer.averaged(model);
        if self.job.ranks.leads() {
            // Of a process that was killed after the last checkpoint or the model was written.
            // Again, for a process that was killed between the last checkpoint and this.
            checkpoint::prune(&self.config.run.dir, self.config.train.keep_last, self.config.train.keep_best)?;
            checkpoint::remove_leftovers(&self.config.run.dir, MODEL_DIR)?;
        }
        if self.job.ranks.leads() && !path.exists() {
            if let Some(averaged) = &averaged {
                // With thresholds of its own, where it is routed.
                self.files.config = self.heldout.for_inference(averaged)?.config().clone();
            }
            let model = averaged.as_ref().unwrap_or(model);
            let staging = Staging::new(&path)?;
            self.files.write(model, staging.path())?;
            staging.publish()?;
        }
        self.job.ranks.barrier();
        Ok(Outcome::Finished { model: path })
    }
}
