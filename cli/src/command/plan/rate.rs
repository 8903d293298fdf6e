//! Operations of training per second on one device.

use super::{
    figure::{Basis, Figure},
    row::{Candidate, Limits},
};
use burn::tensor::Device;
use retie_config::Kernels;
use retie_trainer::{StepSeconds, measure_step};
use serde::Serialize;

/// Operations per second in whole training steps of SmolLM2-135M (two recursions, LoRA 64, teacher,
/// f32) on an H100: docs/results/gpu.md.
const H100: f64 = 11e12;
/// The same on two cores of an EPYC (Zen 5): docs/results/peers.md.
const TWO_CORES: f64 = 0.32e12;

/// Most rows of a micro-batch that is measured on the CPU.
const MOST_ROWS: usize = 4096;

/// Rate of a device.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    pub operations_per_second: Figure,
    /// Where it comes from.
    pub from: String,
    /// Times of a step, if they were measured in the plan's own micro-batches.
    pub measured: Option<StepSeconds>,
}

impl Rate {
    /// `given`, or what was measured before.
    pub fn prior(given: Option<f64>, kernels: Kernels) -> Self {
        let (value, from) = match (given, kernels) {
            (Some(rate), _) => (rate, "`--rate`"),
            (None, Kernels::Gpu) => (H100, "one H100 in f32, a model of 135M parameters"),
            (None, Kernels::Cpu) => (TWO_CORES, "two cores of an EPYC (Zen 5), a model of 135M parameters"),
        };
        let operations_per_second = Figure { value, basis: Basis::Prior };
        Self { operations_per_second, from: from.to_owned(), measured: None }
    }

    /// Measured in steps of `plan` on `device`; on the CPU with fewer sequences, if it has many.
    ///
    /// # Errors
    /// When its models cannot be built.
    pub fn measured(plan: &Candidate, limits: &Limits, device: &Device) -> anyhow::Result<Self> {
        let mut run = plan.run.clone();
        run.train.gradient_accumulation = 1;
        let length = run.data.sequence_length;
        if limits.kernels == Kernels::Cpu {
            run.train.batch_size = run.train.batch_size.min((MOST_ROWS / length).max(1));
        }
        let seconds = measure_step(&run, plan.models(), device)?;
        let one = Limits { gpus: 1, ..*limits };
        let value = plan.operations(&run, &one) / seconds.step(1);
        let sequences = run.train.batch_size;
        Ok(Self {
            operations_per_second: Figure { value, basis: Basis::Measured },
            from: format!("steps of {sequences} × {length} tokens of the recommended plan"),
            measured: (sequences == plan.run.train.batch_size).then_some(seconds),
        })
    }

    /// Time of a step of `plan` on one process; `is_measured` says that it is the plan whose steps
    /// were measured.
    pub fn seconds(&self, plan: &Candidate, limits: &Limits, is_measured: bool) -> Figure {
        if let Some(seconds) = self.measured.filter(|_| is_measured) {
            let micro_batches = plan.run.train.gradient_accumulation / limits.gpus;
            return Figure { value: seconds.step(micro_batches), basis: Basis::Measured };
        }
        let value = plan.operations(&plan.run, limits) / self.operations_per_second.value;
        let basis = match self.operations_per_second.basis {
            Basis::Measured => Basis::Computed,
            basis => basis,
        };
        Figure { value, basis }
    }
}
