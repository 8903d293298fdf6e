//! [`Collective`] over the Message Passing Interface (<https://www.mpi-forum.org>), through the C
//! library that the system has.
//!
//! Buffers are host memory. MPI counts elements in 32 bits and these functions do not work in
//! place, so long buffers go in chunks. Errors of MPI itself end the job, which is its default.

use super::launch::{GRACE, Launch, refuse};
use crate::error::{Status, report};
use anyhow::Context;
use mpi::{
    Rank, Threading,
    collective::SystemOperation,
    topology::SimpleCommunicator,
    traits::{Communicator, CommunicatorCollectives, Equivalence, Root},
};
use retie_collective::Collective;

/// Elements of a chunk.
const CHUNK: usize = 1 << 24;

/// All ranks of the job. Only the thread that started MPI may call it.
#[derive(Clone, Copy, Debug)]
struct Mpi {
    rank: usize,
    world: usize,
}

/// Guard that aborts the job when a rank panics; MPI's finalisation would wait for the others.
struct Panicking;

impl Drop for Panicking {
    fn drop(&mut self) {
        if std::thread::panicking() {
            world().abort(101);
        }
    }
}

fn world() -> SimpleCommunicator {
    SimpleCommunicator::world()
}

/// Runs a command on all ranks. If it fails on one, that rank reports the error and aborts the job.
pub fn run(launch: Launch, command: impl FnOnce(&dyn Collective) -> anyhow::Result<Status>) -> anyhow::Result<Status> {
    let universe = mpi::initialize_with_threading(Threading::Funneled).context("MPI has been started before")?;
    let _panicking = Panicking;
    let ranks = Mpi { rank: world().rank() as usize, world: world().size() as usize };
    if ranks.world != launch.world {
        return refuse(
            launch.rank,
            format!(
                "{} processes were started (`{}`), but MPI connects {}\n\
                 hint: the launcher has to be of the MPI library that retie is built with; with Slurm `srun --mpi=pmix`",
                launch.world, launch.variable, ranks.world
            ),
        );
    }
    let result = command(&ranks).with_context(|| format!("rank {} of {} ends the job", ranks.rank, ranks.world));
    match result {
        Ok(status) => {
            // Waits for the others, then closes the connections.
            drop(universe);
            Ok(status)
        }
        Err(error) => {
            if !ranks.leads() {
                std::thread::sleep(GRACE);
            }
            let code = report(&error);
            world().abort(code.into())
        }
    }
}

impl Mpi {
    fn reduce<T: Equivalence + Copy>(values: &mut [T]) {
        for chunk in values.chunks_mut(CHUNK) {
            let sent = chunk.to_vec();
            world().all_reduce_into(&sent[..], chunk, SystemOperation::sum());
        }
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_reduce(&self, values: &mut [f32]) {
        Self::reduce(values);
    }

    fn all_reduce_f64(&self, values: &mut [f64]) {
        Self::reduce(values);
    }

    fn reduce_scatter(&self, whole: &[f32], part: &mut [f32]) {
        world().reduce_scatter_block_into(whole, part, SystemOperation::sum());
    }

    fn all_gather(&self, part: &[f32], whole: &mut [f32]) {
        world().all_gather_into(part, whole);
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        const FIRST: Rank = 0;
        for chunk in bytes.chunks_mut(CHUNK) {
            world().process_at_rank(FIRST).broadcast_into(chunk);
        }
    }

    fn barrier(&self) {
        world().barrier();
    }
}
