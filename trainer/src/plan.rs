//! `--dry-run`: what a run would train, and an estimate of its memory and time.

use crate::{TrainError, agreement::check_ranks, inputs::Inputs, routing::capacity};
use burn::tensor::{Device, Distribution, Tensor};
use retie_checkpoint::{Dtype, ModelSource, expected_tensors, share_map};
use retie_config::{DepthPlan, Group, LoraConfig, ModelConfig, OptimizerConfig, Relax, ShareMap, UptrainConfig};
use retie_model::kernels::is_cpu;
use serde::Serialize;
use std::{fmt, time::Instant};

/// Parameters that the optimizer treats alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParameterGroup {
    /// The group's.
    pub name: &'static str,
    /// Factor of the learning rate; 0: frozen.
    pub lr: f64,
    /// Of its matrices; of norms and biases, where it has no matrix.
    pub weight_decay: f64,
    /// Tensors in it.
    pub tensors: usize,
    /// Elements in it.
    pub parameters: usize,
}

/// What a run would be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunPlan {
    /// Processes that train together.
    pub ranks: usize,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of one step.
    pub tokens_per_step: u64,
    /// Parameters by treatment.
    pub groups: Vec<ParameterGroup>,
    /// Weights, gradients and moments of the student on a rank, in bytes.
    pub student_bytes: usize,
    /// Weights of the teacher, in bytes.
    pub teacher_bytes: usize,
    /// What the backward pass of one micro-batch keeps, in bytes: an estimate.
    pub activation_bytes: usize,
    /// Multiply-adds of one step counted as two operations each.
    pub flops_per_step: f64,
    /// Time of the whole run, from the speed of a product of the model's size measured now, in seconds: an estimate.
    pub seconds: f64,
}

/// Opens and checks the inputs of `config` and estimates what it takes on each of `ranks` ranks; nothing is written or trained.
///
/// # Errors
/// When a model or tokenizer is missing or does not fit.
pub fn plan(config: &UptrainConfig, device: &Device, ranks: usize) -> Result<RunPlan, TrainError> {
    check_ranks(config, ranks)?;
    let inputs = Inputs::open(config, None)?;
    let student = Sizes::of(&inputs.student)?;
    let teacher = inputs.teacher.as_ref().map(Sizes::of).transpose()?;
    let tokens = config.train.batch_size * config.data.sequence_length;
    let length = config.data.sequence_length;
    let tokens_per_step = config.tokens_per_step();
    // Forward and backward are three passes over the weights, computing a recursion again a fourth; the teacher's forward is one.
    let checkpoint = config.train.checkpoint_recursions;
    let student_passes = if checkpoint { 4.0 } else { 3.0 };
    let flops_per_token =
        student_passes * student.forward_flops(length) + teacher.as_ref().map_or(0.0, |t| t.forward_flops(length));
    // The norms of DoRA are found in every forward pass, whatever the number of tokens.
    let forward_passes = (config.train.gradient_accumulation * if checkpoint { 2 } else { 1 }) as f64;
    let flops_per_step = flops_per_token * tokens_per_step as f64 + forward_passes * student.norm_flops();
    let groups = student.groups(&config.optimizer);
    let trained: usize = groups.iter().filter(|group| group.lr > 0.0).map(|group| group.parameters).sum();
    let speed = product_speed(&inputs.student.config, tokens, device);
    let moments = if config.train.shard_optimizer { (2 * trained).div_ceil(ranks) } else { 2 * trained };
    Ok(RunPlan {
        ranks,
        steps: config.num_steps(),
        tokens_per_step,
        groups,
        student_bytes: (student.parameters() + trained + moments) * 4,
        teacher_bytes: inputs.teacher.as_ref().map(|teacher| held_bytes(teacher, device)).transpose()?.unwrap_or(0),
        activation_bytes: student.activations_per_token(checkpoint) * tokens * 4,
        flops_per_step,
        seconds: flops_per_step / (speed * ranks as f64) * config.num_steps() as f64,
    })
}

/// Bytes of the weights of a model that is only read: what its file holds in bf16 stays so on the CPU.
fn held_bytes(source: &ModelSource, device: &Device) -> Result<usize, TrainError> {
    let bytes = |(name, shape): (String, Vec<usize>)| {
        let stored = source.tensors.info(&name).map(|info| info.dtype);
        let narrow = is_cpu(device) && shape.len() == 2 && stored == Some(Dtype::BF16);
        elements(&shape) * if narrow { 2 } else { 4 }
    };
    Ok(expected_tensors(&source.config)?.into_iter().map(bytes).sum())
}

struct Sizes {
    config: ModelConfig,
    map: ShareMap,
    tensors: Vec<(String, Vec<usize>)>,
    /// Elements of matrices that one token is multiplied with in the mean, each use counted.
    used: f64,
    /// For each depth, which part of the tokens go through it.
    parts: Vec<f64>,
}

fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

