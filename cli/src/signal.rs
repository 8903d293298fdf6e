//! Handling of `SIGINT`, `SIGTERM`, and `SIGUSR1`, which `mpirun` and Slurm pass on to every rank.
//! The first signal asks to save and stop, the second ends the process at once.

use anyhow::Context;
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGUSR1},
    flag,
};
use std::sync::{Arc, atomic::AtomicBool};

const INTERRUPTED: i32 = 130;

/// A flag that the first signal sets.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGUSR1] {
        // The order matters: the shutdown reads the flag before the same signal sets it.
        flag::register_conditional_shutdown(signal, INTERRUPTED, Arc::clone(&stop))
            .and_then(|_| flag::register(signal, Arc::clone(&stop)))
            .context("cannot listen to signals")?;
    }
    Ok(stop)
}
