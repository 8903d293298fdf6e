//! Time of a training step, measured: steps of a run on weights and tokens that are drawn, so that
//! neither a checkpoint nor a text is needed.

use super::{memory::RunModels, routing};
use crate::{
    TrainError,
    loss::{Requirements, Stacks},
    objective::{MicroBatch, Objective, StepSums, TeacherSource},
    optim::{Optimizer, Projections, SavedOptimizer, set_trained},
};
use burn::tensor::{Device, FloatDType};
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow};
use retie_collective::Single;
use retie_config::{ModelConfig, Precision, TensorSpec, UptrainConfig};
use retie_data::Batch;
use retie_model::{CausalLm, WeightDtype, mix};
use serde::Serialize;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

/// Rounds that are measured, after one that is not, and the time from which on no further begins.
const ROUNDS: usize = 5;
const ENOUGH: Duration = Duration::from_secs(20);

/// Measured times of a step on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepSeconds {
    /// Forward and backward pass of a micro-batch, with the teacher's.
    pub micro_batch: f64,
    /// Clipping and update.
    pub update: f64,
}

impl StepSeconds {
    /// A step of `micro_batches` of a rank.
    #[must_use]
    pub fn step(self, micro_batches: usize) -> f64 {
        self.micro_batch * micro_batches as f64 + self.update
    }
}

/// Measures steps of `config` on `device`, on models of the given shapes: medians of a few rounds.
///
/// # Errors
/// When the models cannot be built, or a loss reads cached logits.
pub fn measure_step(config: &UptrainConfig, models: RunModels<'_>, device: &Device) -> Result<StepSeconds, TrainError> {
    let mut probe = StepProbe::new(config, models, device)?;
    let (mut rounds, begin) = (Vec::new(), Instant::now());
    for round in 0..=ROUNDS {
        let seconds = probe.step(true)?;
        if round > 0 {
            rounds.push(seconds);
        }
        if !rounds.is_empty() && begin.elapsed() > ENOUGH {
            break;
        }
    }
    let median = |part: fn(&StepSeconds) -> f64| {
        let mut parts: Vec<f64> = rounds.iter().map(part).collect();
        parts.sort_by(f64::total_cmp);
        parts[parts.len() / 2]
    };
    Ok(StepSeconds { micro_batch: median(|round| round.micro_batch), update: median(|round| round.update) })
}

/// A run on weights and tokens that are drawn, with one micro-batch a step. Nothing is captured
/// unless asked for, so that every kernel counts.
#[derive(Debug)]
pub struct StepProbe<'a> {
    config: &'a UptrainConfig,
    device: Device,
    /// `None` while it is updated.
    model: Option<CausalLm>,
    objective: Objective,
    optimizer: Optimizer<'static>,
    batch: Batch,
    /// Steps that were made.
    steps: u64,
}

impl<'a> StepProbe<'a> {
    /// A run of `config` on `device`, on models of the given shapes.
    ///
    /// # Errors
    /// When the models cannot be built, or a loss reads cached logits.
    pub fn new(config: &'a UptrainConfig, models: RunModels<'_>, device: &Device) -> Result<Self, TrainError> {
        let RunModels { student, teacher } = models;
        let device = device.clone().inner();
        let precision = config.train.precision;
        if precision == Precision::Bf16 && !device.supports_dtype(FloatDType::BF16) {
            return Err(TrainError::NoBf16);
        }
        let drawn = Drawn::new(student, Dtype::F32);
        let model = CausalLm::load_with(student, &drawn, &device.clone().autodiff(), WeightDtype::F32)?;
        let model = set_trained(model.with_precision(precision), &config.optimizer.groups, 0);
        let held = |(teacher, bytes): (&ModelConfig, usize)| {
            let drawn = Drawn::new(teacher, Dtype::BF16);
            let is_narrow = bytes < 3 * drawn.num_elements();
            let dtype = if is_narrow { WeightDtype::Auto } else { WeightDtype::F32 };
            Ok::<_, TrainError>(CausalLm::load_with(teacher, &drawn, &device, dtype)?.with_precision(precision))
        };
        let source = teacher.map(held).transpose()?.map(|teacher| TeacherSource::Model(Box::new(teacher)));
        let stacks = Stacks {
            student: student.share_map(),
            teacher_depths: teacher.map(|(teacher, _)| teacher.num_hidden_layers),
            widths: (student.hidden_size, teacher.map(|(teacher, _)| teacher.hidden_size)),
        };
        let optimizer = Optimizer::new(config, &model, SavedOptimizer::default(), &Single);
        let count = Requirements::from_losses(&config.losses, &stacks).num_projections;
        let widths = [stacks.widths.0, stacks.widths.1.unwrap_or(0)];
        let projections = Projections::new(count, widths, optimizer.rules(), &device);
        let recompute = config.train.checkpoint_recursions;
        let objective = Objective::new(&config.losses, source, stacks, recompute, projections);
        let batch = drawn_batch(config, student.vocab_size);
        Ok(Self { config, device, model: Some(model), objective, optimizer, batch, steps: 0 })
    }

