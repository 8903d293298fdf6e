//! The place where a job runs.

use burn::tensor::Device;
use retie_collective::Collective;
use std::sync::atomic::{AtomicBool, Ordering};

/// Device, ranks and stop flag of this process's part of a job.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Device of the tensors.
    pub device: &'a Device,
    /// The processes that share the work.
    pub ranks: &'a dyn Collective,
    /// Set by the caller when the job should save and stop.
    pub stop: &'a AtomicBool,
}

impl Job<'_> {
    /// Whether the caller has asked to stop.
    pub(crate) fn is_stopped(self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
