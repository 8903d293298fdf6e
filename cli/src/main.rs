//! The command line `retie`: the composition root. It wires the libraries together and knows
//! terminals, exit codes and signals; everything that computes lives in the libraries.
//!
//! stdout is data, stderr is progress and logs. Exit codes: see [`error`].

mod args;
mod bars;
mod calibration;
mod choice;
mod cli;
mod command;
mod console;
mod dashboard;
mod error;
mod exits;
mod gpu_memory;
mod logging;
mod logits;
mod machine;
mod memory;
mod model;
mod output;
mod own_text;
mod png;
mod progress;
mod ranks;
mod signal;
mod trees;

use std::process::ExitCode;

/// Allocator that `main` tells to keep freed memory. A training step allocates and frees gigabytes
/// of tensors, which the system allocator returns to the kernel each time.
#[global_allocator]
static ALLOCATOR: retie_model::kernels::Allocator = retie_model::kernels::Allocator;

fn main() -> ExitCode {
    retie_model::kernels::keep_freed_memory();
    retie_data::quiet_guarded_panics();
    let invocation = cli::Invocation::parse();
    let result = logging::start().and_then(|()| invocation.run());
    error::exit_code(result)
}
