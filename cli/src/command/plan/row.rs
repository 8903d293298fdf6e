//! A plan: a student with the way in which it is trained, and its figures.

use super::{
    figure::{Basis, Figure},
    grid::Student,
    rate::Rate,
};
use retie_config::{Kernels, ModelConfig, ParameterGroup, UptrainConfig};
use retie_convert::ParameterCounts;
use retie_trainer::{RunMemory, RunModels, run_memory, step_operations};
use serde::Serialize;

/// A student, and a teacher with the bytes of its weights.
pub type Models = (ModelConfig, Option<(ModelConfig, usize)>);

/// What the job has.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub gpus: usize,
    /// Bytes of each process.
    pub memory: usize,
    /// Seconds.
    pub budget: f64,
    /// Bytes per second between processes.
    pub link: f64,
    pub kernels: Kernels,
}

/// Most sequences of a micro-batch, and rows that make one worth running without gradient
/// checkpointing.
const MOST_SEQUENCES: usize = 64;
const ENOUGH_ROWS: usize = 2048;

/// Exponent of the recursions in effective parameters, `N_once + R^φ·N_loop`: a law of pretraining
/// looped models (<https://arxiv.org/abs/2604.21106>).
const PHI: f64 = 0.46;

/// A plan whose figures do not depend on a rate.
pub struct Candidate {
    pub label: String,
    pub student: ModelConfig,
    teacher: Option<(ModelConfig, usize)>,
    /// The run, on all processes together.
    pub run: UptrainConfig,
    pub memory: RunMemory,
    pub kind: Kind,
}

/// What a plan is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A run, as it stands in its file.
    Run,
    /// A recursive model, with a way of training that fits.
    AsItIs,
    /// A conversion that was not made yet, with a way of training that fits.
    Conversion,
}

impl Candidate {
    /// A run as it stands in its file.
    pub fn of_run(stage: Option<&str>, run: UptrainConfig, (student, teacher): Models, limits: &Limits) -> Self {
        let label = stage.map_or_else(|| "the run".to_owned(), |name| format!("stage {name}"));
        let mut plan = Self { label, student, teacher, memory: RunMemory::default(), run, kind: Kind::Run };
        plan.memory = plan.memory_of(&plan.run, limits);
        plan
    }

    /// A student with the first way of training that fits as many sequences as it takes for
    /// [`ENOUGH_ROWS`], else with the one that fits most: everything on each process, the optimizer
    /// divided among them, gradient checkpointing, both.
    pub fn search(student: Student, run: &UptrainConfig, teacher: (&ModelConfig, usize), limits: &Limits) -> Self {
        let Student { label, config, kind } = student;
        let teacher = Some((teacher.0.clone(), teacher.1));
        let mut plan = Self { label, student: config, teacher, memory: RunMemory::default(), run: run.clone(), kind };
        plan.run.train.gradient_accumulation = limits.gpus;
        let enough = ENOUGH_ROWS.div_ceil(run.data.sequence_length);
        let mut best = (0, plan.run.clone());
        for (shard, recompute) in [(false, false), (true, false), (false, true), (true, true)] {
            if shard && limits.gpus == 1 {
                continue;
            }
            let mut run = plan.run.clone();
            (run.train.shard_optimizer, run.train.checkpoint_recursions) = (shard, recompute);
            let sequences = plan.most_sequences(&mut run, limits);
            if sequences > best.0 || best.0 == 0 {
                run.train.batch_size = sequences.max(1);
                best = (sequences, run);
            }
            if best.0 >= enough {
                break;
            }
        }
        plan.run = best.1;
        plan.memory = plan.memory_of(&plan.run, limits);
        plan
    }

    /// Sequences of a micro-batch that fit, a power of two; 0 if not even one does.
    fn most_sequences(&self, run: &mut UptrainConfig, limits: &Limits) -> usize {
        let mut sequences = MOST_SEQUENCES;
        while sequences > 0 {
            run.train.batch_size = sequences;
            if self.memory_of(run, limits).total() <= limits.memory {
                break;
            }
            sequences /= 2;
        }
        sequences
    }

