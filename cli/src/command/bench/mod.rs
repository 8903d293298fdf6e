//! `retie bench`: how fast a model runs here, beside what the machine could do.

mod measure;

use crate::{
    args::{DeviceArgs, DtypeArgs, JsonArgs},
    error::Status,
    model::{self, TextModel},
    number::rate,
    output,
    progress::{Progress, Unit},
};
use anyhow::ensure;
use clap::Args;
use retie_model::kernels::{ceilings, is_cpu, on_worker};
use serde::Serialize;
use std::{collections::BTreeSet, fmt};

/// Measure how fast a model runs on this machine
#[derive(Debug, Args)]
pub struct Bench {
    /// A Hugging Face folder, a .gguf file, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Tokens of a sequence, with commas between: of each sequence of a batch, and of a prompt
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "512")]
    seq: Vec<usize>,
    /// Sequences of a batch
    #[arg(long, value_name = "B", default_value_t = 4)]
    batch: usize,
    /// Tokens that are decoded after each prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    new_tokens: usize,
    /// Rounds of each measurement, of which the median counts; one more warms up
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// All figures.
#[derive(Debug, Serialize)]
struct Figures {
    model: String,
    rounds: usize,
    /// Limits of the machine; absent on devices other than the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<Machine>,
    products: Vec<Product>,
    forward: Vec<Forward>,
    generate: Vec<Generate>,
}

#[derive(Debug, Serialize)]
struct Machine {
    multiply_add_gflops: f64,
    read_gb_per_second: f64,
}

/// `x·Wᵀ` in f32.
#[derive(Debug, Serialize)]
struct Product {
    tokens: usize,
    out: usize,
    #[serde(rename = "in")]
    input: usize,
    gflops: f64,
}

/// Hidden states and logits of every token.
#[derive(Debug, Serialize)]
struct Forward {
    batch: usize,
    seq: usize,
    tokens_per_second: f64,
}

/// A prompt, and one token after the other behind it, in one sequence.
#[derive(Debug, Serialize)]
struct Generate {
    prompt: usize,
    new_tokens: usize,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    /// Seconds of both together.
    seconds: f64,
}

impl Bench {
    pub fn run(self) -> anyhow::Result<Status> {
        let sizes = [("--batch", self.batch), ("--new-tokens", self.new_tokens), ("--rounds", self.rounds)];
        for (option, value) in sizes.into_iter().chain(self.seq.iter().map(|seq| ("--seq", *seq))) {
            ensure!(value > 0, "`{option}` is 0, expected at least 1");
        }
        let device = retie_model::device(&self.device.device)?;
        let source = model::open(&self.model)?;
        let context = source.config.max_position_embeddings;
        if let Some(seq) = self.seq.iter().find(|seq| **seq + self.new_tokens > context) {
            anyhow::bail!(
                "a prompt of {seq} tokens and {} new ones do not fit the model's context of {context}\nhint: lower `--seq`",
                self.new_tokens
            );
        }
        let model = TextModel::load(&source, &device, self.dtype.get())?;
        let figures = on_worker(|| self.measure(&model));
        if self.json.json {
            output::json(&figures)?
        } else {
            output::data(&figures)?
        }
        Ok(Status::Done)
    }

    fn measure(&self, model: &TextModel) -> Figures {
        let config = model.model.config();
        let mut shapes: BTreeSet<[usize; 2]> = config.projection_shapes().into_iter().map(|(_, shape)| shape).collect();
        shapes.insert([config.vocab_size, config.hidden_size]);
        let tokens = self.batch * self.seq.iter().copied().min().unwrap_or(1);
        let mut bar = Progress::new("bench", Unit::Count("measurements"), 0);
        let total = (1 + shapes.len() + 2 * self.seq.len()) as u64;
        let mut done = 0;
        let mut step = |what: &str| {
            bar.set(done, total, what);
            done += 1;
        };
        step("machine");
        let machine = is_cpu(&model.device).then(|| {
            let limits = ceilings();
            let (gflops, gb) = (limits.flops_per_second / 1e9, limits.bytes_per_second / 1e9);
            Machine { multiply_add_gflops: gflops, read_gb_per_second: gb }
        });
        let product = |[out, input]: [usize; 2]| {
            let seconds = measure::product(tokens, [out, input], &model.device, self.rounds);
            Product { tokens, out, input, gflops: 2.0 * (tokens * out * input) as f64 / seconds / 1e9 }
        };
        let products = shapes.into_iter().map(|shape| {
            step("products");
            product(shape)
        });
        let products = products.collect();
        let (mut forward, mut generate) = (Vec::new(), Vec::new());
        for &seq in &self.seq {
            step("forward");
            let seconds = measure::forward(model, self.batch, seq, self.rounds);
            let tokens_per_second = (self.batch * seq) as f64 / seconds;
            forward.push(Forward { batch: self.batch, seq, tokens_per_second });
            step("generate");
            let seconds = measure::generate(model, seq, self.new_tokens, self.rounds);
            generate.push(Generate {
                prompt: seq,
                new_tokens: self.new_tokens,
                prefill_tokens_per_second: seq as f64 / seconds.prefill,
                decode_tokens_per_second: self.new_tokens as f64 / seconds.decode,
                seconds: seconds.prefill + seconds.decode,
            });
        }
        Figures { model: self.model.clone(), rounds: self.rounds, machine, products, forward, generate }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(machine) = &self.machine {
            let Machine { multiply_add_gflops, read_gb_per_second } = machine;
            writeln!(
                f,
                "machine   multiply-adds {multiply_add_gflops:.0} GFLOP/s, reads {read_gb_per_second:.1} GB/s"
            )?;
        }
        for Product { tokens, out, input, gflops } in &self.products {
            writeln!(f, "product   [{tokens}, {input}] · [{out}, {input}]ᵀ  {gflops:.0} GFLOP/s")?;
        }
        for Forward { batch, seq, tokens_per_second } in &self.forward {
            writeln!(f, "forward   {batch} × {seq} tokens, all logits  {} tok/s", rate(*tokens_per_second))?;
        }
        let lines = self.generate.iter().map(|g| {
            let (prefill, decode) = (rate(g.prefill_tokens_per_second), rate(g.decode_tokens_per_second));
            format!("generate  prefill {} at {prefill} tok/s, decode {} at {decode} tok/s", g.prompt, g.new_tokens)
        });
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}
