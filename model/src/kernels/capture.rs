//! Captured work: kernels that some work launches, recorded once and launched again as one.
//!
//! burn and CubeCL call a recording a graph (`burn-tensor` 0.22.1, `api/graph.rs`): on CUDA a graph
//! of the driver, on WGPU dispatches that are prepared once (`cubecl-wgpu` 0.11.3,
//! `compute/graph.rs`). It has the buffers, sizes and scalars of the recorded launches; what
//! changes from one replay to the next is written into its buffers before ([`FixedMemory`]).
//! Nothing may be read or uploaded while it is recorded: the backend then refuses the recording.
//!
//! A backend records whatever is launched on the stream, which all threads share (`device.rs`): no
//! other thread may use the device meanwhile.

#![expect(unsafe_code, reason = "a replay runs on buffers that nothing tracks")]

use super::{Execution, kernels_of, launches, with_launches};
use burn::{
    backend::{Backend, BackendTypes, Dispatch, DispatchDevice},
    tensor::{Device, Int, Tensor},
};
use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// Runs before a recording, which may allocate nothing: they leave memory for it in the pools, and
/// kernels that are compiled. As many as burn's own `capture` makes.
const WARM_UPS: usize = 3;

static IS_ALLOWED: AtomicBool = AtomicBool::new(true);
static REPLAYS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// Memory of a device that captures work.
pub trait FixedMemory: Sync {
    /// Writes `values` into the memory of `tensor`, whoever holds it.
    fn overwrite(&self, tensor: &Tensor<2>, values: Vec<f32>);

    /// [`FixedMemory::overwrite`] for integers.
    fn overwrite_integers(&self, tensor: &Tensor<1, Int>, values: Vec<i32>);

    /// Whether both are the same memory.
    fn is_same(&self, a: &Tensor<2>, b: &Tensor<2>) -> bool;
}

impl fmt::Debug for dyn FixedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FixedMemory")
    }
}

/// Whether this process captures work where a device can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Capture {
    /// Where the device can.
    #[default]
    Auto,
    /// Nowhere.
    Off,
}

/// Sets whether work that is begun from now on is captured.
pub fn set_capture(capture: Capture) {
    IS_ALLOWED.store(capture == Capture::Auto, Ordering::Relaxed);
}

/// Memory of `device`, if it captures work, this process does, and kernels run.
#[must_use]
pub fn fixed_memory(device: &Device) -> Option<&'static dyn FixedMemory> {
    let is_on = IS_ALLOWED.load(Ordering::Relaxed) && !launches::is_dry_run();
    kernels_of(device).fixed_memory().filter(|_| is_on)
}

/// Replays of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replays {
    /// Number of replays, each of which is one launch.
    pub count: usize,
    /// Number of kernels that they ran.
    pub kernels: usize,
}

/// Replays that this process has made so far.
#[must_use]
pub fn replays() -> Replays {
    let [count, kernels] = REPLAYS.each_ref().map(|number| number.load(Ordering::Relaxed));
    Replays { count, kernels }
}

/// Failure to record work or to replay it.
#[derive(Debug, thiserror::Error)]
#[error("the device did not {what}: {reason}")]
pub struct CaptureError {
    what: &'static str,
    reason: String,
}

impl CaptureError {
    fn new(what: &'static str) -> impl Fn(burn::backend::ExecutionError) -> Self {
        move |error| Self { what, reason: error.to_string() }
    }
}

/// Recorded work with its output `T`, tensors that every replay writes.
pub struct Captured<T> {
    device: DispatchDevice,
    graph: <Dispatch as BackendTypes>::GraphPrimitive,
    num_kernels: usize,
    output: T,
}

impl<T> fmt::Debug for Captured<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Captured").field("num_kernels", &self.num_kernels).finish_non_exhaustive()
    }
}

/// A recording that is being prepared or made; it ends where this is dropped.
struct Window<'a> {
    device: &'a DispatchDevice,
    is_open: bool,
}

impl Window<'_> {
    fn close(mut self) -> Result<<Dispatch as BackendTypes>::GraphPrimitive, CaptureError> {
        self.is_open = false;
        Dispatch::graph_stop_capture(self.device).map_err(CaptureError::new("record the work"))
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if self.is_open {
            let _ = Dispatch::graph_stop_capture(self.device);
        }
    }
}

/// Runs `work` on `device` a few times, then records it. The recorded run does not happen before
/// the first replay, so the output is that of the warm-up until then or nothing.
///
/// # Errors
/// When the device refuses. What it had recorded did not run; what `work` has written in place was
/// written by the runs before.
pub fn capture<T>(device: &Device, mut work: impl FnMut() -> T) -> Result<Captured<T>, CaptureError> {
    let device = device.clone().inner();
    let target = device.as_dispatch().clone();
    Dispatch::graph_prepare(&target).map_err(CaptureError::new("prepare a recording"))?;
    let window = Window { device: &target, is_open: true };
    for _ in 0..WARM_UPS {
        // Dropped behind the synchronisation, so that memory is free when the next run begins.
        let output = work();
        Dispatch::sync(&target).map_err(CaptureError::new("finish"))?;
        drop(output);
    }
    Dispatch::graph_start_capture(&target).map_err(CaptureError::new("begin to record"))?;
    let (output, kernels) = with_launches(&device, Execution::Real, &mut work);
    let graph = window.close()?;
    let num_kernels = kernels.map_or(0, |kernels| kernels.values().sum());
    Ok(Captured { device: target, graph, num_kernels, output })
}

impl<T> Captured<T> {
    /// Runs the kernels again, on what stands in their buffers now.
    ///
    /// # Errors
    /// When the device refuses; nothing has run then.
    pub fn replay(&self) -> Result<&T, CaptureError> {
        // SAFETY: The graph guards every page of memory that its kernels were given: while it
        // exists nothing on them moves, is freed or is handed out again, so they read and write
        // what they did. All threads share one stream, which orders replays with other work.
        let done = unsafe { Dispatch::graph_replay(&self.device, &self.graph) };
        done.map_err(CaptureError::new("run what it has recorded"))?;
        for (sum, number) in REPLAYS.iter().zip([1, self.num_kernels]) {
            sum.fetch_add(number, Ordering::Relaxed);
        }
        Ok(&self.output)
    }

    /// Number of kernels of a replay.
    #[must_use]
    pub fn num_kernels(&self) -> usize {
        self.num_kernels
    }
}
