//! `retie plan`: what uptraining would cost, before it costs anything.
//!
//! Parameters, keys and values, operations and memory are those of the one cost model
//! ([`retie_config::ModelConfig::cost`], [`retie_trainer::run_memory`]). Time is operations by a
//! rate, which is measured here or taken from earlier measurements.

mod figure;
mod grid;
mod rate;
mod recommend;
mod render;
mod row;

use crate::{
    args::{JsonArgs, parse_duration},
    error::Status,
    model, output,
};
use anyhow::{bail, ensure};
use clap::Args;
use rate::Rate;
use recommend::{nothing_fits, recommended};
use retie_config::{Budget, ByteSize, Kernels};
use retie_model::{CausalLm, WeightDtype};
use retie_trainer::RunModels;
use row::{Candidate, Kind, Limits, Row};
use serde::Serialize;
use std::{path::Path, time::Duration};

/// Longest sequences that are planned with, unless others are asked for, in tokens.
const LONGEST: usize = 2048;

/// Say what uptraining would cost, by sharing pattern, recursions and LoRA rank
#[derive(Debug, Args)]
pub struct Plan {
    /// The model to convert, whose own original is then the teacher; or a run, a YAML file of
    /// `retie uptrain`, as it stands there
    #[arg(value_name = "MODEL|CONFIG.yaml")]
    input: String,
    /// Processes that train together, with a device each
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    gpus: u32,
    /// Memory of each, e.g. 80GiB
    #[arg(long, value_name = "SIZE")]
    memory: ByteSize,
    /// Time that training may take, e.g. 100h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    budget: Duration,
    /// Measure the rate in steps of the recommended plan, or of the run, on this machine
    #[arg(long)]
    measure: bool,
    /// What the processes compute on. `auto` is a GPU, and with `--measure` the first of CUDA,
    /// WGPU, CPU that is here
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Operations of a step per second and device in TFLOP/s, in place of what was measured for a
    /// model of 135M parameters on one H100
    #[arg(long, value_name = "TFLOPS", conflicts_with = "measure")]
    rate: Option<f64>,
    /// Bytes per second that the link between processes carries
    #[arg(long, value_name = "SIZE", default_value = "12.5GB")]
    link: ByteSize,
    #[command(flatten)]
    grid: GridArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// Plans that are compared, of a model to convert.
#[derive(Debug, Args)]
struct GridArgs {
    /// Numbers of recursions
    #[arg(long, value_name = "R", value_delimiter = ',', default_value = "2,3,4")]
    recursions: Vec<usize>,
    /// Ranks of the LoRA; 0 for none
    #[arg(long, value_name = "RANK", value_delimiter = ',', default_value = "0,64,256")]
    lora_rank: Vec<usize>,
    /// Tokens of a sequence; 2,048 or the model's context, whichever is less, if absent
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    sequence_length: Option<u32>,
    /// Weights that a recommended plan may have: a number, bytes, or a part of the model's
    #[arg(long, value_name = "BUDGET", default_value = "75%")]
    size: Budget,
}

/// Result of `retie plan`.
#[derive(Debug, Serialize)]
struct Report {
    /// What was planned.
    input: String,
    gpus: usize,
    memory_bytes: u64,
    budget_seconds: f64,
    rate: Rate,
    rows: Vec<Row>,
    /// Index of the recommended row.
    recommended: usize,
    reason: String,
}

impl Plan {
    pub fn run(self) -> anyhow::Result<Status> {
        let rate = self.rate.map_or(Ok(None), |rate| {
            ensure!(rate.is_finite() && rate > 0.0, "`--rate` is `{rate}`, expected a number above 0");
            Ok(Some(rate * 1e12))
        })?;
        let device = self.measure.then(|| retie_model::device(&self.device)).transpose()?;
        let kernels = match &device {
            Some(device) => retie_trainer::kernels(device),
            None if self.device == "cpu" => Kernels::Cpu,
            None => Kernels::Gpu,
        };
        let limits = Limits {
            gpus: self.gpus as usize,
            memory: self.memory.bytes() as usize,
            budget: self.budget.as_secs_f64(),
            link: self.link.bytes() as f64,
            kernels,
        };
        let plans = if is_config(&self.input) { self.of_config(&limits)? } else { self.of_model(&limits)? };
        let Some(index) = recommended(&plans.candidates, &limits, plans.size) else {
            bail!(nothing_fits(&plans.candidates, &limits));
        };
        let rate = match &device {
            Some(device) => Rate::measured(&plans.candidates[index], &limits, device)?,
            None => Rate::prior(rate, kernels),
        };
        let rows: Vec<Row> =
            plans.candidates.iter().enumerate().map(|(at, plan)| Row::new(plan, &limits, &rate, at == index)).collect();
        let reason = recommend::reason(&plans.candidates, index, &limits, plans.size);
        let report = Report {
            input: self.input.clone(),
            gpus: limits.gpus,
            memory_bytes: self.memory.bytes(),
            budget_seconds: limits.budget,
            rate,
            rows,
            recommended: index,
            reason,
        };
        if self.json.json {
            output::json(&report)?;
        } else {
            output::data(&report)?;
        }
        output::next(&self.next(&plans.candidates[index]));
        Ok(Status::Done)
    }

