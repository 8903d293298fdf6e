//! What a device is asked to compute and to move: matrix products by their shapes, and the bytes of
//! the buffers that the kernels of `cube` bind. As for [launches](super::launches), neither depends
//! on the speed of the device, or on its running anything.

use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Shape of a matrix product, `[batch, rows, inner] · [batch, inner, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Product {
    /// Products of the same launch.
    pub batch: usize,
    /// Rows of the result.
    pub rows: usize,
    /// What is summed over.
    pub inner: usize,
    /// Columns of the result.
    pub columns: usize,
}

impl Product {
    /// Floating-point operations; a multiply-add counts as two.
    #[must_use]
    pub fn operations(self) -> u64 {
        2 * (self.batch * self.rows * self.inner * self.columns) as u64
    }

    /// Bytes of both factors and of the result in f32: what a product moves at least.
    #[must_use]
    pub fn bytes(self) -> u64 {
        let Self { batch, rows, inner, columns } = self;
        4 * (batch * (rows * inner + inner * columns + rows * columns)) as u64
    }
}

/// Work of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Products in f32, by shape.
    pub products: BTreeMap<Product, usize>,
    /// Bytes of the buffers that kernels of the project bind, each once a launch.
    pub bound_bytes: u64,
}

static IS_RECORDING: AtomicBool = AtomicBool::new(false);
static WORK: Mutex<Work> = Mutex::new(Work { products: BTreeMap::new(), bound_bytes: 0 });

/// Runs `f`; returns the work that the process asked its devices for meanwhile. The CPU, whose
/// operations are functions, is no such device.
pub fn with_work<R>(f: impl FnOnce() -> R) -> (R, Work) {
    let taken = || std::mem::take(&mut *WORK.lock().unwrap_or_else(PoisonError::into_inner));
    drop(taken());
    IS_RECORDING.store(true, Ordering::Relaxed);
    let result = f();
    IS_RECORDING.store(false, Ordering::Relaxed);
    (result, taken())
}

#[cfg(feature = "cube")]
fn record(f: impl FnOnce(&mut Work)) {
    if IS_RECORDING.load(Ordering::Relaxed) {
        f(&mut WORK.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Counts a product.
#[cfg(feature = "cube")]
pub(super) fn product(product: Product) {
    record(|work| *work.products.entry(product).or_default() += 1);
}

/// Counts a buffer that a kernel binds.
#[cfg(feature = "cube")]
pub(super) fn bound(bytes: usize) {
    record(|work| work.bound_bytes += bytes as u64);
}
