//! What a device is asked to do: kernels launched, by name, and the memory that its pools hold.
//! Counts and peaks do not depend on the speed of the device, so software stands in for a GPU.

use burn::tensor::Device;
use serde::Serialize;
use std::collections::BTreeMap;

/// Whether the kernels that are launched run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// They run.
    Real,
    /// They are compiled and counted, and dropped. Buffers keep what was in them, and those that
    /// nothing has written take no memory of the device. Not for work that depends on values which
    /// it has computed, such as the number of tokens that a router selects by thresholds.
    Dry,
}

/// Kernels that were launched, by name.
pub type Launches = BTreeMap<String, usize>;

/// Memory of a device's pools, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PoolMemory {
    /// In tensors that exist.
    pub in_use: u64,
    /// In pages that the pools hold, for tensors that exist and for later ones.
    pub reserved: u64,
}

/// Name of a replay of [captured](super::capture()) work among [`Launches`].
pub const REPLAY: &str = "replay of captured work";

/// Whether kernels are counted, and dropped.
#[cfg(feature = "cube")]
pub(super) fn is_dry_run() -> bool {
    cubecl::dry_run::dry_run()
}

#[cfg(not(feature = "cube"))]
pub(super) fn is_dry_run() -> bool {
    false
}

/// Runs `f`, and counts the kernels that the process launches meanwhile; `None` on the CPU, whose
/// operations are functions. A replay counts as one, [`REPLAY`].
#[cfg(feature = "cube")]
pub fn with_launches<R>(device: &Device, execution: Execution, f: impl FnOnce() -> R) -> (R, Option<Launches>) {
    use cubecl::{
        config::{TypeNameFormatLevel, type_name_format},
        dry_run::DryRun,
        logging::{LaunchObservation, LaunchObserver},
    };
    use std::sync::{Arc, Mutex, PoisonError};

    #[derive(Default)]
    struct Counter(Mutex<BTreeMap<&'static str, usize>>);

    impl LaunchObserver for Counter {
        fn launched(&self, kernel: &'static str) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(kernel).or_default() += 1;
        }
    }

    if crate::is_host(device) {
        return (f(), None);
    }
    let (counter, before) = (Arc::new(Counter::default()), super::replays().count);
    let result = {
        let _observation = LaunchObservation::new(counter.clone());
        let _dry = (execution == Execution::Dry).then(DryRun::new);
        f()
    };
    let mut launches = Launches::new();
    for (name, count) in counter.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        *launches.entry(type_name_format(name, TypeNameFormatLevel::Balanced)).or_default() += count;
    }
    let replays = super::replays().count - before;
    if replays > 0 {
        launches.insert(REPLAY.to_owned(), replays);
    }
    (result, Some(launches))
}

/// Runs `f`. This program has no backend whose launches could be counted.
#[cfg(not(feature = "cube"))]
pub fn with_launches<R>(_: &Device, _: Execution, f: impl FnOnce() -> R) -> (R, Option<Launches>) {
    (f(), None)
}

/// Memory of the pools of `device`; `None` on the CPU. Pages are kept, so `reserved` is the most
/// that was needed.
#[must_use]
pub fn pool_memory(device: &Device) -> Option<PoolMemory> {
    let usage = device.clone().inner().memory_pool_usage()?;
    Some(PoolMemory { in_use: usage.bytes_in_use, reserved: usage.bytes_reserved })
}
