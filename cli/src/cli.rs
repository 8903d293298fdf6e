//! The command line: all subcommands, and the invocation that was parsed.

#[cfg(test)]
mod tests;

use crate::{
    command,
    error::{self, Status},
    ranks,
};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Turn a pretrained language model into a Recursive Transformer, uptrain it, and measure it.
///
/// MODEL is a local Hugging Face folder (safetensors), a `.gguf` file, or a hub id such as
/// HuggingFaceTB/SmolLM2-135M. `RUST_LOG=info` shows more on stderr.
#[derive(Debug, Parser)]
#[command(name = "retie", version, max_term_width = 100, propagate_version = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Every subcommand; one file each in `command/`.
#[derive(Debug, Subcommand)]
enum Command {
    Inspect(command::inspect::Inspect),
    Convert(Box<command::convert::Convert>),
    Route(command::route::Route),
    Insert(command::insert::Insert),
    Plan(Box<command::plan::Plan>),
    Uptrain(command::uptrain::Uptrain),
    CacheLogits(command::cache_logits::CacheLogits),
    Tokenize(command::tokenize::Tokenize),
    Eval(command::eval::Eval),
    Calibrate(Box<command::calibrate::Calibrate>),
    Generate(command::generate::Generate),
    Chat(command::chat::Chat),
    Serve(Box<command::serve::Serve>),
    Export(command::export::Export),
    Card(command::card::Card),
    Push(command::push::Push),
    Bench(command::bench::Bench),
    Demo(command::demo::Demo),
    Report(command::report::ReportCommand),
    Plot(command::plot::Plot),
    #[command(subcommand)]
    Lab(command::lab::Lab),
    #[command(subcommand)]
    Probe(command::probe::Probe),
    Doctor(command::doctor::Doctor),
    Tasks(command::tasks::Tasks),
    #[command(subcommand)]
    Check(command::check::Check),
    #[command(subcommand)]
    Config(command::config::Config),
    Completions(command::completions::Completions),
    Man(command::man::Man),
}

/// A parsed command line.
pub struct Invocation {
    /// Name of the subcommand.
    name: String,
    command: Command,
}

impl Invocation {
    /// Parses the arguments of the process. Prints a message and exits on invalid arguments and on
    /// `--help`.
    pub fn parse() -> Self {
        let matches = Cli::command().try_get_matches().unwrap_or_else(|error| refuse(error));
        let name = matches.subcommand_name().unwrap_or_default().to_owned();
        let Cli { command } = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        Self { name, command }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// The command's own error, or that of a single-process command in a job of several processes.
    pub fn run(self) -> anyhow::Result<Status> {
        if !self.command.divides_its_work() {
            ranks::alone(&self.name)?;
        }
        self.command.run()
    }
}

impl Command {
    /// True for a command that divides its work among the ranks of a distributed job.
    fn divides_its_work(&self) -> bool {
        matches!(self, Self::Uptrain(_) | Self::CacheLogits(_) | Self::Eval(_))
    }

    fn run(self) -> anyhow::Result<Status> {
        match self {
            Self::Inspect(command) => command.run(),
            Self::Convert(command) => command.run(),
            Self::Route(command) => command.run(),
            Self::Insert(command) => command.run(),
            Self::Plan(command) => command.run(),
            Self::Uptrain(command) => command.run(),
            Self::CacheLogits(command) => command.run(),
            Self::Tokenize(command) => command.run(),
            Self::Eval(command) => command.run(),
            Self::Calibrate(command) => command.run(),
            Self::Generate(command) => command.run(),
            Self::Chat(command) => command.run(),
            Self::Serve(command) => command.run(),
            Self::Export(command) => command.run(),
            Self::Card(command) => command.run(),
            Self::Push(command) => command.run(),
            Self::Bench(command) => command.run(),
            Self::Demo(command) => command.run(),
            Self::Report(command) => command.run(),
            Self::Plot(command) => command.run(),
            Self::Lab(command) => command.run(),
            Self::Probe(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Tasks(command) => command.run(),
            Self::Check(command) => command.run(),
            Self::Config(command) => command.run(),
            Self::Completions(command) => command.run(Cli::command()),
            Self::Man(command) => command.run(Cli::command()),
        }
    }
}

/// Ends the process with the message of the parser; a command that was renamed is named.
fn refuse(error: clap::Error) -> ! {
    let words = command::convert::command_line().into_iter().skip(1);
    if let Some(renamed) = command::route::renamed(words) {
        std::process::exit(i32::from(error::report(&renamed)));
    }
    error.exit()
}
