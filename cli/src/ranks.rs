//! Commands that several processes run together, and what starts them: `mpirun`, or Slurm's `srun`.
//!
//! Only the first rank speaks. An error of any rank ends the whole job, with the rank in its message: the others would wait for it
//! for ever.

#[cfg(feature = "mpi")]
mod mpi;

use crate::error::Status;
use anyhow::bail;
use retie_trainer::{Collective, Single};

/// Where launchers say how many processes they have started, and the number of each: Open MPI, MPICH and its kin, Slurm's `srun`.
const LAUNCHERS: [(&str, &str); 3] = [
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
];

/// What a launcher has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Launch {
    /// The variable that says so.
    variable: &'static str,
    world: usize,
    rank: usize,
}

/// The launch that this process is one of several of.
fn launch(variable: impl Fn(&str) -> Option<String>) -> Option<Launch> {
    LAUNCHERS.into_iter().find_map(|(world, rank)| {
        let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
        let launch = Launch { variable: world, world: number(world)?, rank: number(rank).unwrap_or(0) };
        (launch.world > 1).then_some(launch)
    })
}

fn launched() -> Option<Launch> {
    launch(|name| std::env::var(name).ok())
}

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

/// Refuses to run a command that is for one process in several.
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

/// Fails with a message that the first process shows before the others, with the same one, end the job.
fn refuse<T>(rank: usize, message: String) -> anyhow::Result<T> {
    if rank > 0 {
        std::thread::sleep(GRACE);
    }
    bail!(message)
}

/// Time for the first rank to speak of an error that all have.
const GRACE: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known_by_their_variables() {
        let of = |given: &[(&str, &str)]| {
            launch(|name| given.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        let found = |variable, world, rank| Some(Launch { variable, world, rank });
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")]), None);
        let open_mpi = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3")];
        assert_eq!(of(&open_mpi), found("OMPI_COMM_WORLD_SIZE", 4, 3));
        // What `sbatch` sets for its script is not a launch: the script runs once.
        assert_eq!(of(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), None);
        let srun = [("SLURM_NTASKS", "8"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_PROCID", "5")];
        assert_eq!(of(&srun), found("SLURM_STEP_NUM_TASKS", 8, 5));
    }
}