    /// The run with the teacher's forward passes captured, as [`uptrain`](crate::uptrain) has them.
    #[must_use]
    pub fn with_capture(self) -> Self {
        Self { objective: self.objective.with_capture(), ..self }
    }

    /// Makes a step, with the telemetry of hidden states or without, and measures it.
    ///
    /// # Errors
    /// When a loss reads cached logits.
    pub fn step(&mut self, telemetry: bool) -> Result<StepSeconds, TrainError> {
        let Some(model) = self.model.take() else { unreachable!("a step leaves a model behind") };
        self.steps += 1;
        let (start, step, config) = (Instant::now(), self.steps, self.config);
        let rule = routing::selection_rule(&model, step, &config.train);
        let mut sums = StepSums::default();
        let micro_batch = MicroBatch { batch: &self.batch, step, share: 1.0, draw: mix(step), telemetry };
        self.objective.backward(&model, micro_batch, rule, &mut sums)?;
        _ = self.objective.projections().take_gradients(&mut sums.grads, &Single);
        let grads = self.optimizer.sum(sums.grads, &self.device);
        // The norms are read, so the device has done all of the above.
        let norms = self.optimizer.norms(&grads);
        let micro_batch = start.elapsed().as_secs_f64();
        self.model = Some(self.optimizer.step(model, grads, &norms, config.lr_at(step)));
        Ok(StepSeconds { micro_batch, update: start.elapsed().as_secs_f64() - micro_batch })
    }
}

/// Rows of tokens that follow from their places alone.
fn drawn_batch(config: &UptrainConfig, vocab_size: usize) -> Batch {
    let (rows, length) = (config.train.batch_size, config.data.sequence_length);
    let ids = |salt: u64| (0..(rows * length) as u64).map(|at| (mix(salt ^ at) % vocab_size as u64) as u32).collect();
    Batch {
        inputs: ids(1 << 40),
        targets: ids(1 << 41),
        learnt: None,
        pieces: vec![length; rows],
        indices: (0..rows).collect(),
        row_lengths: vec![length; rows],
        rows,
        sequence_length: length,
    }
}

/// A checkpoint whose matrices are drawn, and whose vectors are ones.
struct Drawn {
    tensors: BTreeMap<String, TensorInfo>,
}

impl Drawn {
    fn new(config: &ModelConfig, dtype: Dtype) -> Self {
        let info = |spec: TensorSpec| (spec.name(), TensorInfo { dtype, shape: spec.shape });
        Self { tensors: config.tensors().into_iter().map(info).collect() }
    }

    fn num_elements(&self) -> usize {
        self.tensors.values().map(TensorInfo::num_elements).sum()
    }
}

impl TensorSource for Drawn {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    fn path_of(&self, _: &str) -> &Path {
        Path::new("(drawn weights)")
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let missing = || CheckpointError::NoTensor { path: self.path_of(name).to_owned(), tensor: name.to_owned() };
        let info = self.tensors.get(name).ok_or_else(missing)?;
        let salt = name.bytes().fold(0, |sum, byte| mix(sum ^ u64::from(byte)));
        // Of a standard deviation of 0.02, as models begin with.
        let value = |at: u64| (mix(salt ^ at) % 4096) as f32 * (0.07 / 4096.0) - 0.035;
        let count = info.num_elements() as u64;
        let values: Vec<f32> = match info.shape.len() {
            1 => vec![1.0; info.num_elements()],
            _ => (0..count).map(value).collect(),
        };
        Ok(narrow(&values, info.dtype).into())
    }
}
