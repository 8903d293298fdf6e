//! `--dry-run`: the trained parameters of a run, and an estimate of its memory and time. Operations
//! are those of [`ModelConfig::cost`].

use crate::{
    TrainError,
    io::inputs::{Inputs, check_ranks},
    optim::{Parameter, UpdateRules},
};
use burn::tensor::{Device, Distribution, Tensor};
use retie_checkpoint::ModelSource;
use retie_config::{
    DepthAssignment, LoraConfig, ModelConfig, OptimizerConfig, ParameterGroup, Relax, ShareMap, TensorSpec,
    UptrainConfig,
};
use retie_model::{CausalLm, WeightDtype};
use serde::Serialize;
use std::{fmt, time::Instant};

/// Parameters that the optimizer treats alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupEstimate {
    /// The group's.
    pub name: &'static str,
    /// Factor of the learning rate; 0: frozen.
    pub lr: f64,
    /// Weight decay of its matrices; of norms and biases, where it has no matrix.
    pub weight_decay: f64,
    /// Updates for which it is frozen at the start.
    pub freeze_until: u64,
    /// Update rule of its matrices; of norms and biases, where it has no matrix.
    pub rule: &'static str,
    /// Tensors in it.
    pub tensors: usize,
    /// Elements in it.
    pub parameters: usize,
}

/// Size of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunEstimate {
    /// Processes that train together.
    pub ranks: usize,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of one step.
    pub tokens_per_step: u64,
    /// Parameters by treatment.
    pub groups: Vec<GroupEstimate>,
    /// Weights, gradients and optimizer state of the student on a rank, in bytes.
    pub student_bytes: usize,
    /// Weights of the teacher, in bytes.
    pub teacher_bytes: usize,
    /// Activations that the backward pass of one micro-batch keeps, in bytes: an estimate.
    pub activation_bytes: usize,
    /// Multiply-adds of one step counted as two operations each.
    pub flops_per_step: f64,
    /// Time of the whole run, from the speed of a product of the model's size measured now, in
    /// seconds: an estimate.
    pub seconds: f64,
}

/// Opens and checks the inputs of `config` and estimates memory and time on each of `ranks` ranks;
/// nothing is written or trained.
///
/// # Errors
/// When a model or tokenizer is missing or does not fit.
pub fn estimate(config: &UptrainConfig, device: &Device, ranks: usize) -> Result<RunEstimate, TrainError> {
    check_ranks(config, ranks)?;
    let inputs = Inputs::open(config, None)?;
    let student = Sizes::from_source(&inputs.student);
    let teacher = inputs.teacher.as_ref().map(Sizes::from_source);
    let tokens = config.train.batch_size * config.data.sequence_length;
    let length = config.data.sequence_length;
    let tokens_per_step = config.tokens_per_step();
    // Forward and backward are three passes over the weights, computing a recursion again a fourth;
    // the teacher's forward is one.
    let checkpoint = config.train.checkpoint_recursions;
    let student_passes = if checkpoint { 4.0 } else { 3.0 };
    let teacher_flops = teacher.as_ref().map(|teacher| teacher.forward_flops(length));
    let flops_per_token = student_passes * student.forward_flops(length) + teacher_flops.unwrap_or(0.0);
    let forward_passes = (config.train.gradient_accumulation * if checkpoint { 2 } else { 1 }) as f64;
    let norm_flops = student.config.dora_norm_operations();
    let flops_per_step = flops_per_token * tokens_per_step as f64 + forward_passes * norm_flops;
    let groups = student.groups(&config.optimizer);
    let memory = run_memory(config, (&inputs.student, inputs.teacher.as_ref()), device, ranks);
    let speed = product_speed(&inputs.student.config, tokens, device);
    Ok(RunEstimate {
        ranks,
        steps: config.num_steps(),
        tokens_per_step,
        groups,
        student_bytes: memory.student,
        teacher_bytes: memory.teacher,
        activation_bytes: memory.activations(),
        flops_per_step,
        seconds: flops_per_step / (speed * ranks as f64) * config.num_steps() as f64,
    })
}

