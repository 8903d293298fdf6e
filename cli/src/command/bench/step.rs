//! `retie bench step`: what one step of uptraining asks of a device, on weights and tokens that are
//! drawn. Kernels are counted by name, so that the cost of a step on a GPU can be seen, and held to
//! a budget, where there is none.

use crate::{
    args::{DeviceArgs, JsonArgs, SetArgs},
    error::Status,
    model, output,
    progress::{Progress, Unit},
};
use anyhow::{bail, ensure};
use clap::Args;
use retie_config::{Precision, UptrainConfig};
use retie_model::kernels::{Execution, Launches, Product, Work, num_reads, pool_memory, with_launches, with_work};
use retie_report::number::rate;
use retie_trainer::{RunModels, StepProbe, StepSeconds};
use serde::Serialize;
use std::{fmt, path::PathBuf};

/// Count the kernels, reads and memory of a training step, and measure its time
#[derive(Debug, Args)]
pub struct BenchStep {
    /// The run, a YAML file of `retie uptrain`; its text is not read, of its models only the shapes
    #[arg(value_name = "CONFIG.yaml")]
    config: PathBuf,
    #[command(flatten)]
    set: SetArgs,
    /// Sequences of a micro-batch, in place of `train.batch_size`
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Tokens of a sequence, in place of `data.sequence_length`
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..))]
    seq: Option<u32>,
    /// Steps that are measured, of which the median counts; one more warms up
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Compile and count the kernels, but run none: counts and memory of sizes that this machine
    /// could not hold
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// What a step takes. Memory is in bytes.
#[derive(Debug, Serialize)]
struct Figures {
    device: String,
    batch: usize,
    seq: usize,
    precision: Precision,
    dry_run: bool,
    /// Seconds of forward and backward pass, and of the update; of a dry run those of the host.
    seconds: StepSeconds,
    /// Absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    /// Transfers from the device to the host.
    reads: usize,
    /// Absent on the CPU, whose operations are functions.
    #[serde(skip_serializing_if = "Option::is_none")]
    on_device: Option<OnDevice>,
}

/// What only a device with kernels has.
#[derive(Debug, Serialize)]
struct OnDevice {
    launches: usize,
    /// By the name of the kernel.
    kernels: Launches,
    /// Time of the step on the host by launches; in a dry run nothing else takes time.
    host_microseconds_a_launch: f64,
    /// Matrix products in f32, those with the most operations first.
    products: Vec<Products>,
    /// Of factors and results of products, each once.
    bytes_of_products: u64,
    /// Of the buffers that the kernels of retie bind, each once a launch; those of other kernels
    /// are not known.
    bytes_of_kernels: u64,
    /// In tensors after the step: weights, moments.
    bytes_in_use: u64,
    /// In the pools of the device, which keep what they once needed.
    bytes_reserved: u64,
}

/// Products of one shape.
#[derive(Debug, Serialize)]
struct Products {
    #[serde(flatten)]
    shape: Product,
    count: usize,
    /// Of all of them.
    operations: u64,
}

impl Products {
    fn of(work: &Work) -> Vec<Self> {
        let of_shape = |(shape, count): (&Product, &usize)| Self {
            shape: *shape,
            count: *count,
            operations: shape.operations() * *count as u64,
        };
        let mut all: Vec<_> = work.products.iter().map(of_shape).collect();
        all.sort_by_key(|products| std::cmp::Reverse(products.operations));
        all
    }
}

impl BenchStep {
    pub fn run(self) -> anyhow::Result<Status> {
        let stages = retie_trainer::stages(&self.config, &self.set.set)?;
        let [stage] = stages.as_slice() else {
            bail!(
                "`{}` has {} stages, expected one run\nhint: take one of its stages",
                self.config.display(),
                stages.len()
            );
        };
        let mut config = stage.on_first_model();
        config.train.gradient_accumulation = 1;
        config.train.batch_size = self.batch.map_or(config.train.batch_size, |batch| batch as usize);
        config.data.sequence_length = self.seq.map_or(config.data.sequence_length, |seq| seq as usize);
        ensure!(
            config.teacher.as_ref().is_none_or(|teacher| teacher.logits.is_none()),
            "`teacher.logits` are of the text of the run, and a benchmark draws its tokens\nhint: name `teacher.model`"
        );
        let device = retie_model::device(&self.device.device)?;
        ensure!(
            !(self.dry_run && retie_model::is_host(&device)),
            "`--dry-run` counts the kernels of a GPU, and `{}` is the CPU\nhint: `--device wgpu`, in a build with it",
            self.device.device
        );
        let student = model::open(&config.student.model)?;
        let named = config.teacher.as_ref().and_then(|teacher| teacher.model.as_ref());
        let teacher = named.map(|teacher| model::open(teacher)).transpose()?;
        let models = RunModels::from_sources(&student, teacher.as_ref(), &device);
        let execution = if self.dry_run { Execution::Dry } else { Execution::Real };
        let figures = self.measure(&config, models, &device, execution)?;
        if self.json.json {
            output::json(&figures)?
        } else {
            output::data(&figures)?
        }
        Ok(Status::Done)
    }

