//! Memory of a run on a rank, by part. Activations are those of the cost model
//! ([`ModelConfig::activations_per_token`]).

use crate::optim::{Parameter, UpdateRules};
use burn::tensor::Device;
use retie_checkpoint::ModelSource;
use retie_config::{Kernels, MicroBatchShape, ModelConfig, ParameterGroup, Precision, TensorSpec, UptrainConfig};
use retie_model::{
    CausalLm, WeightDtype,
    kernels::{GPU_LOGITS_IN_FLIGHT, LOGITS_IN_FLIGHT},
};
use serde::Serialize;

/// Bytes of an element in f32.
const ELEMENT: usize = 4;
/// Program, its threads and what it keeps of files, in bytes.
const PROGRAM: usize = 50 << 20;

/// Memory of a run on one rank, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RunMemory {
    /// The program itself.
    pub program: usize,
    /// Weights of the student.
    pub weights: usize,
    /// Their gradients.
    pub gradients: usize,
    /// The sum of the gradients of the micro-batches before, where a step has several.
    pub accumulated: usize,
    /// Buffers of the optimizer, and averages of the weights.
    pub optimizer: usize,
    /// Weights of the teacher.
    pub teacher: usize,
    /// Shared weights with the LoRA of each depth merged into them, where they are kept.
    pub merged: usize,
    /// Logits that are computed at once, of student and teacher.
    pub logits: usize,
    /// Activations that the backward pass of one sequence keeps.
    pub activations_per_sequence: usize,
    /// Sequences of a micro-batch.
    pub sequences: usize,
}

impl RunMemory {
    /// Weights, gradients and optimizer state of the student.
    #[must_use]
    pub fn student(&self) -> usize {
        self.weights + self.gradients + self.optimizer
    }

    /// Activations of a micro-batch.
    #[must_use]
    pub fn activations(&self) -> usize {
        self.activations_per_sequence * self.sequences
    }

    /// What is neither weights nor activations: the program, logits, merged LoRA, the sum of the
    /// gradients of several micro-batches.
    #[must_use]
    pub fn others(&self) -> usize {
        self.program + self.logits + self.merged + self.accumulated
    }

    /// What does not depend on the number of sequences.
    #[must_use]
    pub fn fixed(&self) -> usize {
        self.student() + self.teacher + self.others()
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> usize {
        self.fixed() + self.activations()
    }
}

/// Models of a run: the student, and the teacher with the bytes that its weights take.
#[derive(Clone, Copy, Debug)]
pub struct RunModels<'a> {
    /// The student.
    pub student: &'a ModelConfig,
    /// The teacher, if it is a model.
    pub teacher: Option<(&'a ModelConfig, usize)>,
}

impl<'a> RunModels<'a> {
    /// Those of open checkpoints; the teacher is held as [`uptrain`](super::uptrain) holds it.
    #[must_use]
    pub fn from_sources(student: &'a ModelSource, teacher: Option<&'a ModelSource>, device: &Device) -> Self {
        let held = |teacher: &'a ModelSource| {
            let ModelSource { config, tensors, .. } = teacher;
            (config, CausalLm::weight_bytes(config, tensors.as_ref(), device, WeightDtype::Auto))
        };
        Self { student: &student.config, teacher: teacher.map(held) }
    }
}

/// Memory of a run of `config` on each of `ranks` ranks, whose devices have `kernels`.
#[must_use]
pub fn run_memory(config: &UptrainConfig, models: RunModels<'_>, kernels: Kernels, ranks: usize) -> RunMemory {
    let RunModels { student, teacher } = models;
    let tensors = student.tensors();
    let is_trained = |spec: &&TensorSpec| config.optimizer.groups.get(spec.group).is_trained();
    let state = state_elements(config, tensors.iter().filter(is_trained));
    let state = if config.train.shard_optimizer { state.div_ceil(ranks) } else { state };
    let shape = micro_batch_shape(config, kernels);
    let shared = config.optimizer.groups.get(ParameterGroup::Shared);
    // In bf16 the two products stay apart.
    let merges = shared.is_trained() && config.train.precision == Precision::F32;
    let merged = if merges { student.merged_elements(shape) } else { 0 };
    let shares = student.expected_shares();
    let per_token = student.activations_per_token(shape, shares.as_deref());
    let gradients = elements(tensors.iter().filter(is_trained)) * ELEMENT;
    // A GPU has larger chunks, and the gradient of the logits beside them.
    let (chunk, others) = match kernels {
        Kernels::Cpu => (LOGITS_IN_FLIGHT, 0),
        Kernels::Gpu => (GPU_LOGITS_IN_FLIGHT, 1),
    };
    let readers = others + if teacher.is_some() { 2 } else { 1 };
    let logits = chunk.min(shape.rows() * student.vocab_size);
    RunMemory {
        program: PROGRAM,
        weights: elements(tensors.iter()) * ELEMENT,
        gradients,
        accumulated: if config.train.gradient_accumulation > ranks { gradients } else { 0 },
        optimizer: state * ELEMENT,
        teacher: teacher.map_or(0, |(_, bytes)| bytes),
        merged: merged * ELEMENT,
        logits: readers * logits * ELEMENT,
        activations_per_sequence: (per_token * shape.sequence_length as f64) as usize * ELEMENT,
        sequences: shape.sequences,
    }
}

/// Kernels of `device`.
#[must_use]
pub fn kernels(device: &Device) -> Kernels {
    if retie_model::is_host(device) { Kernels::Cpu } else { Kernels::Gpu }
}

fn elements<'a>(tensors: impl Iterator<Item = &'a TensorSpec>) -> usize {
    tensors.map(TensorSpec::num_elements).sum()
}

fn micro_batch_shape(config: &UptrainConfig, kernels: Kernels) -> MicroBatchShape {
    MicroBatchShape {
        sequences: config.train.batch_size,
        sequence_length: config.data.sequence_length,
        checkpoint_recursions: config.train.checkpoint_recursions,
        kernels,
    }
}

/// Elements of the optimizer's buffers of trained tensors, averages of the weights included.
fn state_elements<'a>(config: &UptrainConfig, trained: impl Iterator<Item = &'a TensorSpec>) -> usize {
    let rules = UpdateRules::new(&config.optimizer);
    let averages = usize::from(config.train.average.is_some());
    let elements = |spec: &TensorSpec| {
        let buffers = rules.get(&Parameter::from_spec(spec)).buffers().len();
        (buffers + averages) * spec.num_elements()
    };
    trained.map(elements).sum()
}
