//! The training loop. It is ours, on burn-core: burn-train's `Learner` counts epochs and cannot resume within one.
//!
//! A step draws `gradient_accumulation` micro-batches, sums their gradients, clips the global norm, and updates. All state is in
//! the weights, the moments and [`State`]; nothing is drawn from a generator of the backend, so a resumed run repeats an unbroken
//! one bit for bit on the CPU.
//!
//! Ranks that train together divide the micro-batches of a step: the gradient is the sum over all of them, and every rank makes the same
//! update. The first rank writes.

use crate::{
    TrainError,
    adamw::{AdamW, Norms},
    agreement::{check_ranks, check_weights},
    checkpoint::{self, ModelFiles, Restored, State},
    collective::Collective,
    event::{Baseline, Event, Outcome, StepRow},
    gradients::Gradients,
    guard::{Guard, StepValues},
    inputs::Inputs,
    lead::Lead,
    log::Logger,
    loss::{Losses, num_projections},
    objective::{Objective, Source, Turn, cross_entropy},
    optimizer::Optimizer,
    projection::Projections,
    resume::{self, Resume, Start},
    routing,
    texts::Texts,
};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, FloatDType, Tensor},
};
use retie_checkpoint::{ModelSource, Provenance, Staging};
use retie_config::{Group, GroupsConfig, ModelConfig, Precision, ShareMap, TeacherConfig, TrainConfig, UptrainConfig};
use retie_data::{Batch, Sampler, TokenDataset};
use retie_model::{CausalLm, WeightDtype};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

/// Folder of the finished model in the run's folder.
pub const MODEL_DIR: &str = "model";

/// A run that is ready to step.
struct Run<'a> {
    config: &'a UptrainConfig,
    /// Shape and tokenizer files, written into every checkpoint.
    model_config: ModelConfig,
    companions: Vec<(String, Vec<u8>)>,
    provenance: &'a Provenance,
    objective: Objective,
    optimizer: Optimizer<'a>,
    ranks: &'a dyn Collective,
    sampler: Sampler,
    heldout: Option<TokenDataset>,
    /// Of the rank that writes.
    lead: Option<Lead>,
    guard: Guard,
    state: State,
    saved: Option<(u64, PathBuf)>,
}

