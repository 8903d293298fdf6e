//! `retie bench`: speed of a model on this machine, beside the limits of the machine. A routed
//! model is also compared with itself at the full recursion count.

mod measure;
mod routed;
mod serve;
mod step;

use crate::{
    args::{CaptureArgs, DeviceArgs, DtypeArgs, JsonArgs},
    error::Status,
    model::{self, TextModel},
    output,
    progress::{Progress, Unit},
};
use anyhow::ensure;
use clap::{Args, Subcommand};
use retie_model::kernels::{kernels_of, on_worker};
use retie_report::number::rate;
use routed::{Routed, Sizes};
use serde::Serialize;
use std::{collections::BTreeSet, fmt, path::PathBuf};

/// Measure how fast a model runs on this machine
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Bench {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    model: BenchModel,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    Serve(Box<serve::BenchServe>),
    Step(step::BenchStep),
}

/// The benchmark of a model alone.
#[derive(Debug, Args)]
struct BenchModel {
    /// A Hugging Face folder, a .gguf file, or a hub id
    // An option for the parser, which asks for it where there is no subcommand.
    #[arg(value_name = "MODEL", required = true)]
    model: Option<String>,
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
    /// Measure the matrix products alone
    #[arg(long, conflicts_with_all = ["text", "new_tokens"])]
    products_only: bool,
    /// Text of which a routed model decodes parts, as it is and at full depth; of .jsonl and
    /// .parquet files the field `text`
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Sequences that it decodes at once, with commas between
    #[arg(long, value_name = "B", value_delimiter = ',', default_value = "1,8", requires = "text")]
    decode_batch: Vec<usize>,
    /// Measure the time of a pass over a token of each of so many sequences, with commas between,
    /// behind prompts of the first of `--seq`
    #[arg(long, value_name = "ROWS", value_delimiter = ',')]
    pass_rows: Vec<usize>,
    #[command(flatten)]
    dtype: DtypeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    capture: CaptureArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// All figures of a benchmark.
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
    /// Passes over one token of each of several sequences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    passes: Vec<Pass>,
    /// Decoding of a routed model on a text, by prompt length and batch size.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routed: Vec<Routed>,
}

#[derive(Debug, Serialize)]
struct Machine {
    multiply_add_gflops: f64,
    read_gb_per_second: f64,
}

/// Speed of the product `x·Wᵀ` in f32.
#[derive(Debug, Serialize)]
struct Product {
    tokens: usize,
    out: usize,
    #[serde(rename = "in")]
    input: usize,
    gflops: f64,
}

/// Speed of a forward pass with the logits of every token.
#[derive(Debug, Serialize)]
struct Forward {
    batch: usize,
    seq: usize,
    tokens_per_second: f64,
}

/// Speed of prefilling a prompt and of decoding the tokens after it, in one sequence.
#[derive(Debug, Serialize)]
struct Generate {
    prompt: usize,
    new_tokens: usize,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    /// Seconds of prefill and decoding together.
    seconds: f64,
}

/// Time of a pass over one token of each of `rows` sequences.
#[derive(Debug, Serialize)]
struct Pass {
    rows: usize,
    /// Tokens of each sequence before the first pass.
    prompt: usize,
    seconds: f64,
    tokens_per_second: f64,
}

impl Bench {
    pub fn run(self) -> anyhow::Result<Status> {
        match self.command {
            Some(BenchCommand::Serve(command)) => command.run(),
            Some(BenchCommand::Step(command)) => command.run(),
            None => self.model.run(),
        }
    }
}

impl BenchModel {
    fn run(self) -> anyhow::Result<Status> {
        let sizes = [("--batch", self.batch), ("--new-tokens", self.new_tokens), ("--rounds", self.rounds)];
        let lists = [("--seq", &self.seq), ("--decode-batch", &self.decode_batch), ("--pass-rows", &self.pass_rows)];
        let lists = lists.into_iter().flat_map(|(option, values)| values.iter().map(move |value| (option, *value)));
        for (option, value) in sizes.into_iter().chain(lists) {
            ensure!(value > 0, "`{option}` is 0, expected at least 1");
        }
        self.capture.apply();
        let device = retie_model::device(&self.device.device)?;
        let source = model::open(self.spec())?;
        let context = source.config.max_position_embeddings;
        if let Some(seq) = self.prompts().iter().find(|seq| **seq + self.new_tokens >= context) {
            anyhow::bail!(
                "a prompt of {seq} tokens and {} new ones, the first of them with the prompt, do not fit the model's context of {context}\nhint: lower `--seq`",
                self.new_tokens + 1
            );
        }
        let text = self.text.as_deref().map(retie_data::joined_text).transpose()?;
        let model = TextModel::load(&source, &device, self.dtype.get())?;
        ensure!(
            model.model.router().is_some() || text.is_none(),
            "`{}` has no router whose decoding could be measured on a text\nhint: leave `--text` out",
            self.spec()
        );
        let tokens = text.map(|text| model.tokenizer.encode_start(&text)).transpose()?;
        let tokens = tokens.as_deref();
        tokens.map_or(Ok(()), |tokens| self.routed_sizes().try_for_each(|sizes| routed::check(tokens, sizes)))?;
        let figures = on_worker(|| self.measure(&model, tokens))?;
        if self.json.json {
            output::json(&figures)?
        } else {
            output::data(&figures)?
        }
        Ok(Status::Done)
    }