    /// The stages of a run.
    fn of_config(&self, limits: &Limits) -> anyhow::Result<Plans> {
        let stages = retie_trainer::stages(Path::new(&self.input), &[])?;
        let mut candidates = Vec::new();
        for stage in stages {
            let config = stage.on_first_model();
            let accumulation = config.train.gradient_accumulation;
            ensure!(
                accumulation.is_multiple_of(limits.gpus),
                "`train.gradient_accumulation` is {accumulation}, expected a multiple of the {} processes of `--gpus`",
                limits.gpus
            );
            let student = model::open(&config.student.model)?;
            let named = config.teacher.as_ref().and_then(|teacher| teacher.model.as_ref());
            let teacher = named.map(|teacher| model::open(teacher)).transpose()?;
            let cached = config.teacher.as_ref().is_some_and(|teacher| teacher.logits.is_some());
            ensure!(
                !(self.measure && cached),
                "`--measure` draws its tokens, and `teacher.logits` are of other ones\nhint: leave one of them out"
            );
            let device = retie_model::device("cpu")?;
            let RunModels { student, teacher } = RunModels::from_sources(&student, teacher.as_ref(), &device);
            let models = (student.clone(), teacher.map(|(config, bytes)| (config.clone(), bytes)));
            candidates.push(Candidate::of_run(stage.name.as_deref(), config, models, limits));
        }
        Ok(Plans { candidates, size: None })
    }

    /// Every pattern, number of recursions and rank for a model, or a recursive model as it is.
    fn of_model(&self, limits: &Limits) -> anyhow::Result<Plans> {
        let source = model::open(&self.input)?;
        let config = &source.config;
        let length = match self.grid.sequence_length {
            Some(length) => length as usize,
            None => config.max_position_embeddings.min(LONGEST),
        };
        let (teacher, bytes) = match &config.recursion {
            // What it was converted from is not known: a model of its depths.
            Some(_) => {
                let unrolled = config.unrolled();
                let elements: usize = unrolled.tensors().iter().map(|spec| spec.num_elements()).sum();
                (unrolled, 2 * elements)
            }
            None => {
                let device = retie_model::device("cpu")?;
                (config.clone(), CausalLm::weight_bytes(config, source.tensors.as_ref(), &device, WeightDtype::Auto))
            }
        };
        let students = match &config.recursion {
            Some(_) => vec![grid::Student::as_it_is(config)],
            None => grid::students(config, &self.grid)?,
        };
        let run = grid::run(&self.input, length)?;
        let candidate = |student: grid::Student| Candidate::search(student, &run, (&teacher, bytes), limits);
        let candidates = students.into_iter().map(candidate).collect();
        let (elements, stored) = (teacher.tensors().iter().map(|spec| spec.num_elements()).sum(), 4);
        let size = config.recursion.is_none().then(|| self.grid.size.parameters(elements, stored));
        Ok(Plans { candidates, size })
    }

    /// The command that comes next.
    fn next(&self, plan: &Candidate) -> String {
        let input = output::word(Path::new(&self.input));
        match (plan.kind, &plan.student.recursion) {
            (Kind::Run, _) => format!("retie uptrain {input} --dry-run"),
            (Kind::Conversion, Some(recursion)) => {
                let rank =
                    recursion.lora.as_ref().map(|lora| format!(" --lora-rank {}", lora.rank)).unwrap_or_default();
                let (sharing, count) = (recursion.sharing, recursion.num_recursions);
                format!("retie convert {input} --recursions {count} --sharing {sharing} --init average{rank} -o DIR")
            }
            _ => format!("retie inspect {input}"),
        }
    }
}

/// Plans, and the parameters that a recommended one may have.
struct Plans {
    candidates: Vec<Candidate>,
    size: Option<usize>,
}

fn is_config(input: &str) -> bool {
    Path::new(input).extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}