    fn measure(
        &self,
        config: &UptrainConfig,
        models: RunModels<'_>,
        device: &burn::tensor::Device,
        execution: Execution,
    ) -> anyhow::Result<Figures> {
        let mut bar = Progress::new("bench", Unit::Count("steps"), 0);
        let total = u64::from(self.steps) + 1;
        bar.set(0, total, "weights");
        let (probe, _) = with_launches(device, execution, || StepProbe::new(config, models, device));
        let mut probe = probe?;
        let mut rounds = Vec::new();
        for done in 0..total {
            bar.set(done, total, "steps");
            let reads = num_reads();
            let ((seconds, work), launches) = with_launches(device, execution, || with_work(|| probe.step(false)));
            rounds.push((seconds?, launches, num_reads() - reads, work));
        }
        drop(bar);
        // The first compiles, and makes the moments.
        let mut rounds = rounds.split_off(1);
        rounds.sort_by(|a, b| a.0.step(1).total_cmp(&b.0.step(1)));
        let (seconds, kernels, reads, work) = rounds.swap_remove(rounds.len() / 2);
        let (batch, seq) = (config.train.batch_size, config.data.sequence_length);
        let on_device = kernels.map(|kernels| {
            let launches = kernels.values().sum();
            let memory = pool_memory(device);
            OnDevice {
                launches,
                kernels,
                host_microseconds_a_launch: seconds.step(1) * 1e6 / launches as f64,
                products: Products::of(&work),
                bytes_of_products: work.products.iter().map(|(shape, count)| shape.bytes() * *count as u64).sum(),
                bytes_of_kernels: work.bound_bytes,
                bytes_in_use: memory.map_or(0, |memory| memory.in_use),
                bytes_reserved: memory.map_or(0, |memory| memory.reserved),
            }
        });
        Ok(Figures {
            device: self.device.device.clone(),
            batch,
            seq,
            precision: config.train.precision,
            dry_run: self.dry_run,
            seconds,
            tokens_per_second: (!self.dry_run).then(|| (batch * seq) as f64 / seconds.step(1)),
            reads,
            on_device,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, batch, seq, precision, seconds, reads, .. } = self;
        let precision = match precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        };
        write!(f, "step      {batch} × {seq} tokens in {precision} on {device}: ")?;
        match self.tokens_per_second {
            Some(per_second) => write!(f, "{:.2} s, {} tok/s", seconds.step(1), rate(per_second))?,
            None => write!(f, "not run, {:.2} s on the host", seconds.step(1))?,
        }
        write!(f, "\nparts     passes {:.2} s, update {:.2} s; {reads} reads", seconds.micro_batch, seconds.update)?;
        let Some(on_device) = &self.on_device else { return Ok(()) };
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        write!(
            f,
            "\nlaunches  {}, {:.1} µs of the host each\nmemory    {:.2} GiB in the pools, {:.2} GiB of it in use between steps",
            on_device.launches,
            on_device.host_microseconds_a_launch,
            gib(on_device.bytes_reserved),
            gib(on_device.bytes_in_use),
        )?;
        let OnDevice { products, bytes_of_products, bytes_of_kernels, .. } = on_device;
        write!(
            f,
            "\nmoved     {:.2} GiB by products, {:.2} GiB by kernels of retie, each buffer once; others are not counted",
            gib(*bytes_of_products),
            gib(*bytes_of_kernels),
        )?;
        let (count, operations) =
            products.iter().fold((0, 0), |(count, sum), of| (count + of.count, sum + of.operations));
        write!(f, "\nproducts  {count} in f32, {:.2} TFLOP: batch × rows × inner × columns", operations as f64 / 1e12)?;
        for Products { shape, count, .. } in products {
            let Product { batch, rows, inner, columns } = shape;
            write!(f, "\n{count:8}  {batch} × {rows} × {inner} × {columns}")?;
        }
        write!(f, "\nkernels")?;
        let mut kernels: Vec<_> = on_device.kernels.iter().collect();
        kernels.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
        // What follows are the types that a kernel is made of.
        let short = |name: &str| name.split(" | ").take(2).collect::<Vec<_>>().join(" | ");
        kernels.into_iter().try_for_each(|(name, count)| write!(f, "\n{count:8}  {}", short(name)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn products_and_bytes_are_in_the_table_and_in_json() {
        let product = |batch, rows, inner, columns| Product { batch, rows, inner, columns };
        let products = [(product(1, 40, 8, 4), 7), (product(3, 40, 16, 32), 2)].into();
        let work = Work { products, bound_bytes: 3 << 29 };
        let on_device = OnDevice {
            launches: 10,
            kernels: [("MatmulEntry".to_owned(), 9), ("RmsNormKernel".to_owned(), 1)].into(),
            host_microseconds_a_launch: 1.0,
            products: Products::of(&work),
            bytes_of_products: 1 << 29,
            bytes_of_kernels: work.bound_bytes,
            bytes_in_use: 0,
            bytes_reserved: 0,
        };
        let figures = Figures {
            device: "wgpu".to_owned(),
            batch: 3,
            seq: 40,
            precision: Precision::F32,
            dry_run: true,
            seconds: StepSeconds { micro_batch: 1.0, update: 0.5 },
            tokens_per_second: None,
            reads: 2,
            on_device: Some(on_device),
        };
        let text = figures.to_string();
        let found: Vec<&str> = text.lines().skip(4).collect();
        assert_eq!(
            found,
            [
                "moved     0.50 GiB by products, 1.50 GiB by kernels of retie, each buffer once; others are not counted",
                "products  9 in f32, 0.00 TFLOP: batch × rows × inner × columns",
                "       2  3 × 40 × 16 × 32",
                "       7  1 × 40 × 8 × 4",
                "kernels",
                "       9  MatmulEntry",
                "       1  RmsNormKernel",
            ]
        );
        let json = serde_json::to_value(&figures).unwrap();
        let largest = json.pointer("/on_device/products/0").unwrap();
        assert_eq!(
            (&largest["rows"], &largest["count"], &largest["operations"]),
            (&40.into(), &2.into(), &245_760.into())
        );
    }
}