    /// Student and teacher as the trainer takes them.
    pub fn models(&self) -> RunModels<'_> {
        let teacher = self.teacher.as_ref().map(|(config, bytes)| (config, *bytes));
        RunModels { student: &self.student, teacher }
    }

    /// The same without a teacher: with cached logits.
    pub fn with_cached_logits(&self) -> RunModels<'_> {
        RunModels { teacher: None, ..self.models() }
    }

    pub fn memory_of(&self, run: &UptrainConfig, limits: &Limits) -> RunMemory {
        run_memory(run, self.models(), limits.kernels, limits.gpus)
    }

    pub fn fits(&self, limits: &Limits) -> bool {
        self.memory.total() <= limits.memory
    }

    /// Parameters; each shared one counts once.
    pub fn parameters(&self) -> usize {
        ParameterCounts::from_config(&self.student).total()
    }

    /// Parameters without embeddings, those of the loop times `R^φ`.
    pub fn effective_parameters(&self) -> f64 {
        let recursions = self.student.recursion.as_ref().map_or(1, |recursion| recursion.num_recursions);
        let weight = |group| match group {
            ParameterGroup::Shared => (recursions as f64).powf(PHI),
            ParameterGroup::Embeddings => 0.0,
            _ => 1.0,
        };
        self.student.tensors().iter().map(|spec| spec.num_elements() as f64 * weight(spec.group)).sum()
    }

    /// Operations of a step on one process.
    pub fn operations(&self, run: &UptrainConfig, limits: &Limits) -> f64 {
        step_operations(run, self.models()) / limits.gpus as f64
    }

    /// Recursions, LoRA rank.
    pub fn shape(&self) -> (usize, usize) {
        let recursion = self.student.recursion.as_ref();
        let rank = recursion.and_then(|recursion| recursion.lora.as_ref()).map_or(0, |lora| lora.rank);
        (recursion.map_or(1, |recursion| recursion.num_recursions), rank)
    }

    /// How a step is made, in words.
    pub fn how(&self) -> String {
        let train = &self.run.train;
        let parts = [
            (train.shard_optimizer, "optimizer divided (ZeRO-1)"),
            (train.checkpoint_recursions, "gradient checkpointing"),
        ];
        let parts: Vec<_> = parts.into_iter().filter_map(|(is_on, name)| is_on.then_some(name)).collect();
        if parts.is_empty() { "whole".to_owned() } else { parts.join(", ") }
    }
}

/// Figures of a plan.
#[derive(Debug, Serialize)]
pub struct Row {
    pub plan: String,
    pub recursions: usize,
    pub lora_rank: usize,
    pub fits: bool,
    pub parameters: Figure,
    pub weight_bytes: Figure,
    pub kv_bytes_per_token: Figure,
    pub effective_parameters: Figure,
    pub memory_bytes: Figure,
    /// Memory by part, bytes of one process.
    pub parts: RunMemory,
    pub sequences: usize,
    pub sequence_length: usize,
    pub gradient_accumulation: usize,
    pub how: String,
    pub operations_per_step: Figure,
    /// Sum of gradients between processes.
    pub communication_seconds: Figure,
    pub step_seconds: Figure,
    pub tokens_per_second: Figure,
    /// Tokens that the time buys.
    pub tokens: Figure,
    /// Of a run: its own tokens, and the time that they take.
    pub run_tokens: Option<u64>,
    pub run_seconds: Option<Figure>,
}

impl Row {
    /// Figures of `plan`; `is_measured` says that `rate` was measured in its steps.
    pub fn new(plan: &Candidate, limits: &Limits, rate: &Rate, is_measured: bool) -> Self {
        let (recursions, lora_rank) = plan.shape();
        let parameters = plan.parameters() as f64;
        let kv = plan.student.cost(1, plan.student.expected_shares().as_deref()).cache_bytes;
        let operations = plan.operations(&plan.run, limits);
        let ring = 2.0 * (limits.gpus as f64 - 1.0) / limits.gpus as f64;
        let communication = ring * (plan.memory.weights as f64) / limits.link;
        let computing = rate.seconds(plan, limits, is_measured);
        let tokens_per_step = plan.run.tokens_per_step() as f64;
        // What is computed from a figure rests on what that does.
        let derived = |value: f64| Figure {
            value,
            basis: match computing.basis {
                _ if limits.gpus > 1 => Basis::Prior,
                Basis::Measured => Basis::Computed,
                basis => basis,
            },
        };
        let seconds = computing.value + communication;
        let step = if limits.gpus > 1 { derived(seconds) } else { computing };
        let memory = match limits.kernels {
            Kernels::Cpu => Basis::Computed,
            Kernels::Gpu => Basis::Prior,
        };
        let run_tokens = (plan.kind == Kind::Run).then(|| plan.run.num_steps() * plan.run.tokens_per_step());
        Self {
            plan: plan.label.clone(),
            recursions,
            lora_rank,
            fits: plan.fits(limits),
            parameters: Figure::computed(parameters),
            weight_bytes: Figure::computed(plan.memory.weights as f64),
            kv_bytes_per_token: Figure::computed(kv),
            effective_parameters: Figure { value: plan.effective_parameters(), basis: Basis::Prior },
            memory_bytes: Figure { value: plan.memory.total() as f64, basis: memory },
            parts: plan.memory,
            sequences: plan.run.train.batch_size,
            sequence_length: plan.run.data.sequence_length,
            gradient_accumulation: plan.run.train.gradient_accumulation,
            how: plan.how(),
            operations_per_step: Figure::computed(operations),
            communication_seconds: Figure { value: communication, basis: Basis::Prior },
            step_seconds: step,
            tokens_per_second: derived(tokens_per_step / seconds),
            tokens: derived(tokens_per_step / seconds * limits.budget),
            run_seconds: run_tokens.map(|tokens| derived(tokens as f64 / tokens_per_step * seconds)),
            run_tokens,
        }
    }
}