impl Sizes {
    fn of(source: &ModelSource) -> Result<Self, TrainError> {
        let config = source.config.clone();
        let tensors = expected_tensors(&config)?;
        let map = share_map(&config)?;
        let layer: usize = config.projection_shapes().iter().map(|(_, shape)| elements(shape)).sum();
        let lora: usize =
            tensors.iter().filter(|(name, _)| name.contains(".lora_")).map(|(_, shape)| elements(shape)).sum();
        let head = config.vocab_size * config.hidden_size;
        let parts: Vec<f64> = map.depths().iter().map(|step| capacity(&config, step.recursion)).collect();
        let shared =
            map.depths().iter().zip(&parts).filter(|(step, _)| map.is_shared(step.layer)).map(|(_, part)| part);
        let mean = shared.clone().sum::<f64>() / shared.count().max(1) as f64;
        let used = layer as f64 * parts.iter().sum::<f64>() + lora as f64 * mean + head as f64;
        Ok(Self { config, map, tensors, used, parts })
    }

    fn parameters(&self) -> usize {
        self.tensors.iter().map(|(_, shape)| elements(shape)).sum()
    }

    /// The groups that have a tensor.
    fn groups(&self, optimizer: &OptimizerConfig) -> Vec<ParameterGroup> {
        let of = |group: Group| {
            let shapes: Vec<_> = self.tensors.iter().filter(|(name, _)| Group::of(name, &self.map) == group).collect();
            let rank = shapes.iter().map(|(_, shape)| shape.len()).max()?;
            Some(ParameterGroup {
                name: group.name(),
                lr: optimizer.groups.get(group).lr,
                weight_decay: optimizer.weight_decay_of(group, rank),
                tensors: shapes.len(),
                parameters: shapes.iter().map(|(_, shape)| elements(shape)).sum(),
            })
        };
        Group::ALL.into_iter().filter_map(of).collect()
    }

    /// Operations of one token's forward pass in sequences of `length`; attention sees half of them in the mean, and of a recursion
    /// that takes a part of the tokens that part of that part.
    fn forward_flops(&self, length: usize) -> f64 {
        let attention = 2 * self.config.query_size() * length;
        2.0 * self.used + attention as f64 * self.parts.iter().map(|part| part * part).sum::<f64>()
    }

    /// The LoRA, if it has magnitudes.
    fn dora(&self) -> Option<&LoraConfig> {
        self.config.recursion.as_ref()?.lora.as_ref().filter(|lora| lora.relax == Relax::Dora)
    }

    /// Operations of the norms of all `W' + B A`.
    fn norm_flops(&self) -> f64 {
        let Some(dora) = self.dora() else { return 0.0 };
        let shapes = self.config.projection_shapes();
        let of = |(step, (name, shape)): (&DepthPlan, &(&str, [usize; 2]))| match dora.rank_at(step.depth, name, *shape)
        {
            0 => 0,
            rank => 2 * (rank + 1) * elements(shape),
        };
        let shared = self.map.depths().iter().filter(|step| self.map.is_shared(step.layer));
        shared.flat_map(|step| shapes.iter().map(move |shape| (step, shape))).map(of).sum::<usize>() as f64
    }

    /// Elements that the stack keeps for its backward pass. A depth keeps two norm inputs and outputs, q and k after the rotation, v,
    /// the attention's output, gate and up; with DoRA also what its linears give before they are rescaled. With `checkpoint` one recursion
    /// does at a time, and the others only what enters them.
    fn activations_per_token(&self, checkpoint: bool) -> usize {
        let c = &self.config;
        let mut depth = 4 * c.hidden_size + 2 * c.query_size() + 2 * c.key_value_size() + 2 * c.intermediate_size;
        if let Some(dora) = self.dora() {
            let rescaled = |step: &&DepthPlan| self.map.is_shared(step.layer);
            let shapes = c.projection_shapes();
            let of = |step: &DepthPlan| -> usize {
                let with = shapes.iter().filter(|(name, shape)| dora.rank_at(step.depth, name, *shape) > 0);
                with.map(|(_, [out, _])| out).sum()
            };
            depth += self.map.depths().iter().filter(rescaled).map(of).max().unwrap_or(0);
        }
        if !checkpoint {
            return (depth as f64 * self.parts.iter().sum::<f64>()) as usize;
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

impl fmt::Display for RunPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
        writeln!(f, "steps                {} of {} tokens", self.steps, self.tokens_per_step)?;
        if self.ranks > 1 {
            writeln!(f, "ranks                {}, each with an equal part of the micro-batches", self.ranks)?;
        }
        for group in &self.groups {
            let ParameterGroup { name, lr, weight_decay, tensors, parameters } = group;
            let treatment = match lr {
                0.0 => "frozen".to_owned(),
                _ => format!("rate × {lr}, decay {weight_decay}"),
            };
            writeln!(f, "{name:<20} {parameters} parameters in {tensors} tensors, {treatment}")?;
        }
        writeln!(f, "student              {:.0} MiB: weights, gradients, two moments", mib(self.student_bytes))?;
        writeln!(f, "teacher              {:.0} MiB", mib(self.teacher_bytes))?;
        writeln!(f, "activations          {:.0} MiB, estimated", mib(self.activation_bytes))?;
        writeln!(f, "operations per step  {:.2e}", self.flops_per_step)?;
        write!(f, "time                 {:.0} s at the speed of one product, estimated", self.seconds)
    }
}
