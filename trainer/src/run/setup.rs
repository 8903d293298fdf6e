//! From a configuration to a run that is ready to step.

use super::{
    Event, Run,
    checkpoint::{self, ModelFiles, Restored, State},
    guard::Guard,
    heldout::Heldout,
    lead::Lead,
    resume::{self, Resume, Start},
};
use crate::{
    Job, TrainError,
    io::{
        Texts,
        inputs::{Inputs, check_ranks},
    },
    loss::Requirements,
    objective::{Objective, TeacherSource},
    optim::{Optimizer, ParameterState, Projections, SavedOptimizer, UpdateRules, set_trained},
};
use burn::tensor::{Device, FloatDType};
use retie_checkpoint::{ModelSource, Provenance};
use retie_config::{Precision, TeacherConfig, UptrainConfig};
use retie_data::{Mixture, Sampler};
use retie_model::{CausalLm, WeightDtype};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Restored parts of a run, and where they come from.
struct Progress {
    student: Option<ModelSource>,
    states: BTreeMap<String, ParameterState>,
    state: Option<State>,
    checkpoint: Option<PathBuf>,
}

impl<'a> Run<'a> {
    /// Opens and checks everything that a run reads, loads the models, and opens the files of the
    /// run.
    ///
    /// # Errors
    /// As [`super::uptrain`].
    pub fn open(
        config: &'a UptrainConfig,
        resume: Resume,
        provenance: &'a Provenance,
        job: Job<'a>,
        events: &mut dyn FnMut(Event<'_>),
    ) -> Result<(Self, CausalLm), TrainError> {
        let ranks = job.ranks;
        check_ranks(config, ranks.world())?;
        let device = job.device.clone().inner();
        let Start { restored, changes } = resume::start(config, &resume, &device)?;
        let progress = Progress::from_restored(restored);
        if let Progress { state: Some(state), checkpoint: Some(path), .. } = &progress {
            events(Event::Resumed { step: state.step, path, changes: &changes });
        }
        let mut inputs = Inputs::open(config, progress.student)?;
        let Texts { train, heldout } =
            inputs.texts(ranks, &mut |what, progress| events(Event::Tokenizing { what, progress }))?;
        let state = state(config, &inputs, &train, progress.state)?;
        let sampler = Sampler::new(train, config.train.seed, &state.cursors)?;
        let saved = SavedOptimizer { steps: state.step - state.skipped, states: progress.states };
        let (model, teacher) = models(config, &mut inputs, &device)?;
        let model = set_trained(model, &config.optimizer.groups, saved.steps);
        let optimizer = Optimizer::new(config, &model, saved, ranks);
        let projections = projections(config, &inputs, optimizer.rules(), progress.checkpoint.as_deref(), &device)?;
        // Every rank has seen the folder as it was.
        ranks.barrier();
        let changed = !changes.is_empty();
        let lead = ranks.leads().then(|| Lead::open(config, provenance, state.step, changed)).transpose()?;
        let recompute = config.train.checkpoint_recursions;
        let objective = Objective::new(&config.losses, teacher, inputs.stacks.clone(), recompute, projections);
        // Ranks may be threads, which share the device.
        let objective = if ranks.world() == 1 { objective.with_capture() } else { objective };
        let run = Self {
            config,
            job,
            files: ModelFiles {
                config: inputs.student.config.clone(),
                companions: inputs.student.companions.clone(),
                provenance,
            },
            objective,
            optimizer,
            sampler,
            heldout: Heldout::new(config, heldout, ranks),
            guard: Guard::new(config.train.non_finite),
            saved: checkpoint::list(&config.run.dir)?.pop(),
            state,
            lead,
        };
        // `inputs` ends here: maps of the models' files would count as memory for the whole run.
        Ok((run, model))
    }
}

impl Progress {
    fn from_restored(restored: Option<(Restored, PathBuf)>) -> Self {
        match restored {
            Some((Restored { model, states, state }, path)) => {
                Self { student: Some(model), states, state: Some(state), checkpoint: Some(path) }
            }
            None => Self { student: None, states: BTreeMap::new(), state: None, checkpoint: None },
        }
    }
}

/// The restored state, if it is of the same data, or that of a run before its first step.
fn state(
    config: &UptrainConfig,
    inputs: &Inputs,
    train: &Mixture,
    restored: Option<State>,
) -> Result<State, TrainError> {
    let logits = inputs.logits.as_ref().map(|logits| logits.meta().fingerprint());
    let state = restored.unwrap_or_else(|| State {
        step: 0,
        skipped: 0,
        tokens: 0,
        cursors: Vec::new(),
        data: train.fingerprint(),
        logits: logits.clone(),
    });
    train.check_fingerprint(&state.data)?;
    match &config.teacher {
        Some(TeacherConfig { logits: Some(dir), .. }) if state.logits != logits => {
            Err(TrainError::LogitsChanged { path: dir.clone() })
        }
        _ => Ok(state),
    }
}

/// The student and the teacher. Cached logits are taken out of `inputs`.
fn models(
    config: &UptrainConfig,
    inputs: &mut Inputs,
    device: &Device,
) -> Result<(CausalLm, Option<TeacherSource>), TrainError> {
    let precision = config.train.precision;
    if precision == Precision::Bf16 && !device.supports_dtype(FloatDType::BF16) {
        return Err(TrainError::NoBf16);
    }
    let load = |source: &ModelSource, device: &Device, dtype| {
        let model = CausalLm::load_with(&source.config, source.tensors.as_ref(), device, dtype)?;
        Ok::<_, TrainError>(model.with_precision(precision))
    };
    // The teacher is only read: bf16 weights of its file need not be widened.
    let teacher = inputs.teacher.as_ref().map(|teacher| load(teacher, device, WeightDtype::Auto)).transpose()?;
    let teacher = teacher
        .map(|teacher| TeacherSource::Model(Box::new(teacher)))
        .or_else(|| inputs.logits.take().map(|logits| TeacherSource::Logits(Box::new(logits))));
    let student = load(&inputs.student, &device.clone().autodiff(), WeightDtype::F32)?;
    Ok((student, teacher))
}

/// The learned maps between hidden states, as they are in `checkpoint`.
fn projections(
    config: &UptrainConfig,
    inputs: &Inputs,
    rules: &UpdateRules,
    checkpoint: Option<&Path>,
    device: &Device,
) -> Result<Projections, TrainError> {
    let (student, teacher) = inputs.stacks.widths;
    let count = Requirements::from_losses(&config.losses, &inputs.stacks).num_projections;
    let mut projections = Projections::new(count, [student, teacher.unwrap_or(0)], rules, device);
    checkpoint.map_or(Ok(()), |checkpoint| projections.restore(checkpoint))?;
    Ok(projections)
}
