//! Distributed commands, which `mpirun` or Slurm's `srun` starts as several processes.
//!
//! Only rank 0 writes output. An error of any rank ends the whole job, with the rank in its
//! message, because the others would wait for that rank for ever.

mod launch;
#[cfg(feature = "mpi")]
mod mpi;

use crate::error::Status;
use launch::{Launch, launched, refuse};
use retie_collective::{Collective, Single};

/// Runs a command on all ranks of the job, or in this process if it is alone.
pub fn run(command: impl FnOnce(&dyn Collective) -> anyhow::Result<Status>) -> anyhow::Result<Status> {
    match launched() {
        None => command(&Single),
        #[cfg(feature = "mpi")]
        Some(launch) => mpi::run(launch, command),
        #[cfg(not(feature = "mpi"))]
        Some(Launch { variable, world, rank }) => refuse(
            rank,
            format!(
                "{world} processes were started (`{variable}`), and this build of retie cannot train with others: each would train a model of its own\n\
                 hint: build it with MPI: `cargo build --release --features mpi`; it needs an MPI library and libclang"
            ),
        ),
    }
}

/// Checks that this process is alone, for the single-process command `name`.
///
/// # Errors
/// A launcher has started several processes.
pub fn alone(name: &str) -> anyhow::Result<()> {
    match launched() {
        None => Ok(()),
        Some(Launch { variable, world, rank }) => refuse(
            rank,
            format!(
                "{world} processes were started (`{variable}`), and `retie {name}` is for one\n\
                 hint: start it without `mpirun` or `srun`; `uptrain`, `eval` and `cache-logits` divide their work among processes"
            ),
        ),
    }
}