/// Memory of a run on one rank, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunMemory {
    /// Weights, gradients and optimizer state of the student.
    pub student: usize,
    /// Weights of the teacher.
    pub teacher: usize,
    /// Activations that the backward pass of one sequence keeps: an estimate.
    pub activations_per_sequence: usize,
    /// Sequences of a micro-batch.
    pub sequences: usize,
}

impl RunMemory {
    /// Activations of a micro-batch.
    #[must_use]
    pub fn activations(&self) -> usize {
        self.activations_per_sequence * self.sequences
    }
}

/// Memory of a run of `config` on each of `ranks` ranks.
#[must_use]
pub fn run_memory(
    config: &UptrainConfig,
    (student, teacher): (&ModelSource, Option<&ModelSource>),
    device: &Device,
    ranks: usize,
) -> RunMemory {
    let sizes = Sizes::from_source(student);
    let trained = |spec: &&TensorSpec| config.optimizer.groups.get(spec.group).is_trained();
    let trained: usize = sizes.tensors.iter().filter(trained).map(TensorSpec::num_elements).sum();
    let state = sizes.state_elements(config);
    let state = if config.train.shard_optimizer { state.div_ceil(ranks) } else { state };
    let held = |teacher: &ModelSource| {
        CausalLm::weight_bytes(&teacher.config, teacher.tensors.as_ref(), device, WeightDtype::Auto)
    };
    RunMemory {
        student: (sizes.parameters() + trained + state) * 4,
        teacher: teacher.map_or(0, held),
        activations_per_sequence: sizes.activations_per_token(config.train.checkpoint_recursions)
            * config.data.sequence_length
            * 4,
        sequences: config.train.batch_size,
    }
}

struct Sizes {
    config: ModelConfig,
    map: ShareMap,
    tensors: Vec<TensorSpec>,
    /// Part of the tokens that each recursion takes in training; `None` without routers.
    shares: Option<Vec<f64>>,
}

impl Sizes {
    fn from_source(source: &ModelSource) -> Self {
        let config = source.config.clone();
        let map = config.share_map();
        let tensors = config.tensors_for(&map);
        Self { shares: config.expected_shares(), config, map, tensors }
    }

    fn parameters(&self) -> usize {
        self.tensors.iter().map(TensorSpec::num_elements).sum()
    }

    /// Elements of the optimizer's buffers, averages of the weights included.
    fn state_elements(&self, config: &UptrainConfig) -> usize {
        let rules = UpdateRules::new(&config.optimizer);
        let averages = usize::from(config.train.average.is_some());
        let is_trained = |spec: &&TensorSpec| config.optimizer.groups.get(spec.group).is_trained();
        let elements = |spec: &TensorSpec| {
            let buffers = rules.get(&Parameter::from_spec(spec)).buffers().len();
            (buffers + averages) * spec.num_elements()
        };
        self.tensors.iter().filter(is_trained).map(elements).sum()
    }

    /// The groups that have a tensor.
    fn groups(&self, optimizer: &OptimizerConfig) -> Vec<GroupEstimate> {
        let rules = UpdateRules::new(optimizer);
        let estimate = |group: ParameterGroup| {
            let tensors: Vec<_> = self.tensors.iter().filter(|spec| spec.group == group).collect();
            let largest = tensors.iter().max_by_key(|spec| spec.shape.len())?;
            let settings = optimizer.groups.get(group);
            Some(GroupEstimate {
                name: group.name(),
                lr: settings.lr,
                weight_decay: optimizer.weight_decay_of(group, largest.shape.len()),
                freeze_until: settings.freeze_until,
                rule: rules.get(&Parameter::from_spec(largest)).name(),
                tensors: tensors.len(),
                parameters: tensors.iter().map(|spec| spec.num_elements()).sum(),
            })
        };
        ParameterGroup::ALL.into_iter().filter_map(estimate).collect()
    }