/// Trains as `config` says, on `device`, together with the other `ranks`. `stop` is looked at after each step; where it is set on a rank
/// all of them save and give [`Outcome::Interrupted`].
///
/// # Errors
/// When an input is missing or does not fit (nothing is written then), the disk fails, or the loss stops being a number. The other
/// ranks may wait for this one then, so the job has to end.
pub fn uptrain(
    config: &UptrainConfig,
    device: &Device,
    resume: Resume,
    provenance: &Provenance,
    ranks: &dyn Collective,
    stop: &AtomicBool,
    events: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome, TrainError> {
    check_ranks(config, ranks.world())?;
    let dir = &config.run.dir;
    let device = device.clone().inner();
    let Start { restored, changes } = resume::start(config, &resume, &device)?;
    let (student, moments, state, resumed) = match restored {
        Some((Restored { model, moments, state }, path)) => {
            events(Event::Resumed { step: state.step, path: &path, changes: &changes });
            (Some(model), moments, Some(state), Some(path))
        }
        None => (None, BTreeMap::new(), None, None),
    };
    let mut inputs = Inputs::open(config, student)?;
    let Texts { train, heldout } = inputs.texts(ranks, events)?;
    let logits = inputs.logits.as_ref().map(|logits| logits.meta().fingerprint());
    let data = train.fingerprint();
    let fresh = State { step: 0, skipped: 0, tokens: 0, cursors: Vec::new(), data, logits: logits.clone() };
    let state = state.unwrap_or(fresh);
    train.check_fingerprint(&state.data)?;
    if let (true, Some(TeacherConfig { logits: Some(dir), .. })) = (state.logits != logits, &config.teacher) {
        return Err(TrainError::LogitsChanged { path: dir.clone() });
    }
    let sampler = Sampler::new(train, config.train.seed, &state.cursors)?;
    // The teacher is only read: what its file holds in bf16 need not be widened.
    let precision = config.train.precision;
    if precision == Precision::Bf16 && !device.supports_dtype(FloatDType::BF16) {
        return Err(TrainError::NoBf16);
    }
    let load = |source, device: &_, dtype| Ok::<_, TrainError>(load(source, device, dtype)?.with_precision(precision));
    let teacher = inputs.teacher.as_ref().map(|teacher| load(teacher, &device, WeightDtype::Auto)).transpose()?;
    let teacher = teacher
        .map(|teacher| Source::Model(Box::new(teacher)))
        .or_else(|| inputs.logits.take().map(|logits| Source::Logits(Box::new(logits))));
    let model = load(&inputs.student, &device.clone().autodiff(), WeightDtype::F32)?;
    let share_map = inputs.stacks.student.clone();
    let model = freeze(model, &config.optimizer.groups, &share_map);

    let adamw =
        |moments| AdamW::restore(config.optimizer.clone(), share_map.clone(), state.step - state.skipped, moments);
    let stacks = &inputs.stacks;
    let widths = [stacks.widths.0, stacks.widths.1.unwrap_or(0)];
    let count = num_projections(&config.losses, stacks);
    let mut projections = Projections::new(count, widths, adamw(BTreeMap::new()), &device);
    resumed.iter().try_for_each(|checkpoint| projections.restore(checkpoint))?;
    let adamw = adamw(moments);
    let optimizer = Optimizer::new(adamw, &model, config.train.shard_optimizer, ranks);
    // Every rank has seen the folder as it was.
    ranks.barrier();
    let lead = ranks.leads().then(|| Lead::open(config, provenance, state.step, !changes.is_empty())).transpose()?;
    let run = Run {
        config,
        model_config: inputs.student.config.clone(),
        companions: inputs.student.companions.clone(),
        provenance,
        objective: Objective::new(
            &config.losses,
            teacher,
            inputs.stacks.clone(),
            config.train.checkpoint_recursions,
            projections,
        ),
        optimizer,
        ranks,
        sampler,
        heldout,
        lead,
        guard: Guard::new(config.train.non_finite),
        saved: checkpoint::list(dir)?.pop(),
        state,
    };
    // Maps of the models' files would count as memory for the whole run.
    drop(inputs);
    run.train(model, stop, events)
}

/// `model` without gradients for the groups whose rate is 0.
fn freeze(model: CausalLm, groups: &GroupsConfig, share_map: &ShareMap) -> CausalLm {
    struct Freeze<'a> {
        groups: &'a GroupsConfig,
        share_map: &'a ShareMap,
        path: Vec<String>,
    }
    impl ModuleMapper for Freeze<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let group = Group::of(&self.path.join("."), self.share_map);
            if self.groups.get(group).lr > 0.0 { param } else { param.set_require_grad(false) }
        }
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
    }
    model.map(&mut Freeze { groups, share_map, path: Vec::new() })
}

fn load(source: &ModelSource, device: &Device, dtype: WeightDtype) -> Result<CausalLm, TrainError> {
    Ok(CausalLm::load_with(&source.config, source.tensors.as_ref(), device, dtype)?)
}

