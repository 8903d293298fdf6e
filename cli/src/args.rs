//! What can be typed: the subcommands, and arguments that several of them have.

use crate::{command, error::Status, ranks};
use clap::{Args, Parser, Subcommand, ValueEnum};
use retie_model::WeightDtype;

/// Turn a pretrained language model into a Recursive Transformer, uptrain it, and measure it.
///
/// MODEL is a local Hugging Face folder (safetensors), a `.gguf` file, or a hub id such as HuggingFaceTB/SmolLM2-135M.
/// `RUST_LOG=info` shows more on stderr.
#[derive(Debug, Parser)]
#[command(name = "retie", version, max_term_width = 100, propagate_version = false)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// Every subcommand; one file each in `command/`.
#[derive(Debug, Subcommand)]
pub enum Command {
    Inspect(command::inspect::Inspect),
    Convert(Box<command::convert::Convert>),
    Uptrain(command::uptrain::Uptrain),
    CacheLogits(command::cache_logits::CacheLogits),
    Tokenize(command::tokenize::Tokenize),
    Eval(command::eval::Eval),
    Generate(command::generate::Generate),
    Bench(command::bench::Bench),
    Demo(command::demo::Demo),
    Report(command::report::ReportCommand),
    Plot(command::plot::Plot),
    Doctor(command::doctor::Doctor),
    Tasks(command::tasks::Tasks),
    #[command(subcommand)]
    Check(command::check::Check),
    #[command(subcommand)]
    Config(command::config::Config),
}

impl Command {
    /// Does it.
    pub fn run(self) -> anyhow::Result<Status> {
        self.check_ranks()?;
        match self {
            Self::Inspect(command) => command.run(),
            Self::Convert(command) => command.run(),
            Self::Uptrain(command) => command.run(),
            Self::CacheLogits(command) => command.run(),
            Self::Tokenize(command) => command.run(),
            Self::Eval(command) => command.run(),
            Self::Generate(command) => command.run(),
            Self::Bench(command) => command.run(),
            Self::Demo(command) => command.run(),
            Self::Report(command) => command.run(),
            Self::Plot(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Tasks(command) => command.run(),
            Self::Check(command) => command.run(),
            Self::Config(command) => command.run(),
        }
    }

    /// Refuses what is for one process where a launcher has started several.
    fn check_ranks(&self) -> anyhow::Result<()> {
        let name = match self {
            Self::Uptrain(_) | Self::CacheLogits(_) | Self::Eval(_) => return Ok(()),
            Self::Inspect(_) => "inspect",
            Self::Convert(_) => "convert",
            Self::Tokenize(_) => "tokenize",
            Self::Generate(_) => "generate",
            Self::Bench(_) => "bench",
            Self::Demo(_) => "demo",
            Self::Report(_) => "report",
            Self::Plot(_) => "plot",
            Self::Doctor(_) => "doctor",
            Self::Tasks(_) => "tasks",
            Self::Check(_) => "check",
            Self::Config(_) => "config",
        };
        ranks::alone(name)
    }
}

/// `--device`.
#[derive(Clone, Debug, Args)]
pub struct DeviceArgs {
    /// Where to compute: auto, cpu, wgpu, wgpu:N, cuda, cuda:N; auto takes the first of CUDA, WGPU, CPU that this binary and this machine have
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
}

/// `--dtype`, for commands that only read a model.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct DtypeArgs {
    /// Hold matrices in this type; sums are f32 throughout. `auto` keeps bf16 where the file has bf16 (CPU), else f32
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    dtype: DtypeArg,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum DtypeArg {
    #[default]
    Auto,
    F32,
    Bf16,
}

impl DtypeArgs {
    /// What was chosen.
    pub fn get(self) -> WeightDtype {
        match self.dtype {
            DtypeArg::Auto => WeightDtype::Auto,
            DtypeArg::F32 => WeightDtype::F32,
            DtypeArg::Bf16 => WeightDtype::Bf16,
        }
    }
}

/// `--set`, for commands that read a YAML file.
#[derive(Clone, Debug, Default, Args)]
pub struct SetArgs {
    /// Replace a value of the file, e.g. `--set train.steps=10`; the value is YAML
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `--json`, for commands that report.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct JsonArgs {
    /// Print JSON on stdout
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests;
