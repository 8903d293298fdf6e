//! `--dry-run`: the trained parameters of a run, and an estimate of its memory (`memory.rs`) and
//! time. Operations are those of [`ModelConfig::cost`].

use super::memory::{RunModels, kernels, run_memory};
use crate::{
    TrainError,
    io::inputs::{Inputs, check_ranks},
    optim::{Parameter, UpdateRules},
};
use burn::tensor::{Device, Distribution, Tensor};
use retie_config::{ModelConfig, OptimizerConfig, ParameterGroup, UptrainConfig};
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
    /// Program, logits that are computed at once, weights with LoRA merged into them, and the sum
    /// of gradients of several micro-batches, in bytes: an estimate.
    pub other_bytes: usize,
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
    let models = RunModels::from_sources(&inputs.student, inputs.teacher.as_ref(), device);
    let memory = run_memory(config, models, kernels(device), ranks);
    let flops_per_step = step_operations(config, models);
    let tokens = config.train.batch_size * config.data.sequence_length;
    let speed = product_speed(&inputs.student.config, tokens, device);
    Ok(RunEstimate {
        ranks,
        steps: config.num_steps(),
        tokens_per_step: config.tokens_per_step(),
        groups: groups(&inputs.student.config, &config.optimizer),
        student_bytes: memory.student(),
        teacher_bytes: memory.teacher,
        activation_bytes: memory.activations(),
        other_bytes: memory.others(),
        flops_per_step,
        seconds: flops_per_step / (speed * ranks as f64) * config.num_steps() as f64,
    })
}

/// The groups of `student` that have a tensor.
fn groups(student: &ModelConfig, optimizer: &OptimizerConfig) -> Vec<GroupEstimate> {
    let (rules, all) = (UpdateRules::new(optimizer), student.tensors());
    let estimate = |group: ParameterGroup| {
        let tensors: Vec<_> = all.iter().filter(|spec| spec.group == group).collect();
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

/// Operations of a step of `config` on all ranks: forward and backward pass are three passes over
/// the weights, computing a recursion again a fourth; the teacher's forward pass is one.
#[must_use]
pub fn step_operations(config: &UptrainConfig, models: RunModels<'_>) -> f64 {
    let RunModels { student, teacher } = models;
    let length = config.data.sequence_length;
    let forward =
        |model: &ModelConfig| model.cost(length, model.expected_shares().as_deref()).operations() / length as f64;
    let recompute = config.train.checkpoint_recursions;
    let passes = if recompute { 4.0 } else { 3.0 };
    let per_token = passes * forward(student) + teacher.map_or(0.0, |(teacher, _)| forward(teacher));
    let forward_passes = (config.train.gradient_accumulation * if recompute { 2 } else { 1 }) as f64;
    per_token * config.tokens_per_step() as f64 + forward_passes * student.dora_norm_operations()
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
        writeln!(
            f,
            "else                 {:.0} MiB, estimated: program, logits, merged LoRA, summed gradients",
            mib(self.other_bytes)
        )?;
        writeln!(f, "operations per step  {:.2e}", self.flops_per_step)?;
        write!(f, "time                 {:.0} s at the speed of one product, estimated", self.seconds)
    }
}
