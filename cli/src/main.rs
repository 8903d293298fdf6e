//! The command line `retie`: the composition root. It wires the libraries together and knows terminals, exit codes and signals;
//! everything that computes lives in the libraries.
//!
//! stdout is data, stderr is progress and logs. Exit codes: see [`error`].

mod args;
mod calibration;
mod command;
mod console;
mod dashboard;
mod error;
mod logging;
mod machine;
mod model;
mod number;
mod output;
mod png;
mod progress;
mod ranks;
mod signal;

use clap::Parser;
use std::process::ExitCode;

/// A step of training makes and drops gigabytes of tensors; the system allocator gives them back to the kernel each time.
#[global_allocator]
static ALLOCATOR: retie_model::kernels::Allocator = retie_model::kernels::Allocator;

fn main() -> ExitCode {
    retie_model::kernels::keep_freed_memory();
    let args = args::Cli::parse();
    let result = logging::start().and_then(|()| args.command.run());
    error::exit_code(result)
}