    /// MODEL.
    fn spec(&self) -> &str {
        self.model.as_deref().unwrap_or_default()
    }

    /// Lengths of the sequences that are run through the model; none with `--products-only`.
    fn prompts(&self) -> &[usize] {
        if self.products_only { &[] } else { &self.seq }
    }

    /// Sizes with which a routed model decodes a text: every prompt length with every batch size.
    fn routed_sizes(&self) -> impl Iterator<Item = Sizes> {
        let new_tokens = self.new_tokens;
        let sizes = move |prompt| move |batch: &usize| Sizes { batch: *batch, prompt, new_tokens };
        self.seq.iter().flat_map(move |prompt| self.decode_batch.iter().map(sizes(*prompt)))
    }

    fn measure(&self, model: &TextModel, text: Option<&[u32]>) -> anyhow::Result<Figures> {
        let config = model.model.config();
        let mut shapes: BTreeSet<[usize; 2]> = config.projection_shapes().into_iter().map(|(_, shape)| shape).collect();
        shapes.insert([config.vocab_size, config.hidden_size]);
        let tokens = self.batch * self.seq.iter().copied().min().unwrap_or(1);
        let mut bar = Progress::new("bench", Unit::Count("measurements"), 0);
        let decodings = text.map_or(0, |_| self.seq.len() * self.decode_batch.len());
        let total = (1 + shapes.len() + 2 * self.prompts().len() + self.pass_rows.len() + decodings) as u64;
        let mut done = 0;
        let mut step = |what: &str| {
            bar.set(done, total, what);
            done += 1;
        };
        step("machine");
        let machine = kernels_of(&model.device).ceilings().map(|limits| {
            let (gflops, gb) = (limits.flops_per_second / 1e9, limits.bytes_per_second / 1e9);
            Machine { multiply_add_gflops: gflops, read_gb_per_second: gb }
        });
        let product = |[out, input]: [usize; 2]| {
            let seconds = measure::product(tokens, [out, input], &model.device, self.rounds)?;
            anyhow::Ok(Product { tokens, out, input, gflops: 2.0 * (tokens * out * input) as f64 / seconds / 1e9 })
        };
        let products = shapes.into_iter().map(|shape| {
            step("products");
            product(shape)
        });
        let products = products.collect::<anyhow::Result<_>>()?;
        let (mut forward, mut generate) = (Vec::new(), Vec::new());
        for &seq in self.prompts() {
            step("forward");
            let seconds = measure::forward(model, self.batch, seq, self.rounds)?;
            let tokens_per_second = (self.batch * seq) as f64 / seconds;
            forward.push(Forward { batch: self.batch, seq, tokens_per_second });
            step("generate");
            let seconds = measure::generate(model, seq, self.new_tokens, self.rounds)?;
            generate.push(Generate {
                prompt: seq,
                new_tokens: self.new_tokens,
                prefill_tokens_per_second: seq as f64 / seconds.prefill,
                decode_tokens_per_second: self.new_tokens as f64 / seconds.decode,
                seconds: seconds.prefill + seconds.decode,
            });
        }
        let (mut passes, prompt) = (Vec::new(), self.prompts().first().copied().unwrap_or(1));
        for &rows in &self.pass_rows {
            step("passes");
            let seconds = measure::pass(model, rows, prompt, self.new_tokens)?;
            passes.push(Pass { rows, prompt, seconds, tokens_per_second: rows as f64 / seconds });
        }
        let mut routed = Vec::new();
        for (sizes, text) in self.routed_sizes().zip(std::iter::repeat(text)) {
            let Some(text) = text else { break };
            step("decode");
            routed.push(routed::measure(model, text, sizes, self.rounds)?);
        }
        let (model, rounds) = (self.spec().to_owned(), self.rounds);
        Ok(Figures { model, rounds, machine, products, forward, generate, passes, routed })
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
        let passes = self.passes.iter().map(|Pass { rows, prompt, seconds, tokens_per_second }| {
            format!(
                "pass      {rows} rows behind {prompt} tokens  {:.1} ms, {} tok/s",
                1e3 * seconds,
                rate(*tokens_per_second)
            )
        });
        let lines = lines.chain(passes).chain(self.routed.iter().map(ToString::to_string));
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}