    /// Operations of one token's forward pass in sequences of `length`, in the mean.
    fn forward_flops(&self, length: usize) -> f64 {
        self.config.cost(length, self.shares.as_deref()).operations() / length as f64
    }

    /// Depths that a token goes through, in the mean.
    fn mean_depths(&self) -> f64 {
        let share = |recursion: usize| self.shares.as_ref().and_then(|shares| shares.get(recursion)).copied();
        self.map.depths().iter().map(|step| step.recursion.and_then(share).unwrap_or(1.0)).sum()
    }

    /// The LoRA, if it has magnitudes.
    fn dora(&self) -> Option<&LoraConfig> {
        self.config.recursion.as_ref()?.lora.as_ref().filter(|lora| lora.relax == Relax::Dora)
    }

    /// Elements that the stack keeps for its backward pass, a token. A depth keeps two norm inputs
    /// and outputs, q and k after the rotation, v, the attention's output, gate and up; with DoRA
    /// also the outputs of its linears before they are rescaled. With `checkpoint` one recursion
    /// does at a time, and the others keep only their inputs.
    fn activations_per_token(&self, checkpoint: bool) -> usize {
        let c = &self.config;
        let mut depth = 4 * c.hidden_size + 2 * c.query_size() + 2 * c.key_value_size() + 2 * c.intermediate_size;
        if let Some(dora) = self.dora() {
            let rescaled = |step: &&DepthAssignment| self.map.is_shared(step.layer);
            let shapes = c.projection_shapes();
            let elements = |step: &DepthAssignment| -> usize {
                let with =
                    shapes.iter().filter(|(projection, shape)| dora.rank_at(step.depth, *projection, *shape) > 0);
                with.map(|(_, [out, _])| out).sum()
            };
            depth += self.map.depths().iter().filter(rescaled).map(elements).max().unwrap_or(0);
        }
        if !checkpoint {
            return (depth as f64 * self.mean_depths()) as usize;
        }
        let passes = self.map.passes();
        let longest = passes.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        depth * longest + c.hidden_size * passes.len()
    }
}

/// Operations per second of the product that dominates: tokens through the up-projection, forward.
fn product_speed(config: &ModelConfig, tokens: usize, device: &Device) -> f64 {
    let device = device.clone().inner();
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &device);
    let (x, w) = (random([tokens, config.hidden_size]), random([config.intermediate_size, config.hidden_size]));
    let flops = 2.0 * (tokens * config.hidden_size * config.intermediate_size) as f64;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        let product = retie_model::kernels::linear(x.clone(), w.clone());
        let _ = product.into_data();
        best = best.min(start.elapsed().as_secs_f64());
    }
    flops / best
}

impl fmt::Display for RunEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
        writeln!(f, "steps                {} of {} tokens", self.steps, self.tokens_per_step)?;
        if self.ranks > 1 {
            writeln!(f, "ranks                {}, each with an equal part of the micro-batches", self.ranks)?;
        }
        for group in &self.groups {
            let GroupEstimate { name, lr, weight_decay, freeze_until, rule, tensors, parameters } = group;
            let start = match freeze_until {
                0 => String::new(),
                updates => format!(", frozen for {updates} updates"),
            };
            let treatment = match lr {
                0.0 => "frozen".to_owned(),
                _ => format!("{rule}, rate × {lr}, decay {weight_decay}{start}"),
            };
            writeln!(f, "{name:<20} {parameters} parameters in {tensors} tensors, {treatment}")?;
        }
        writeln!(f, "student              {:.0} MiB: weights, gradients, optimizer state", mib(self.student_bytes))?;
        writeln!(f, "teacher              {:.0} MiB", mib(self.teacher_bytes))?;
        writeln!(f, "activations          {:.0} MiB, estimated", mib(self.activation_bytes))?;
        writeln!(f, "operations per step  {:.2e}", self.flops_per_step)?;
        write!(f, "time                 {:.0} s at the speed of one product, estimated", self.seconds)
    }
}
