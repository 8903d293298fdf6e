//! Detection of a launcher (`mpirun`, `srun`) by its environment variables.

use anyhow::bail;

/// Environment variables with the number of processes and the rank of this one, for Open MPI, for
/// MPICH and its derivatives, and for Slurm's `srun`.
const LAUNCHERS: [(&str, &str); 3] = [
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
];

/// A job of several processes, as one of them sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Environment variable with the number of processes.
    pub variable: &'static str,
    pub world: usize,
    pub rank: usize,
}

/// The launch that this process belongs to, if it is one of several.
fn launch(variable: impl Fn(&str) -> Option<String>) -> Option<Launch> {
    LAUNCHERS.into_iter().find_map(|(world, rank)| {
        let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
        let launch = Launch { variable: world, world: number(world)?, rank: number(rank).unwrap_or(0) };
        (launch.world > 1).then_some(launch)
    })
}

/// [`launch`] in the environment of this process.
pub fn launched() -> Option<Launch> {
    launch(|name| std::env::var(name).ok())
}

/// Fails with `message`, which all ranks have. Ranks above 0 wait for [`GRACE`], so that rank 0
/// shows it before they end the job.
pub fn refuse<T>(rank: usize, message: String) -> anyhow::Result<T> {
    if rank > 0 {
        std::thread::sleep(GRACE);
    }
    bail!(message)
}

/// Time for the first rank to show an error that all ranks have.
pub const GRACE: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known_by_their_variables() {
        let launch_with = |given: &[(&str, &str)]| {
            launch(|name| given.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        let found = |variable, world, rank| Some(Launch { variable, world, rank });
        assert_eq!(launch_with(&[]), None);
        assert_eq!(launch_with(&[("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")]), None);
        let open_mpi = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3")];
        assert_eq!(launch_with(&open_mpi), found("OMPI_COMM_WORLD_SIZE", 4, 3));
        // `sbatch` sets these variables for its script, which runs once: not a launch.
        assert_eq!(launch_with(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), None);
        let srun = [("SLURM_NTASKS", "8"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_PROCID", "5")];
        assert_eq!(launch_with(&srun), found("SLURM_STEP_NUM_TASKS", 8, 5));
    }
}