impl Run<'_> {
    fn train(
        mut self,
        mut model: CausalLm,
        stop: &AtomicBool,
        events: &mut dyn FnMut(Event<'_>),
    ) -> Result<Outcome, TrainError> {
        let num_steps = self.config.num_steps();
        let train = &self.config.train;
        let baseline = self.state.step == 0 && train.eval_every > 0;
        let student = baseline.then(|| self.for_inference(&model)).transpose()?;
        if let Some(student) = student
            && let Some(heldout_cross_entropy) = self.heldout_loss(&student)?
        {
            let heldout_exits = self.heldout_exits(&student)?;
            let teacher = self.objective.teacher().map(|teacher| self.heldout_loss(teacher)).transpose()?;
            let baseline =
                Baseline { heldout_cross_entropy, heldout_exits, teacher_heldout_cross_entropy: teacher.flatten() };
            self.write_heldout(json!({
                "step": 0,
                "tokens": 0,
                "heldout_cross_entropy": heldout_cross_entropy,
                "heldout_exits": baseline.heldout_exits,
                "teacher_heldout_cross_entropy": baseline.teacher_heldout_cross_entropy,
            }))?;
            self.lead.iter_mut().try_for_each(|lead| lead.loggers.baseline(&baseline))?;
            events(Event::Baseline(&baseline));
        }
        while self.state.step < num_steps {
            let (next, row) = self.step(model, events)?;
            model = next;
            let step = self.state.step;
            let last = step == num_steps;
            if let Some(mut row) = row {
                if train.eval_every > 0 && (step.is_multiple_of(train.eval_every) || last) {
                    self.measure(&self.for_inference(&model)?, &mut row)?;
                }
                self.lead.iter_mut().try_for_each(|lead| lead.loggers.step(&row))?;
                events(Event::Step { row: &row, num_steps });
            }
            let due = train.checkpoint_every > 0 && step.is_multiple_of(train.checkpoint_every);
            let stopped = self.ranks.any(stop.load(Ordering::Relaxed)) && !last;
            if due || last || stopped {
                self.save(&model, events)?;
            }
            if let (true, Some((step, checkpoint))) = (stopped, &self.saved) {
                return Ok(Outcome::Interrupted { step: *step, checkpoint: checkpoint.clone() });
            }
        }
        let path = self.config.run.dir.join(MODEL_DIR);
        if self.ranks.leads() && !path.exists() {
            let staging = Staging::new(&path)?;
            self.files().write(&model, staging.path())?;
            staging.publish()?;
        }
        self.ranks.barrier();
        Ok(Outcome::Finished { model: path })
    }

    fn files(&self) -> ModelFiles<'_> {
        ModelFiles { config: &self.model_config, companions: &self.companions, provenance: self.provenance }
    }

    /// One step; no row if it was left out.
    fn step(
        &mut self,
        model: CausalLm,
        events: &mut dyn FnMut(Event<'_>),
    ) -> Result<(CausalLm, Option<StepRow>), TrainError> {
        let start = Instant::now();
        let step = self.state.step + 1;
        let count = self.config.train.gradient_accumulation;
        let every = self.config.train.telemetry_every;
        let telemetry = every > 0 && step.is_multiple_of(every);
        let mut grads = Gradients::default();
        let mut losses = Losses::default();
        let batches = self.batches()?;
        let choice = routing::choice(&model, step, &self.config.train);
        // A token counts as any other: micro-batches of rows that are not full are smaller parts.
        let own = &batches[..count / self.ranks.world()];
        let tokens = self.ranks.total(own.iter().map(|batch| batch.inputs.len() as f64).sum());
        for batch in own {
            let turn = Turn { step, share: batch.inputs.len() as f64 / tokens, telemetry };
            self.objective.backward(&model, batch, choice.clone(), turn, &mut grads, &mut losses)?;
        }
        losses.sum(self.ranks);
        let Losses { loss, cross_entropy, terms, mut routing, telemetry: mut seen } = losses;
        if model.router().is_some() {
            routing::sum(&mut routing, self.ranks);
        }
        let of_projections = self.objective.projections().take_gradients(&mut grads, self.ranks);
        let grads = self.optimizer.sum(grads, &model.device().inner());
        let norms = Norms::of(&grads.squares, model.share_map());
        let grad_norm = norms.reported();
        let tokens = tokens as u64;
        let kept = self.ranks.leads().then_some(batches.as_slice());
        let skipped = self.guard.check(&self.config.run.dir, StepValues { step, loss, grad_norm }, kept)?;
        self.state.step = step;
        self.state.tokens += tokens;
        self.state.cursors = self.sampler.cursors();
        if let Some(path) = skipped {
            self.state.skipped += 1;
            events(Event::Skipped { step, loss, grad_norm, path: &path });
            return Ok((model, None));
        }
        if let Some(lead) = &mut self.lead
            && let Some(spike) = lead.spikes.see(&self.config.run.dir, step, loss, &batches)?
        {
            events(Event::Spike { step, loss, spike: &spike });
        }
        if telemetry {
            seen.set_gradients(&grads.squares, self.objective.share_map());
        }
        let lr = self.config.lr_at(step);
        let mut model = self.optimizer.step(model, grads, norms, lr);
        self.objective.projections_mut().step(of_projections, lr);
        routing::balance(&mut model, &routing, &self.config.train);
        let seconds = start.elapsed().as_secs_f64();
        let row = StepRow {
            step,
            loss,
            cross_entropy,
            terms,
            routing: model.router().map(|_| routing.statistics()),
            heldout_routing: None,
            lr,
            grad_norm,
            tokens: self.state.tokens,
            loss_spikes: self.lead.as_ref().map_or(0, |lead| lead.spikes.count()),
            heldout_cross_entropy: None,
            heldout_exits: Vec::new(),
            telemetry: telemetry.then_some(seen),
            seconds,
            tokens_per_second: tokens as f64 / seconds,
        };
        Ok((model, Some(row)))
    }

    /// Micro-batches of a step: those of this rank. The rank that writes has those of the others too, behind its own.
    fn batches(&mut self) -> Result<Vec<Batch>, TrainError> {
        let TrainConfig { batch_size, gradient_accumulation: count, .. } = self.config.train;
        let own = count / self.ranks.world();
        let mut batches = Vec::new();
        for index in 0..count {
            if self.ranks.leads() || index / own == self.ranks.rank() {
                batches.push(self.sampler.next_batch(batch_size)?);
            } else {
                self.sampler.skip_batch(batch_size);
            }
        }
        Ok(batches)
    }

    /// Adds the held-out losses to the row of a step.
    fn measure(&self, model: &CausalLm, row: &mut StepRow) -> Result<(), TrainError> {
        row.heldout_cross_entropy = self.heldout_loss(model)?;
        row.heldout_exits = self.heldout_exits(model)?;
        row.heldout_routing = routing::heldout(model, self.heldout.as_ref(), &self.config.train, self.ranks)?;
        if let Some(loss) = row.heldout_cross_entropy {
            self.write_heldout(json!({
                "step": row.step,
                "tokens": row.tokens,
                "heldout_cross_entropy": loss,
                "heldout_exits": row.heldout_exits,
            }))?;
        }
        Ok(())
    }

    fn for_inference(&self, model: &CausalLm) -> Result<CausalLm, TrainError> {
        routing::for_inference(model, self.heldout.as_ref(), &self.config.train)
    }

    fn heldout_loss(&self, model: &CausalLm) -> Result<Option<f64>, TrainError> {
        let Some(heldout) = &self.heldout else { return Ok(None) };
        let batches = heldout.heldout_batches(self.config.train.batch_size, Some(self.config.train.eval_sequences))?;
        Ok(Some(cross_entropy(model, batches, self.ranks)?))
    }

    /// Held-out loss of every early exit that is trained.
    fn heldout_exits(&self, model: &CausalLm) -> Result<Vec<f64>, TrainError> {
        let losses = self.objective.exits().into_iter().map(|end| self.heldout_loss(&model.until(end)));
        Ok(losses.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    fn write_heldout(&self, row: serde_json::Value) -> Result<(), TrainError> {
        if !self.ranks.leads() {
            return Ok(());
        }
        let dir = self.config.run.dir.join("eval");
        fs_err::create_dir_all(&dir)?;
        Ok(fs_err::write(dir.join(format!("step-{}.json", self.state.step)), format!("{row}\n"))?)
    }

    fn save(&mut self, model: &CausalLm, events: &mut dyn FnMut(Event<'_>)) -> Result<(), TrainError> {
        let step = self.state.step;
        if self.saved.as_ref().is_some_and(|(saved, _)| *saved == step) {
            return Ok(());
        }
        // With the thresholds that a routed model has now.
        self.model_config = self.for_inference(model)?.config().clone();
        check_weights(model, step, self.ranks)?;
        let dir = &self.config.run.dir;
        let path = checkpoint::step_dir(dir, step);
        if self.ranks.leads() {
            checkpoint::save(dir, model, self.files(), &self.optimizer, self.objective.projections(), &self.state)?;
            checkpoint::prune(dir, self.config.train.keep_last, self.config.train.keep_best)?;
        } else {
            self.optimizer.assist();
        }
        self.ranks.barrier();
        events(Event::Checkpoint { step, path: &path });
        self.saved = Some((step, path));
        Ok(())
    }
}
